"""What Keras does not publish is still there, and is what it was."""

import gc
import random
import weakref

import keras
import numpy as np
import pytest
from keras import layers

from keras_weissi._utils import keras_private


def test_sublayers_are_those_right_inside():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="deep")])
    wrapped = layers.TimeDistributed(layers.Dense(2, name="wrapped"))
    model = keras.Sequential([inner, layers.Reshape((2, 2)), wrapped])
    model.build((None, 4))
    assert inner in keras_private.sublayers(
        model
    ) and wrapped in keras_private.sublayers(model)
    assert [layer.name for layer in keras_private.sublayers(wrapped)] == ["wrapped"]


def test_calls_come_after_those_they_need():
    inputs = keras.Input((4,))
    one = layers.Dense(4, name="one")
    two = layers.Dense(4, name="two")
    model = keras.Model(inputs, two(one(inputs)))
    names = [node.operation.name for node in keras_private.nodes_of(model)]
    assert names[-2:] == ["one", "two"]
    node = keras_private.nodes_of(model)[-1]
    assert node.output_tensors[0] is model.outputs[0]


def test_inputs_are_arranged_as_given():
    a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b")
    model = keras.Model({"a": a, "b": b}, layers.Add()([a, b]))
    assert set(keras_private.inputs_struct(model)) == {"a", "b"}


def test_a_sequential_has_a_functional_once_it_is_built():
    model = keras.Sequential([layers.Dense(2)])
    assert keras_private.functional_of(model) is None
    model.build((None, 4))
    assert isinstance(keras_private.functional_of(model), keras.Function)


@pytest.mark.parametrize(
    "optimizer, name",
    [
        ("SGD", "momentums"),
        ("Adam", "velocities"),
        ("Adamax", "u"),
        ("Lamb", "momentums"),
    ],
)
def test_slots_are_in_the_order_of_the_variables(optimizer, name):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2), layers.Dense(5)])
    arguments = {"momentum": 0.9} if optimizer == "SGD" else {}
    optimizer = getattr(keras.optimizers, optimizer)(**arguments)
    optimizer.build(model.trainable_variables)
    trained = keras_private.trained_by(optimizer)
    assert [id(v) for v in trained] == [id(v) for v in model.trainable_variables]
    shapes = [
        tuple(slot.shape) for slot in keras_private.state_by_name(optimizer, name)
    ]
    assert shapes == [(3, 2), (2,), (2, 5), (5,)]
    assert not keras_private.state_by_name(optimizer, "nothing_of_the_kind")


def test_weights_that_are_trained_are_told_from_others():
    layer = layers.BatchNormalization()
    layer.build((None, 4))
    layer.trainable = False
    names = [weight.name for weight in keras_private.made_trainable(layer)]
    assert names == ["gamma", "beta"]


def test_layers_made_for_a_look_leave_no_traces():
    layers.Dense(1)
    number = int(layers.Dense(1).name.rpartition("_")[2])
    seeds = random.getstate()
    with keras_private.leaving_no_traces():
        with keras.StatelessScope(initialize_variables=False):
            layer = layers.Dense(4)
            layer.build((None, 4))
        made = weakref.ref(layer.kernel)
    assert random.getstate() == seeds
    assert layers.Dense(1).name == f"dense_{number + 1}"
    del layer
    gc.collect()
    assert made() is None


def test_the_model_of_a_callback_in_training():
    found = []

    class Looks(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            found.append(keras_private.model_in_training(self))

    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(np.ones((2, 3)), np.ones((2, 1)), verbose=0, callbacks=[Looks()])
    assert found == [model]


def test_an_attention_layer_makes_its_layers_from_an_argument():
    for kind in (layers.MultiHeadAttention, layers.GroupQueryAttention):
        sizes = {"num_heads": 2, "key_dim": 2}
        if kind is layers.GroupQueryAttention:
            sizes = {"num_query_heads": 2, "num_key_value_heads": 1, "head_dim": 2}
        layer = kind(**sizes, kernel_regularizer="l2")
        names = keras_private.regularizer_attributes(layer)
        assert names
        assert all(isinstance(getattr(layer, n), keras.regularizers.L2) for n in names)


def test_a_layer_keeps_its_regularizers_by_name():
    layer = layers.MultiHeadAttention(2, 2, kernel_regularizer="l2")
    kept = keras_private.regularizers_kept_by(layer)
    assert isinstance(kept["_kernel_regularizer"], keras.regularizers.L2)
    assert kept["_bias_regularizer"] is None


def test_a_bar_that_was_in_a_fit_draws_again():
    bar = keras.callbacks.ProgbarLogger()
    bar.on_train_begin()
    keras_private.leave_fit(bar)
    bar.on_test_begin()
    assert bar.progbar is not None


def test_masks_are_attached_to_tensors():
    masked = layers.Masking()(keras.Input((3, 4)))
    assert keras_private.mask_of(masked).shape == (None, 3)
    tensor = keras.ops.ones((2, 3, 4))
    assert keras_private.mask_of(tensor) is None
    keras_private.set_mask(tensor, "mask")
    assert keras_private.mask_of(tensor) == "mask"


def test_calls_are_recorded_that_keras_refuses():
    class WithCache(layers.Layer):
        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape, x.dtype), None

        def call(self, x):
            return x, None

    x = keras.Input((3,))
    array = keras.ops.ones((1, 3))
    with keras_private.recording_with_non_symbols():
        y, cache = WithCache()(x)
        assert cache is None
        assert (array * y).shape == (None, 3)
    assert keras.Function(x, y).outputs == [y]
    with pytest.raises(ValueError, match="must be tensors"):
        WithCache()(x)
    if keras.backend.backend() == "jax":
        with pytest.raises(ValueError, match="JAX function"):
            array * y
