"""Networks that start unbalanced learn slowly, unless they are balanced first."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_weissi import ScaleBalancer, shift_scales

CLASSES, WIDTH = 10, 16
NAMES = ["a", "b", "c", "d"]


def make_data(rows=1024):
    """Ten classes that a random network tells apart."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2 * rows, WIDTH)).astype("float32")
    hidden = np.maximum(x @ rng.normal(size=(WIDTH, 32)), 0)
    y = (hidden @ rng.normal(size=(32, CLASSES))).argmax(axis=1)
    return (x[:rows], y[:rows]), (x[rows:], y[rows:])


def accuracy_of(*callbacks, is_shifted):
    keras.utils.set_random_seed(0)
    kwargs = {"kernel_regularizer": keras.regularizers.L2(1e-3)}
    model = keras.Sequential([keras.Input((WIDTH,))])
    for name in NAMES[:-1]:
        model.add(layers.Dense(48, "relu", name=name, **kwargs))
    model.add(layers.Dense(CLASSES, name=NAMES[-1], **kwargs))
    if is_shifted:
        shift_scales(model, dict(zip(NAMES, [16, 1 / 16, 16, 1 / 16], strict=True)))
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    train, test = make_data()
    model.fit(*train, 64, epochs=12, verbose=0, callbacks=list(callbacks))
    return model.evaluate(*test, batch_size=1024, verbose=0)[1]


def test_the_balancer_makes_up_for_an_unbalanced_start():
    balanced = accuracy_of(ScaleBalancer(), is_shifted=False)
    rescued = accuracy_of(ScaleBalancer(), is_shifted=True)
    plain = accuracy_of(is_shifted=True)
    late = accuracy_of(ScaleBalancer(start=False), is_shifted=True)
    assert balanced > 0.6
    assert rescued == pytest.approx(balanced, abs=0.01)
    assert max(plain, late) < balanced - 0.05
