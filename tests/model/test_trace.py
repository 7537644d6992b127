"""What is seen inside layers and subclassed models, and what is not believed."""

import concurrent.futures
import random
import warnings

import keras
import networks
import numpy as np
import pytest
from helpers import outputs_of, relative_error, to_numpy
from keras import layers, ops

from keras_weissi import (
    WEISSI,
    balance_scales,
    invariant_coefficients,
    regularize,
    scale_groups,
    shift_scales,
)
from keras_weissi.symmetry import Relation, register_scaling

X = np.random.default_rng(0).normal(size=(6, 5)).astype("float32")


class Chain(keras.Model):
    """A subclassed model that has many Python objects besides its layers."""

    def __init__(self, count=0):
        super().__init__()
        self.table = [(str(i), i) for i in range(count)]
        self.a, self.b = layers.Dense(4, "relu"), layers.Dense(2)
        self.dropout = layers.Dropout(0.3)

    def call(self, x, training=None):
        return self.b(self.dropout(self.a(x), training=training))


@pytest.mark.parametrize("count", [0, 11_000])
def test_tracing_puts_back_what_it_replaces(count):
    model = Chain(count)
    model(X)
    before = [dict(vars(layer)) for layer in (model.a, model.dropout)]
    assert scale_groups(model).dimension == 1
    assert model.dropout.rate == 0.3
    for layer, content in zip((model.a, model.dropout), before, strict=True):
        assert vars(layer).keys() == content.keys()
    assert not model.a._inbound_nodes and not model.dropout._inbound_nodes


def test_what_python_and_numpy_keep_is_put_back():
    class Counts(layers.Layer):
        def __init__(self):
            super().__init__()
            self.calls = np.zeros(1)

        def call(self, x):
            self.calls += 1
            return ops.relu(x)

    layer = Counts()
    model = keras.Sequential([keras.Input((5,)), layers.Dense(4), layer])
    calls = layer.calls.copy()
    scale_groups(model)
    np.testing.assert_array_equal(layer.calls, calls)


class WithOption(Chain):
    def call(self, x, extra=None):
        x = self.a(x)
        return self.b(x if extra is None else x + extra)


class WithLoss(Chain):
    def compute_loss(self, x=None, y=None, y_pred=None, **kwargs):
        return ops.mean(self.a(x) ** 2)


class OwnConfig(Chain):
    def get_build_config(self):
        raise RuntimeError("none")


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (WithOption, "its `call` also takes 'extra'"),
        (WithLoss, "its `compute_loss` is its own"),
        (OwnConfig, "RuntimeError: none"),
    ],
)
def test_models_that_may_do_something_else_are_refused(kind, why):
    model = kind()
    model(X)
    with pytest.raises(ValueError, match=f"can be seen through: .*{why}"):
        balance_scales(model)


class Mix(layers.Layer):
    """Ties its inputs, but only in training."""

    def call(self, a, b, training=False):
        a, b = ops.relu(a), ops.relu(b)
        return (a + b, ops.absolute(a - b)) if training else (a, b)


@pytest.mark.parametrize("depth", range(6))
def test_a_tie_that_is_not_shown_is_found(depth):
    x = inputs = keras.Input((5,))
    for _ in range(depth):
        x = layers.Dense(4, "relu")(x)
    a, b = Mix(name="mix")(layers.Dense(4)(x), layers.Dense(4)(x))
    x = layers.Add()([layers.Dense(2)(a), layers.Dense(2)(b)])
    model = keras.Model(inputs, x)
    with pytest.warns(UserWarning, match="through layer 'mix' of class Mix"):
        assert scale_groups(model).dimension == depth


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_low_precision_hides_no_lie(dtype):
    class Lies(layers.Layer):
        def call(self, x, training=False):
            return ops.tanh(x) if training else ops.relu(x)

    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        parts = layers.Dense(4), Lies(name="lies"), layers.Dense(3)
        model = keras.Sequential([keras.Input((5,)), *parts])
    finally:
        keras.config.set_dtype_policy(policy)
    with pytest.warns(UserWarning, match="through layer 'lies'"):
        assert scale_groups(model).dimension == 0


def test_a_declaration_inside_a_time_distributed_is_tried():
    class Squashes(layers.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=(shape[-1], 4), name="w")

        def call(self, x):
            return ops.tanh(x @ self.w)

        def compute_output_shape(self, shape):
            return (*shape[:-1], 4)

    def scaling(layer, inputs, outputs):
        return [Relation.kernel(layer.w, inputs[0], outputs[0])]

    register_scaling(Squashes, scaling)
    try:
        model = keras.Sequential(
            [
                keras.Input((3, 5)),
                layers.Dense(4, "relu"),
                layers.TimeDistributed(Squashes(), name="steps"),
                layers.Dense(2),
            ]
        )
        with pytest.raises(ValueError, match="hold for layer 'steps'"):
            scale_groups(model)
    finally:
        register_scaling(Squashes, None)


class Vector(layers.Layer):
    def __init__(self, use, **kwargs):
        super().__init__(**kwargs)
        self.use = use
        self.dense = layers.Dense(4, name="dense")

    def build(self, shape):
        self.dense.build(shape)
        self.g = self.add_weight(shape=(4,), initializer="ones", name="g")

    def call(self, x):
        return self.dense(x) * self.use(self.g)


@pytest.mark.parametrize(
    "use",
    [
        lambda g: g,
        lambda g: ops.reshape(g, (1, -1)),
        lambda g: ops.cast(g, "float32"),
        lambda g: 2 * g,
    ],
)
def test_a_vector_that_multiplies_is_scaled_whatever_is_done_to_it(use):
    model = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(4, "relu"),
            Vector(use, name="vector"),
            layers.Dense(2),
        ]
    )
    networks.randomize(model)
    groups = scale_groups(model)
    assert groups.dimension == 3
    before = outputs_of(model, X)
    names = [edge.kernel.name for edge in groups.edges]
    assert "vector" in names and "vector/dense" in names
    # A name that the groups print, and that is a layer's too, means what they print.
    shift_scales(model, {"vector": 2.0, names[-1]: 0.5})
    assert relative_error(outputs_of(model, X), before) < 1e-5
    balance_scales(model)
    assert relative_error(outputs_of(model, X), before) < 1e-5


@pytest.mark.parametrize("exponent", [np.float32(2), float("inf"), 0.7001123])
def test_powers_of_any_kind_are_scaled_or_fixed(exponent):
    x = inputs = keras.Input((5,))
    x = ops.power(ops.absolute(layers.Dense(4)(x)) * 0.1, exponent)
    model = keras.Model(inputs, layers.Dense(2)(x))
    before = outputs_of(model, X)
    shift_scales(model, scale_groups(model).random_factors(np.random.default_rng(0)))
    np.testing.assert_allclose(outputs_of(model, X), before, rtol=1e-4, atol=1e-6)


def test_the_kernels_of_an_attention_layer_get_one_coefficient():
    x = inputs = keras.Input((4, 8))
    y = layers.LayerNormalization(name="norm")(x)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 4, name="attention")(y, y)])
    model = keras.Model(inputs, layers.Dense(2)(x))
    found = invariant_coefficients(model).coefficients
    ours = {found[name] for name in found if name.startswith("attention/")}
    assert len(ours) == 1
    regularize(model, WEISSI(0.1, min_norm=1e-9), invariant=True)
    before = sum(float(to_numpy(loss)) for loss in model.losses)
    shift_scales(model, scale_groups(model).random_factors(np.random.default_rng(0)))
    after = sum(float(to_numpy(loss)) for loss in model.losses)
    assert after == pytest.approx(before, rel=1e-5)


def test_masks_that_keras_passes_by_itself_are_seen():
    class Masked(layers.Layer):
        supports_masking = True

        def call(self, x, mask=None):
            return x if mask is None else x * ops.cast(mask[..., None], x.dtype)

    x = inputs = keras.Input((4,), dtype="int32")
    x = layers.Embedding(5, 3, mask_zero=True)(x)
    x = Masked(name="masked")(x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    assert scale_groups(model).dimension == 1


class WithCache(layers.Layer):
    """Returns `None` besides a tensor, as decoders do where a cache would be."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(4, "relu")

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x), None


class Same(layers.Layer):
    """Makes no weights."""

    def call(self, x):
        return ops.absolute(x)


class Around(layers.Layer):
    """Calls these, of which some are not built, and multiplies an array by the other's.

    As Keras is told the shape, it does not run the code to build the model.
    """

    def __init__(self):
        super().__init__(name="around")
        self.inner, self.same, self.last = WithCache(), Same(), layers.Dense(2)
        self.add, self.concatenate = layers.Add(), layers.Concatenate()

    def build(self, shape):
        self.inner.build(shape)
        self.last.build((shape[0], 8))

    def compute_output_shape(self, shape):
        return shape[0], 2

    def call(self, x):
        y, cache = self.inner(x)
        assert cache is None
        y = self.add([self.same(ops.full((1, 4), 2.0) * y), y])
        return self.last(self.concatenate([y, y]))


def test_calls_are_seen_that_keras_would_not_record():
    around = Around()
    model = keras.Sequential([keras.Input((5,)), around])
    unbuilt = [around.same, around.add, around.concatenate]
    assert not any(layer.built for layer in unbuilt)
    before = [dict(vars(layer)) for layer in unbuilt]
    groups = scale_groups(model)
    assert [vars(layer) for layer in unbuilt] == before
    assert groups.dimension == 1
    parts = [edge.kernel.layer for edge in groups.edges]
    assert parts == [around.inner.dense, around.last]
    outputs = outputs_of(model, X)
    assert balance_scales(model)[0].factor != 1.0
    assert relative_error(outputs_of(model, X), outputs) < 1e-5


class OnlyTrains(keras.Model):
    """Uses a layer in training that inference does not build."""

    def __init__(self):
        super().__init__()
        self.a, self.p, self.b = layers.Dense(4), layers.PReLU(), layers.Dense(2)

    def call(self, x, training=False):
        x = self.a(x)
        return self.b(self.p(x) if training else x)


@pytest.mark.filterwarnings("ignore:.build... was called on layer")
def test_a_layer_that_is_not_built_can_be_built_later():
    model = OnlyTrains()
    model(X)
    for _ in range(2):
        with pytest.raises(ValueError, match="a layer that is not built"):
            scale_groups(model)
    model.p.build((None, 4))
    assert tuple(model(X, training=True).shape) == (6, 2)
    assert scale_groups(model).dimension == 1


class PastKeras(keras.Model):
    """Reads a weight in a way that Keras does not see."""

    def __init__(self):
        super().__init__()
        self.a, self.b = layers.Dense(4), layers.Dense(2)

    def call(self, x):
        x = self.a(x)
        size = ops.mean(ops.absolute(self.a.kernel._value))
        return self.b(size * x)


def test_a_weight_that_is_read_past_keras_is_seen():
    model = PastKeras()
    model(X)
    before = outputs_of(model, X)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            balance_scales(model)
    except ValueError:
        pass  # it may be refused
    assert relative_error(outputs_of(model, X), before) < 1e-5


def test_random_numbers_of_a_layer_of_its_own_are_put_back():
    class Draws(layers.Layer):
        def __init__(self):
            super().__init__()
            self.ours = np.random.default_rng(0), random.Random(0)

        def call(self, x):
            return x * (1.0 + 0.0 * self.ours[0].normal() * self.ours[1].random())

    layer = Draws()
    model = keras.Sequential([keras.Input((5,)), layers.Dense(4), layer])
    states = layer.ours[0].bit_generator.state, layer.ours[1].getstate()
    scale_groups(model)
    assert (layer.ours[0].bit_generator.state, layer.ours[1].getstate()) == states


def test_threads_do_not_disturb_each_other():
    models = [Chain() for _ in range(2)]
    for model in models:
        model(X)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            found = pool.map(lambda model: scale_groups(model).dimension, models)
            assert list(found) == [1, 1]
