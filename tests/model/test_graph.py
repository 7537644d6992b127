import keras
import networks
import numpy as np
import pytest
from helpers import to_numpy
from keras import layers, ops

from keras_weissi import balance_scales
from keras_weissi.model.graph import Graph
from keras_weissi.model.kernels import kernels


def normalization_of(model, layer):
    (kernel,) = [k for k in kernels(model) if k.layer is layer]
    return Graph(model).normalization_of(kernel)


def base():
    inputs = keras.Input((4,))
    x = layers.Dense(4, name="dense")(inputs)
    return keras.Model(inputs, layers.BatchNormalization(name="bn")(x), name="base")


@pytest.mark.parametrize("how", ["layer", "model", "call", "nested call"])
def test_a_batch_normalization_in_inference_mode_normalizes_nothing(how):
    inner = base()
    assert normalization_of(inner, inner.get_layer("dense")) == "bn"
    x = inputs = keras.Input((4,))
    if how == "layer":
        inner.get_layer("bn").trainable = False
    if how == "model":
        inner.trainable = False
    if how == "call":
        dense = layers.Dense(4)
        x = layers.BatchNormalization()(dense(x), training=False)
        assert normalization_of(keras.Model(inputs, x), dense) is None
    mode = {"training": False} if how == "nested call" else {}
    model = keras.Model(inputs, layers.Dense(2)(inner(x, **mode)))
    found = normalization_of(model, inner.get_layer("dense"))
    assert found == ("bn" if how == "call" else None)


def test_one_call_that_normalizes_is_enough():
    inner, inputs = base(), keras.Input((4,))
    model = keras.Model(inputs, [inner(inputs, training=False), inner(inputs)])
    assert normalization_of(model, inner.get_layer("dense")) == "bn"


def test_other_normalizations_work_frozen_too():
    dense = layers.Dense(4)
    norm = layers.LayerNormalization(trainable=False, name="ln")
    model = keras.Sequential([keras.Input((4,)), dense, norm])
    assert normalization_of(model, dense) == "ln"


def with_another_call(layer):
    """The layer, which now does something else than its class."""
    before = layer.call
    layer.call = lambda x, training=None, mask=None: ops.tanh(before(x))
    return layer


def with_another_convolution():
    layer = layers.Conv2D(4, 1)
    layer.convolution_op = lambda x, kernel: ops.tanh(ops.conv(x, kernel))
    return layer


def functional():
    inputs = keras.Input((3, 3, 4))
    return inputs, layers.Dense(4)(inputs)


def sequential():
    return keras.Sequential([keras.Input((3, 3, 4)), layers.Dense(4)])


@pytest.mark.parametrize(
    "make",
    [
        lambda: with_another_call(layers.Dense(4)),
        lambda: with_another_call(sequential()),
        lambda: with_another_call(keras.Model(*functional())),
        lambda: with_another_call(layers.TimeDistributed(layers.Dense(4))),
        lambda: layers.TimeDistributed(with_another_call(layers.Dense(4))),
        with_another_convolution,
    ],
    ids=["layer", "Sequential", "Functional", "wrapper", "wrapped", "convolution"],
)
def test_no_scale_goes_through_a_method_that_is_replaced_on_one_layer(make):
    stack = [layers.Dense(4, name="a"), make(), layers.Dense(4), layers.Dense(2)]
    model = keras.Sequential([keras.Input((3, 3, 4)), *stack])
    networks.randomize(model)
    x = np.random.default_rng(0).normal(size=(2, 3, 3, 4)).astype("float32")
    before = to_numpy(model(x))
    balance_scales(model)
    np.testing.assert_allclose(to_numpy(model(x)), before, rtol=1e-4, atol=1e-5)


def test_what_a_replaced_call_does_is_not_shown():
    dense, norm = layers.Dense(4), with_another_call(layers.BatchNormalization())
    model = keras.Sequential([keras.Input((4,)), dense, norm])
    assert normalization_of(model, dense) == "?"
    model = base()
    dense = with_another_call(model.get_layer("dense"))
    assert normalization_of(model, dense) == "?"
    nested = with_another_call(base())
    model = keras.Sequential([keras.Input((4,)), nested])
    assert normalization_of(model, nested.get_layer("dense")) == "?"
