import keras
import numpy as np
import pytest
from helpers import BACKEND, norm_of, penalty_of
from keras import layers

from keras_weissi import WEISSI
from keras_weissi.callbacks.norm_reader import make_norm_reader
from keras_weissi.model.kernels import host_pieces, kernels, kernels_and_gammas


def names(model):
    return [kernel.name for kernel in kernels(model)]


def test_flat_model():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, name="conv"),
            layers.BatchNormalization(),
            layers.DepthwiseConv2D(3, name="depthwise"),
            layers.SeparableConv2D(4, 3, name="separable"),
            layers.Flatten(),
            layers.Dense(2, name="dense"),
        ]
    )
    found = kernels(model)
    assert [kernel.name for kernel in found] == [
        "conv",
        "depthwise",
        "separable/depthwise_kernel",
        "separable/pointwise_kernel",
        "dense",
    ]
    assert found[0].layer is model.get_layer("conv")
    assert found[0].variable is model.get_layer("conv").kernel
    assert found[0].regularizer is None


def test_nested_wrapped_and_recurrent_layers():
    inner = keras.Sequential(
        [keras.Input((6, 4)), layers.Conv1D(4, 3, name="conv")], name="inner"
    )
    middle = keras.Sequential(
        [keras.Input((6, 4)), inner, layers.Dense(3, name="dense")], name="middle"
    )
    inputs = keras.Input((6, 4))
    x = middle(inputs)
    x = layers.TimeDistributed(layers.Dense(3, name="each"), name="steps")(x)
    x = layers.Bidirectional(layers.GRU(2, name="gru"), name="both")(x)
    model = keras.Model(inputs, x)
    assert names(model) == [
        "middle/inner/conv",
        "middle/dense",
        "steps/each",
        "both/forward_gru/gru_cell/kernel",
        "both/forward_gru/gru_cell/recurrent_kernel",
        "both/backward_gru/gru_cell/kernel",
        "both/backward_gru/gru_cell/recurrent_kernel",
    ]


def test_attention_has_four_kernels():
    inputs = keras.Input((5, 8))
    model = keras.Model(
        inputs, layers.MultiHeadAttention(2, 4, name="mha")(*[inputs] * 2)
    )
    assert names(model) == [
        "mha/query",
        "mha/key",
        "mha/value",
        "mha/attention_output",
    ]


def test_a_shared_layer_counts_once():
    shared = layers.Dense(4, name="shared")
    inputs = keras.Input((4,))
    inner = keras.Model(inputs, shared(inputs), name="inner")
    model = keras.Model(inputs, shared(inner(shared(inputs))))
    assert len(names(model)) == 1


class Unordinary(keras.Model):
    def __init__(self):
        super().__init__(name="unordinary")
        self.blocks = [layers.Dense(3, name="same"), layers.Dense(3, name="same")]
        self.table = {"odd": layers.Dense(3, name="a:b{c}")}
        self.own = self.add_weight(shape=(3, 3), name="kernel", initializer="ones")
        self.plain = self.add_weight(shape=(3, 3), name="matrix", initializer="ones")
        self.penalized = self.add_weight(
            shape=(3, 3), name="mix", initializer="ones", regularizer=WEISSI()
        )

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return self.table["odd"](x) @ (self.own + self.plain + self.penalized)


def test_names_in_a_subclassed_model_are_unique_and_safe_in_file_names():
    model = Unordinary()
    model(np.ones((1, 3), "float32"))
    found = names(model)
    assert found == ["kernel", "mix", "same", "same_1", "a_b_c_"]
    values = {f"norm/{name}": 1.0 for name in found}
    assert "{norm/a_b_c_:.1f}".format(**values) == "1.0"


class Custom(layers.Layer):
    def __init__(self, mix=None, kernel=None, **kwargs):
        super().__init__(**kwargs)
        self.mix, self.kernel_ = mix, kernel

    def build(self, shape):
        self.add_weight(shape=(4,), name="offset", initializer="ones")
        self.add_weight(shape=(4, 4), name="mix", regularizer=self.mix)
        if self.kernel_:
            self.add_weight(shape=(4, 4), name="kernel", regularizer=self.kernel_)

    def call(self, x):
        return x


@pytest.mark.parametrize("everything", [False, True])
def test_a_kernel_has_one_name_whatever_acts_on_it(everything):
    def named(*stack):
        model = keras.Sequential([keras.Input((4,)), *stack])
        return [kernel.name for kernel in kernels(model, everything)]

    weissi = WEISSI()
    assert named(layers.Dense(4, name="d")) == ["d"]
    with_bias = layers.Dense(4, name="d", bias_regularizer=weissi)
    assert named(with_bias) == ["d", "d/bias"]
    assert named(Custom(weissi, name="c")) == ["c"]
    unnamed = ["c/mix"] if everything else []
    assert named(Custom(None, "l2", name="c")) == [*unnamed, "c"]
    assert named(Custom(weissi, "l2", name="c")) == ["c/mix", "c"]
    lora = layers.Dense(4, name="d", kernel_regularizer=weissi)
    model = keras.Sequential([keras.Input((4,)), lora])
    lora.enable_lora(2)
    assert names(model) == ["d"]


def test_gammas_are_named_with_the_kernels():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(4, name="same"),
            layers.BatchNormalization(name="bn"),
            keras.Sequential([layers.BatchNormalization(name="bn")], name="inner"),
        ]
    )
    found = {kernel.name: kernel for kernel in kernels_and_gammas(model)}
    assert list(found) == ["same", "bn", "inner/bn"]
    assert [k.kind for k in found.values()] == ["kernel", "gamma", "gamma"]
    found["bn"].variable.regularizer = WEISSI()
    assert not found["bn"].is_bare_gamma and found["inner/bn"].is_bare_gamma
    assert [kernel.name for kernel in kernels_and_gammas(model)] == list(found)


def test_an_embedding_counts_only_with_the_regularizer():
    def model(regularizer):
        embedding = layers.Embedding(5, 3, embeddings_regularizer=regularizer)
        return keras.Sequential([keras.Input((2,)), embedding])

    assert names(model("l2")) == []
    assert len(names(model(WEISSI()))) == 1


@pytest.mark.parametrize("regularizer", [None, WEISSI()])
def test_lora_factors_are_no_kernels_of_their_own(regularizer):
    dense = layers.Dense(4, name="dense", kernel_regularizer=regularizer)
    model = keras.Sequential([keras.Input((4,)), dense])
    dense.enable_lora(2)
    found = kernels(model)
    assert [kernel.name for kernel in found] == ["dense"]
    assert any(found[0].variable is variable for variable in dense.weights)


@pytest.fixture
def mixed():
    """A model with every sort of weight penalty, and one frozen layer."""
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(16, kernel_regularizer=WEISSI(0.1), name="log"),
            layers.Dense(16, kernel_regularizer=WEISSI(0.1, 0.01), name="both"),
            layers.Dense(4, kernel_regularizer=WEISSI(0.2, 0.01), name="other"),
            layers.Dense(
                8, kernel_regularizer="l1", bias_regularizer="l2", name="keras"
            ),
            layers.Dense(8, name="plain"),
            layers.Dense(8, kernel_regularizer=WEISSI(0.5), name="frozen"),
        ]
    )
    model.get_layer("frozen").trainable = False
    model.get_layer("keras").bias.assign(np.arange(8.0))
    return model


def test_reader_agrees_with_numpy_and_with_keras(mixed):
    watched = kernels(mixed)
    values, penalty = make_norm_reader(watched, mixed)()
    assert values.dtype == "float64"
    expected = [norm_of(kernel.variable) for kernel in watched]
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert penalty == pytest.approx(penalty_of(mixed), rel=1e-5)


class Doubled(WEISSI):
    def __call__(self, x):
        return 2 * super().__call__(x)


def test_reader_leaves_a_subclass_its_own_formula():
    dense = layers.Dense(4, kernel_regularizer=Doubled(0.1))
    model = keras.Sequential([keras.Input((4,)), dense])
    _, penalty = make_norm_reader(kernels(model), model)()
    assert penalty == pytest.approx(0.2 * np.log(norm_of(dense.kernel)), rel=1e-5)


def test_reader_sees_new_values(mixed):
    read = make_norm_reader(kernels(mixed), mixed)
    before, _ = read()
    kernel = mixed.get_layer("log").kernel
    kernel.assign(3 * kernel)
    after, _ = read()
    assert after[0] == pytest.approx(3 * before[0], rel=1e-6)
    np.testing.assert_array_equal(after[1:], before[1:])


@pytest.mark.parametrize("shape", [(2048, 2048), (3, 3, 64, 64), (3, 3, 32, 1)])
def test_norms_of_large_kernels_are_accurate(shape):
    layer = keras.layers.Layer()
    layer.built = True
    kernel = layer.add_weight(
        shape=shape, name="kernel", initializer=keras.initializers.RandomNormal(1.0)
    )
    (value,), _ = make_norm_reader(kernels(layer), layer)()
    assert value == pytest.approx(norm_of(kernel), rel=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_norms_of_other_dtypes(dtype):
    if dtype == "float64" and BACKEND == "jax":
        pytest.skip("JAX holds float64 variables as float32 by default")
    dense = layers.Dense(400, dtype=dtype, kernel_regularizer=WEISSI(0.1, 0.01))
    model = keras.Sequential([keras.Input((400,), dtype=dtype), dense])
    dense.kernel.assign(keras.ops.ones((400, 400), dtype) * 3)
    (value,), penalty = make_norm_reader(kernels(model), model)()
    assert value == pytest.approx(1200, rel=1e-6)  # its square overflows float16
    assert penalty == pytest.approx(0.1 * np.log(1200) + 0.01 * 400, rel=1e-6)


@pytest.mark.parametrize("shape", [(7, 5), (3, 40), (40,), (4, 2, 2), (16, 1), ()])
def test_pieces_are_the_whole(monkeypatch, shape):
    monkeypatch.setattr("keras_weissi.model.kernels.PIECE", 16)
    value = np.arange(np.prod(shape), dtype="float32").reshape(shape)
    pieces = list(host_pieces(keras.Variable(value)))
    assert (len(pieces) > 1) == (value.size > 16)
    if value.size > 16:
        pieces = [np.concatenate(pieces)]
    np.testing.assert_array_equal(pieces[0], value)
