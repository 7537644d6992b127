"""Layers that do something else than they show are found out by trying them."""

import functools

import keras
import numpy as np
import pytest
from helpers import outputs_of, relative_error, weights_of
from keras import layers, ops

from keras_weissi import (
    WEISSI,
    balance_scales,
    norm_table,
    regularize,
    scale_groups,
)
from keras_weissi.symmetry import Relation, check_scaling, register_scaling

X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")


class Switched(layers.Layer):
    """Depends on a flag of Python, which what records its call sets."""

    flag = False

    def compute_output_shape(self, shape):
        return shape

    def call(self, x):
        self.flag = self.flag or isinstance(x, keras.KerasTensor)
        return ops.relu(x) if self.flag else ops.tanh(x)


class OnlySymbolic(layers.Layer):
    """Does something else to a `keras.KerasTensor`."""

    def compute_output_shape(self, shape):
        return shape

    def call(self, x):
        if isinstance(x, keras.KerasTensor):
            return ops.relu(x)
        return ops.sigmoid(x)


class OnlyInTraining(layers.Layer):
    """Is homogeneous at inference, but not in training."""

    def compute_output_shape(self, shape):
        return shape

    def call(self, x, training=None):
        if training and not isinstance(x, keras.KerasTensor):
            return ops.relu(x) + 1.0
        return ops.relu(x)


class Holder(layers.Layer):
    """A custom layer around another one."""

    def __init__(self, layer, **kwargs):
        super().__init__(**kwargs)
        self.layer = layer

    def call(self, x, training=None):
        return self.layer(ops.relu(x), training=training)


class Chain(keras.Model):
    """A subclassed model of layers one after the other."""

    def __init__(self, parts, **kwargs):
        super().__init__(**kwargs)
        self.parts = parts

    def call(self, x, training=None):
        for part in self.parts:
            x = part(x)
        return x


def dense(name, activation="relu"):
    return layers.Dense(4, activation, name=name, kernel_initializer="he_normal")


def chain(*between):
    """Four layers, with something between the second and the third."""
    return [dense("a"), dense("b"), *between, dense("c"), dense("d", None)]


def sequential(*between):
    return keras.Sequential([keras.Input((4,)), *chain(*between)])


def subclassed(*between):
    model = Chain(chain(*between))
    model(X)
    return model


def inside_a_layer(layer):
    return sequential(Holder(layer, name="holder"))


def inside_a_model(layer):
    return sequential(Chain([layers.ReLU(), layer], name="inner"))


PLACES = [sequential, inside_a_layer, inside_a_model, subclassed]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("layer_class", [Switched, OnlySymbolic, OnlyInTraining])
def test_a_layer_whose_graph_is_untrue_is_found_out(place, layer_class):
    model = place(layer_class(name="liar"))
    for position, v in enumerate(v for v in model.weights if "kernel" in v.path):
        v.assign(v * 4.0**position)
    modes = (False, True)
    before = [outputs_of(model, X, training) for training in modes]
    with pytest.warns(
        UserWarning, match=f"'[a-z_/0-9]*liar' of class {layer_class.__name__}"
    ):
        report = balance_scales(model)
    for one, training in zip(before, modes, strict=True):
        assert relative_error(outputs_of(model, X, training), one) < 1e-5
    shifted = {row.name.split("/")[-1]: row.factor != 1.0 for row in report}
    assert shifted == dict.fromkeys("abcd", True)
    with pytest.warns(UserWarning, match="liar"):
        groups = scale_groups(model)
    assert groups.dimension == 2  # between a and b, and between c and d
    with pytest.raises(ValueError, match=f"'liar'.*of class {layer_class.__name__}"):
        check_scaling(model)


@pytest.mark.parametrize("place", PLACES)
def test_what_is_true_is_not_suspected(place):
    model = place(Holder(layers.ReLU()))
    assert scale_groups(model).dimension == 3
    check_scaling(model)


class Declared(layers.Layer):
    """A layer whose scaling is declared."""

    def call(self, x):
        return ops.tanh(x)


@pytest.mark.parametrize("place", PLACES)
def test_a_declaration_that_contradicts_its_layer_is_refused(place):
    model = place(Declared(name="mine"))
    weights = weights_of(model)
    register_scaling(Declared, lambda f, x, y: [Relation.keep(y[0], x[0])])
    try:
        expected = "Invalid scaling registered for Declared.*'[a-z_/0-9]*mine'"
        penalize = functools.partial(regularize, regularizer=WEISSI(0.01))
        for function in (scale_groups, balance_scales, penalize, norm_table):
            with pytest.raises(ValueError, match=expected):
                function(model)
        with pytest.raises(ValueError, match="mine.*, of class Declared"):
            check_scaling(model)
    finally:
        register_scaling(Declared, None)
    for one, other in zip(weights, weights_of(model), strict=True):
        np.testing.assert_array_equal(one, other)
    assert scale_groups(model).dimension == 2
    check_scaling(model)


class OnlySymbolicallyNormalized(layers.Layer):
    """Shows a normalization that it does not do."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.normalization = layers.BatchNormalization()

    def build(self, shape):
        self.normalization.build(shape)

    def call(self, x):
        return self.normalization(x) if isinstance(x, keras.KerasTensor) else x


def test_what_is_not_normalized_is_not_left_out():
    liar = OnlySymbolicallyNormalized(name="liar")
    model = keras.Sequential(
        [keras.Input((4,)), dense("a", None), liar, dense("b", None)]
    )
    for change in (
        lambda: regularize(model, WEISSI(0.01)),
        lambda: regularize(model, WEISSI(0.01), invariant=True),
    ):
        with pytest.warns(UserWarning, match="through layer 'liar'"):
            report = change()
        assert [bool(row.regularizer) for row in report] == [True, True]
        assert "normalized" not in report[0].scale
