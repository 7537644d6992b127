"""Whatever the code of a user reads is found, and pinned: outputs never change."""

import functools
import random
import types

import keras
import networks
import numpy as np
import pytest
from helpers import BACKEND, to_numpy
from keras import layers, ops

from keras_weissi import balance_scales, scale_groups, shift_scales

# What is done first, so that it cannot be traced; and the layer that is shared.
SHARED = {"first": networks.opaque}


def tied(kernel, x):
    return ops.matmul(SHARED["first"](x), ops.transpose(kernel))


def use_global(x):
    return tied(SHARED["encoder"].kernel, x)


def decorated(function):
    @functools.wraps(keras.activations.relu)  # which gives it Keras's module, too
    def wrapper(*args):
        return function(*args)

    return wrapper


def compiled(function):
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function)
    return function


class Callable:
    def __init__(self, encoder):
        self.held = {"deep": [{"encoder": encoder}]}

    def __call__(self, x):
        return tied(self.held["deep"][0]["encoder"].kernel, x)


class Generator:
    def __init__(self, encoder):
        self.encoder = encoder

    def apply(self, x):
        return tied(next(e for e in [self.encoder]).kernel, x)


def nested(encoder):
    held = {0: encoder}

    def outer():
        def middle():
            return lambda x: tied(held[0].kernel, x)

        return middle()

    return outer()


def in_scope(encoder):
    def function(x):
        with keras.StatelessScope():
            return tied(encoder.kernel, x)

    return function


def compiled_before(encoder):
    import tensorflow as tf

    traced = tf.function(lambda x: tied(encoder.kernel, x))
    concrete = traced.get_concrete_function(tf.TensorSpec((None, 4)))
    return lambda x: concrete(x)


FUNCTIONS = {
    "list": lambda e: (lambda held: lambda x: tied(held[1][0].kernel, x))([0, [e]]),
    "dict": lambda e: (lambda held: lambda x: tied(held["e"].kernel, x))({"e": e}),
    "object": lambda e: (lambda held: lambda x: tied(held.e.kernel, x))(
        types.SimpleNamespace(e=e)
    ),
    "callable object": Callable,
    "function": lambda e: (lambda f: lambda x: f(x))(lambda x: tied(e.kernel, x)),
    "default argument": lambda e: lambda x, held=(e,): tied(held[0].kernel, x),
    "partial": lambda e: functools.partial(tied, e.kernel),
    "bound method": lambda e: Generator(e).apply,
    "global": lambda e: use_global,
    "decorated": lambda e: decorated(lambda x: tied(e.kernel, x)),
    "compiled": lambda e: compiled(lambda x: tied(e.kernel, x)),
    "nested closures": nested,
    "only in training": lambda e: (
        lambda held: (
            lambda x, training=False: (
                tied(held[0].kernel, x) if training else ops.tile(x, (1, 2))
            )
        )
    )([e]),
    # On PyTorch, only the branch that is taken for ones can be seen.
    "one of two branches": lambda e: (
        lambda held: (
            lambda x: ops.cond(
                ops.sum(x) > 0 if BACKEND == "torch" else ops.sum(x) < -1e9,
                lambda: tied(held[0].kernel, x),
                lambda: ops.tile(x, (1, 2)),
            )
        )
    )([e]),
    "a scope of its own": in_scope,
}
if hasattr(keras, "remat"):
    FUNCTIONS["rematerialized"] = lambda e: keras.remat(lambda x: tied(e.kernel, x))
if BACKEND != "tensorflow":
    FUNCTIONS["gradient of its own"] = lambda e: ops.custom_gradient(
        lambda x: (tied(e.kernel, x), lambda upstream: ops.zeros_like(x))
    )
if BACKEND != "jax":  # there, it is a constant
    FUNCTIONS["the backend's variable"] = lambda e: (
        lambda value: lambda x: tied(value, x)
    )(e.kernel.value)
if BACKEND == "tensorflow":
    FUNCTIONS["compiled long before"] = compiled_before


class Custom(layers.Layer):
    """Holds its function out of Keras's sight, and layers of its own in sight."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.box = lambda: function
        self.own = [layers.Dense(8), layers.Dropout(0.5)]

    def build(self, shape):
        self.own[0].build((None, 8))

    def call(self, x):
        y = self.box()(x)
        return y + self.own[1](self.own[0](y))


class Operation(keras.Operation):
    def __init__(self, function):
        super().__init__(name="reader")
        self.box = lambda: function

    def call(self, x):
        return self.box()(x)

    def compute_output_spec(self, x):
        return keras.KerasTensor((*x.shape[:-1], 8), x.dtype)


def autoencoder(make):
    """A model whose "encoder" has a kernel of shape (8, 4) that `make` uses again."""
    encoder = layers.Dense(4, "relu", name="encoder")
    SHARED["encoder"] = encoder
    inputs = keras.Input((6,))
    x = layers.Dense(8, "relu", bias_initializer="ones", name="first")(inputs)
    x = encoder(x)
    x = make(encoder)(x)
    x = layers.Dense(8, "relu", name="last")(x)
    return keras.Model(inputs, layers.Dense(2, name="out")(x))


def pins(model):
    return {pin for group in scale_groups(model).pinned for pin in group.pins}


def why(model, name="encoder"):
    """Why the scale of a kernel is what it is."""
    status = scale_groups(model).statuses[name]
    assert status.kind == "pinned"
    return status.by


def check_is_pinned(model, *free):
    """Checks a model whose encoder is used again, and what is free but "last"."""
    x = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
    before = to_numpy(model(x)), to_numpy(model(x, training=True))
    assert why(model) == "encoder: it shares a weight with reader"
    value = to_numpy(model.get_layer("encoder").kernel)
    balance_scales(model)
    groups = scale_groups(model).free
    assert [group.layers for group in groups] == [*free, ("last",)]
    shift_scales(model, {"last": 8.0, "out": 0.125})
    np.testing.assert_array_equal(to_numpy(model.get_layer("encoder").kernel), value)
    after = to_numpy(model(x)), to_numpy(model(x, training=True))
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError):
        shift_scales(model, {"first": 2.0, "encoder": 0.5, "out": 1.0})


@pytest.mark.parametrize("way", FUNCTIONS)
def test_what_a_lambda_reads(way):
    def make(encoder):
        function = FUNCTIONS[way](encoder)
        return layers.Lambda(function, output_shape=(8,), name="reader")

    check_is_pinned(autoencoder(make))


# Once called, JAX keeps what was rematerialized, and the value of the kernel with it.
@pytest.mark.parametrize("way", [way for way in FUNCTIONS if way != "rematerialized"])
def test_what_a_lambda_is_seen_to_do(way, monkeypatch):
    """Seen or not, the kernel that it transposes itself keeps its value."""
    monkeypatch.setitem(SHARED, "first", lambda x: x)

    def make(encoder):
        function = FUNCTIONS[way](encoder)
        return layers.Lambda(function, output_shape=(8,), name="reader")

    model = autoencoder(make)
    assert why(model) == "encoder: it shares a weight with reader"
    x = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
    factors = {row.name: row.factor for row in networks.check_symmetry(model, x)}
    assert factors["encoder"] == 1.0 != factors["last"]
    with pytest.raises(ValueError):
        shift_scales(model, {"first": 2.0, "encoder": 0.5})
    if way == "list":  # scale goes through it
        free = scale_groups(model).free
        assert [group.layers for group in free] == [
            ("first", "encoder", "reader"),
            ("last",),
        ]


@pytest.mark.parametrize("way", ["list", "partial", "bound method", "compiled"])
def test_what_an_operation_reads(way):
    check_is_pinned(autoencoder(lambda e: Operation(FUNCTIONS[way](e))))


def test_what_a_layer_that_holds_layers_reads():
    def make(encoder):
        return Custom(FUNCTIONS["object"](encoder), name="reader")

    model = autoencoder(make)
    assert why(model) == "encoder: it shares a weight with reader"
    assert [group.layers for group in scale_groups(model).free] == [("last",)]


@pytest.mark.parametrize("wrapper", [layers.Activation, "dense"])
def test_what_an_activation_reads(wrapper):
    def make(encoder):
        def scaled(x):
            return x * ops.sum(ops.abs(encoder.kernel))

        if wrapper == "dense":
            return layers.Dense(8, activation=scaled, name="reader")
        return wrapper(scaled, name="reader")

    model = autoencoder(make)
    assert why(model) == "encoder: it shares a weight with the activation of reader"
    value = to_numpy(model.get_layer("encoder").kernel)
    x = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
    before = to_numpy(model(x))
    balance_scales(model)
    np.testing.assert_array_equal(to_numpy(model.get_layer("encoder").kernel), value)
    np.testing.assert_allclose(to_numpy(model(x)), before, rtol=1e-4, atol=1e-5)


def test_an_activation_that_reads_the_kernel_of_its_own_layer():
    encoder = layers.Dense(4, name="own")
    encoder.activation = lambda x: x * ops.sum(ops.abs(encoder.kernel))
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, "relu"), encoder, layers.Dense(2)]
    )
    assert ("own", "it shares a weight with the activation of own") in pins(model)
    assert not scale_groups(model).free


class ReadsInTraining(layers.Layer):
    def __init__(self, encoder, **kwargs):
        super().__init__(**kwargs)
        self.box = lambda: encoder

    def call(self, x, training=False):
        return tied(self.box().kernel, x) if training else ops.tile(x, (1, 2))


class Around(layers.Layer):
    """Says nothing of training, but Keras tells the layer inside."""

    def __init__(self, encoder, **kwargs):
        super().__init__(**kwargs)
        self.inside = ReadsInTraining(encoder)

    def call(self, x):
        return self.inside(x)

    def compute_output_shape(self, shape):
        return (*shape[:-1], 8)


def test_what_a_layer_inside_reads_in_training():
    model = autoencoder(lambda e: Around(e, name="reader"))
    names = ("first", "encoder", "reader", "reader/reads_in_training")
    check_is_pinned(model, names)


def test_an_argument_that_shares_memory_with_a_kernel():
    """On PyTorch, it is a view; on the others, a constant."""

    def make(encoder):
        return lambda x: ops.matmul(x, ops.transpose(encoder.kernel))

    model = autoencoder(make)
    x = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
    before = to_numpy(model(x))
    balance_scales(model)
    np.testing.assert_allclose(to_numpy(model(x)), before, rtol=1e-5, atol=1e-5)


def test_what_a_function_among_the_arguments_reads():
    def make(encoder):
        held = [encoder]
        return lambda x: ops.map(lambda row: tied(held[0].kernel, row[None])[0], x)

    names = [why for layer, why in pins(autoencoder(make)) if layer == "encoder"]
    assert any("shares a weight with" in why for why in names)


def test_a_call_that_is_replaced_is_not_that_of_the_class():
    layer = layers.Dense(8, name="reader")
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4), layer])
    layer.call = lambda x: ops.square(x)
    assert ("reader", "its `call` is not that of its class") in pins(model)


def test_a_function_with_an_empty_cell():
    def make(encoder):
        def function(x):
            return ops.tile(x, (1, 2)) if True else later

        if encoder is None:
            later = 1
        return layers.Lambda(function, output_shape=(8,))

    model = autoencoder(make)
    assert len(scale_groups(model).free) == 3
    networks.check_symmetry(model, np.ones((2, 6), "float32"))


class Fails(layers.Layer):
    def call(self, x):
        if not isinstance(x, keras.KerasTensor) and x.shape[0] != 97:
            raise ValueError("expected 97 rows")
        return networks.opaque(x)

    def compute_output_shape(self, shape):
        return shape


def test_what_cannot_be_run_may_read_anything():
    model = autoencoder(lambda e: lambda x: layers.Dense(8)(Fails(name="reader")(x)))
    assert not scale_groups(model).free
    assert "cannot be run" in why(model, "first")
    assert "97 rows" in why(model, "first")


class Takes(layers.Layer):
    """Counts on what it is given: two tensors, integers, a mask, sizes."""

    def __init__(self, encoder, **kwargs):
        super().__init__(**kwargs)
        held = [encoder]
        self.box = lambda: held[0]
        self.table = layers.Embedding(1, 4, mask_zero=True)
        self.supports_masking = True

    def call(self, x, index, x_mask=None, training=None):
        y = x + self.table(index)[:, :1, :]
        if x_mask is not None:
            y = ops.matmul(y, ops.matmul(self.box().kernel[:4], ops.ones((4, 4))))
        return y[:, 0] + y[:, -1]


def test_tensors_of_any_kind_are_made_up():
    encoder = layers.Dense(4, "relu", name="encoder")
    x, index = keras.Input((None, 6)), keras.Input((None,), dtype="int32")
    y = layers.Masking()(x)
    y = encoder(layers.Dense(4, "relu", name="first")(y))
    y = Takes(encoder, name="reader")(y, index)
    model = keras.Model([x, index], layers.Dense(2)(y))
    assert why(model) == "encoder: it shares a weight with reader"


class Windows(layers.Layer):
    """Needs a batch of groups of 4, and a length that 7 divides."""

    def call(self, x):
        x = networks.opaque(x)
        batch, length, width = x.shape
        y = ops.reshape(x, (batch // 4, 4, length // 7, 7, width))
        return ops.reshape(y, (batch, length, width))

    def compute_output_shape(self, shape):
        return shape


def test_unknown_dimensions_may_have_to_be_divided():
    x = inputs = keras.Input((None, 6))
    for layer in (layers.Dense(6, name="a"), Windows(), layers.Dense(6, name="b")):
        x = layer(x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    assert [group.layers for group in scale_groups(model).free] == [("b",)]


class Remembers(layers.Layer):
    """Keeps what it has seen, in attributes and containers, and counts."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.steps, self.cache, self.last = 0, None, []
        self.by_size = {}

    def call(self, x):
        self.steps += 1
        if self.cache is None:
            self.cache = ops.arange(4, dtype="float32")
        self.last.append(x)
        self.by_size[x.shape[-1]] = x
        self.add_loss(ops.sum(x))
        return x + self.cache

    def compute_output_shape(self, shape):
        return shape


@pytest.mark.parametrize("hidden", [False, True])
def test_what_code_keeps_is_put_back(hidden):
    layer = Remembers(name="remembers")
    layer.build((None, 4))
    x = np.ones((2, 4), "float32")
    inputs = keras.Input((4,))
    y = layers.Dense(4, "relu", name="first")(inputs)
    used = layers.Lambda(lambda x: layer(x), output_shape=(4,)) if hidden else layer
    y = layers.Dense(4, "relu", name="last")(used(y))
    model = keras.Model(inputs, layers.Dense(2)(y))
    layer.steps, layer.cache = 0, None
    layer.last.clear(), layer.by_size.clear()
    assert [group.layers for group in scale_groups(model).free] == [("last",)]
    assert (layer.steps, layer.cache, layer.last, layer.by_size) == (0, None, [], {})
    before = to_numpy(model(x))
    losses = len(model.losses)
    balance_scales(model)
    assert len(model.losses) == losses
    assert layer.steps == 1 and len(layer.last) == 1
    np.testing.assert_allclose(to_numpy(model(x)), before, rtol=1e-5)


def test_layers_made_by_code_take_no_names():
    def numbered():
        return int(layers.Dense(2).name.removeprefix("dense_"))

    layers.Dense(2)
    model = autoencoder(lambda e: layers.Lambda(lambda x: layers.Dense(8)(x), (8,)))
    before = numbered()
    scale_groups(model)
    assert numbered() == before + 1


@pytest.mark.skipif(BACKEND != "torch", reason="about modules of PyTorch")
def test_modules_of_pytorch_keep_their_buffers_and_modes():
    import torch

    class Wrapper(layers.TorchModuleWrapper):
        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape, x.dtype)

    module = torch.nn.BatchNorm1d(4)
    inputs = keras.Input((6,))
    x = layers.Dense(4, "relu", name="first")(inputs)
    x = layers.Dense(4, "relu", name="last")(Wrapper(module)(x))
    model = keras.Model(inputs, layers.Dense(2)(x))
    x = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
    before = to_numpy(model(x))
    state = {name: value.clone() for name, value in module.state_dict().items()}
    is_training = module.training
    balance_scales(model)
    assert module.training is is_training
    for name, value in module.state_dict().items():
        assert torch.equal(value, state[name]), name
    np.testing.assert_allclose(to_numpy(model(x)), before, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="about variables of TensorFlow")
def test_variables_of_tensorflow_keep_their_values():
    import tensorflow as tf

    counter = tf.Variable(0.0)

    def function(x):
        if len(x.shape) > 100:  # cannot be traced, so it is run
            return x
        counter.assign_add(float(tf.reduce_sum(x)))
        return ops.tile(x, (1, 2))

    model = autoencoder(lambda e: layers.Lambda(function, output_shape=(8,)))
    scale_groups(model)
    assert float(counter) == 0.0


class Draws(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.counter = self.add_weight(shape=(), trainable=False, name="counter")
        self.seeds = keras.random.SeedGenerator(3)
        self.norm = layers.BatchNormalization()

    def build(self, shape):
        self.norm.build(shape)

    def call(self, x, training=None):
        self.counter.assign_add(1.0)
        noise = random.random() + np.random.rand()
        self.add_loss(ops.sum(x))
        x = x + noise + keras.random.normal(ops.shape(x), seed=self.seeds)
        if BACKEND == "torch":
            import torch

            x = x + torch.rand(())
        return self.norm(x, training=training)


def test_running_leaves_no_trace():
    model = autoencoder(lambda e: Draws(name="reader"))
    layer = model.get_layer("reader")
    values = [to_numpy(v) for v in (*model.variables, layer.seeds.state)]
    losses = len(model.losses)
    state = random.getstate(), np.random.get_state()[1].tolist()
    if BACKEND == "torch":
        import torch

        torch_state = torch.get_rng_state()
    nodes = sum(len(vars(x)["_inbound_nodes"]) for x in model.layers)
    assert len(scale_groups(model).free) == 2
    assert nodes == sum(len(vars(x)["_inbound_nodes"]) for x in model.layers)
    assert len(model.losses) == losses
    after = [to_numpy(v) for v in (*model.variables, layer.seeds.state)]
    for one, other in zip(values, after, strict=True):
        np.testing.assert_array_equal(one, other)
    assert state == (random.getstate(), np.random.get_state()[1].tolist())
    if BACKEND == "torch":
        assert torch.equal(torch_state, torch.get_rng_state())


class NeverBuilt(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inside = layers.Dense(4)

    def build(self, shape):
        self.built = True

    def call(self, x):
        return self.inside(x)

    def compute_output_shape(self, shape):
        return shape


def test_a_layer_that_is_not_built_stays_so():
    model = autoencoder(lambda e: NeverBuilt(name="reader"))
    inside = model.get_layer("reader").inside
    assert not inside.built
    assert any("a layer that is not built" in why for _, why in pins(model))
    assert not inside.built and not inside.weights
    model(np.ones((2, 6), "float32"))
    assert inside.built and len(scale_groups(model).free) == 4
    networks.check_symmetry(model, np.ones((2, 6), "float32"))


class Penalty(keras.regularizers.Regularizer):
    def __call__(self, x):
        return ops.sum(x)


def test_code_of_keras_is_not_run(monkeypatch):
    from keras_weissi.model import reads

    def refuse(*args):
        raise AssertionError("run")

    monkeypatch.setattr(reads, "_run", refuse)
    x = inputs = keras.Input((6, 8))
    x = layers.MultiHeadAttention(2, 4)(x, x)
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True))(x)
    x = layers.TimeDistributed(layers.Dense(3, "gelu"))(x)
    x = layers.SpectralNormalization(layers.Conv1D(3, 1, activation="relu"))(x)
    x = layers.BatchNormalization(gamma_regularizer=Penalty())(layers.GRU(4)(x))
    x = ops.concatenate([x, ops.relu(x[:, :2])], axis=-1)
    scale_groups(keras.Model(inputs, x))
