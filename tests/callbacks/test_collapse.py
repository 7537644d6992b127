"""The coefficient above which a classifier must collapse."""

import warnings

import keras
import numpy as np
import pytest
from helpers import norm_of
from keras import layers
from scipy.optimize import minimize

from keras_weissi import WEISSI, NormLogger, largest_log_norm
from keras_weissi.callbacks.collapse import last_kernel


def pull(z, label=0):
    """What one row contributes to `-sum(K * dL/dK)`, without a bias, by hand."""
    p = np.exp(z - z.max())
    p /= p.sum()
    return z[label] - p @ z


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_it_is_the_maximum_of_the_formula(classes):
    x = np.linspace(0, 20, 2_000_001)
    values = x * (classes - 1) / (classes - 1 + np.exp(x))
    assert abs(largest_log_norm(classes) - values.max()) < 1e-9


def test_the_values_in_the_documentation():
    documented = {2: 0.278, 10: 1.10, 1000: 4.42}
    for classes, value in documented.items():
        assert abs(largest_log_norm(classes) / value - 1) < 2e-3


@pytest.mark.parametrize("classes", [2, 5])
def test_no_logits_pull_harder(classes):
    rng = np.random.default_rng(0)
    best = max(
        -minimize(lambda z: -pull(z), rng.normal(size=classes) * 3, tol=1e-12).fun
        for _ in range(20)
    )
    assert abs(best - largest_log_norm(classes)) < 1e-8


def test_a_kernel_holds_out_below_and_collapses_above():
    for part, stands in ((0.95, True), (1.2, False)):
        weissi = WEISSI(part * largest_log_norm(3), min_norm=0.5)
        dense = layers.Dense(3, kernel_regularizer=weissi)
        model = keras.Sequential([keras.Input((3,)), dense])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.5), loss)
        dense.kernel.assign(2.0 * np.eye(3))  # past the margin of the hardest pull
        x, y = np.eye(3, dtype="float32"), np.arange(3)
        for _ in range(300):
            model.train_on_batch(x, y)
        assert (norm_of(dense.kernel) > 2.0) == stands
        assert (norm_of(dense.kernel) < weissi.min_norm) != stands


@pytest.mark.parametrize("classes", [1, 0, -3, 2.0, True, None, "10", 10**400])
def test_bad_classes(classes):
    with pytest.raises(ValueError, match="`classes`. Expected an int of at least 2"):
        largest_log_norm(classes)


def classifier(outputs=10, activation=None, loss="sparse_categorical_crossentropy"):
    last = layers.Dense(outputs, activation, name="last")
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4, "relu"), last])
    model.compile("sgd", loss)
    return model, last


@pytest.mark.parametrize(
    "outputs, activation, loss, classes",
    [
        (10, None, keras.losses.SparseCategoricalCrossentropy(from_logits=True), 10),
        (10, "softmax", "sparse_categorical_crossentropy", 10),
        (3, "softmax", "categorical_crossentropy", 3),
        (3, "softmax", "CategoricalCrossentropy", 3),
        (3, "softmax", keras.losses.categorical_crossentropy, 3),
        (1, "sigmoid", "binary_crossentropy", 2),
        (5, "sigmoid", keras.losses.BinaryCrossentropy(), 2),
        (10, "softmax", "mse", None),
        (10, "relu", "sparse_categorical_crossentropy", None),
        (10, "sigmoid", "sparse_categorical_crossentropy", None),
        (1, "softmax", "categorical_crossentropy", None),
        (10, None, "sparse_categorical_crossentropy", None),
        (10, "softmax", "crossentropy", None),
        (10, "softmax", ["sparse_categorical_crossentropy"], 10),
        (10, "softmax", {"last": "mse", "other": "mse"}, None),
        (10, None, [keras.losses.CategoricalCrossentropy(from_logits=True)], 10),
        (10, "softmax", {"last": "sparse_categorical_crossentropy"}, 10),
        (10, "softmax", lambda y_true, y_pred: 0.0 * y_pred, None),
        (10, "softmax", keras.losses.CategoricalCrossentropy(axis=1), None),
        (10, "softmax", keras.losses.CategoricalCrossentropy(from_logits=True), None),
        (
            10,
            "softmax",
            keras.losses.SparseCategoricalCrossentropy(reduction="sum"),
            None,
        ),
    ],
)
def test_the_last_kernel_of_a_classifier(outputs, activation, loss, classes):
    model, last = classifier(outputs, activation, loss)
    expected = None if classes is None else (last.kernel, classes)
    assert last_kernel(model) == expected


def test_the_last_kernel_behind_activations_and_inside_of_models():
    logits = layers.Conv2D(7, 1, name="logits")
    inner = keras.Sequential([keras.Input((4, 4, 2)), layers.ReLU(), logits])
    inputs = keras.Input((4, 4, 2))
    outputs = layers.Softmax()(layers.Activation("linear")(inner(inputs)))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "sparse_categorical_crossentropy")
    assert last_kernel(model) == (logits.kernel, 7)


def test_models_of_which_it_is_not_known():
    inputs = keras.Input((4,))
    heads = [layers.Dense(2)(inputs), layers.Dense(2)(inputs)]
    shared = layers.Dense(4, "softmax")
    channels = keras.Input((3, 4))
    relu = layers.ReLU()(layers.Dense(2)(inputs))
    activation = layers.Activation("relu")(layers.Dense(2)(inputs))

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    subclassed = Subclassed()
    subclassed(keras.ops.ones((1, 4)))
    same = keras.Model(inputs, inputs)
    for model in (
        keras.Model(inputs, heads),
        keras.Model(inputs, relu),
        keras.Model(inputs, activation),
        keras.Model(inputs, layers.Softmax()(layers.Dense(2, "softmax")(inputs))),
        keras.Model(inputs, layers.Activation("sigmoid")(layers.Dense(2)(inputs))),
        keras.Model(inputs, shared(shared(inputs))),
        keras.Model(channels, layers.Softmax(axis=1)(layers.Dense(2)(channels))),
        subclassed,
        same,
    ):
        assert last_kernel(model) is None  # not compiled
        model.compile("sgd", "sparse_categorical_crossentropy")
        assert last_kernel(model) is None


def warnings_of(part, trainable=True, loss="sparse_categorical_crossentropy"):
    model, last = classifier(10, "softmax", loss)
    weissi = WEISSI(part * largest_log_norm(10))
    last.kernel.regularizer = last.kernel_regularizer = weissi
    last.trainable = trainable
    model.compile(keras.optimizers.SGD(1e-6), loss)
    x, y = np.ones((8, 4), "float32"), np.arange(8)
    y = np.eye(10)[y] if loss == "mse" else y
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        logger = NormLogger()
        for _ in range(2):
            model.fit(x, y, epochs=2, verbose=0, callbacks=[logger])
    return [str(w.message) for w in caught if "largest_log_norm" in str(w.message)]


def test_the_logger_warns_of_a_coefficient_that_is_too_large():
    (message,) = warnings_of(2.0)
    assert "log_norm=2.20201 of kernel 'last' is 200% of `keras_w" in message
    assert "largest_log_norm(10)`, 1.1, above which its norm must fall" in message
    assert "must fall to min_norm=0.1. Start with a tenth, 0.11. (`sam" in message
    assert "(`sample_weight`, `class_weight` and `loss_weights` scale" in message
    (message,) = warnings_of(0.7)
    assert "70%" in message and "Networks have collapsed at such values" in message


def test_the_logger_does_not_warn_without_a_reason():
    assert warnings_of(0.49) == []
    assert warnings_of(2.0, trainable=False) == []
    assert warnings_of(2.0, loss="mse") == []
