import keras
import pytest
from keras import layers

from keras_weissi.model.graph import Graph


def normalization_of(model, layer):
    return Graph(model).normalization_of(layer, ())


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
