"""Saving and loading: the same model comes back, also in a process of its own."""

import json

import keras
import numpy as np
import pytest
from helpers import penalty_of, run_python
from keras import layers

from keras_weissi import WEISSI

X = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(8, "relu", kernel_regularizer=WEISSI(0.1, 0.01, 0.2)),
            layers.Dense(1, kernel_regularizer=WEISSI(0.2)),
        ]
    )
    # As an object: Keras 3.15 does not find the name again in an HDF5 file.
    model.compile("adam", keras.losses.MeanSquaredError())
    model.fit(X, X[:, :1], epochs=2, verbose=0)
    return model


def assert_same(restored, model):
    assert len(restored.losses) == len(model.losses) == 2
    for a, b in zip(restored.layers, model.layers, strict=True):
        assert type(a.kernel_regularizer) is WEISSI
        assert vars(a.kernel.regularizer) == vars(b.kernel_regularizer)
    np.testing.assert_array_equal(
        restored.predict(X, verbose=0), model.predict(X, verbose=0)
    )
    assert penalty_of(restored) == penalty_of(model)


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")
def test_files(model, suffix, tmp_path):
    path = tmp_path / f"model.{suffix}"
    model.save(path)
    restored = keras.models.load_model(path)
    assert_same(restored, model)
    trained_on = keras.models.load_model(path)
    if suffix == "h5":  # Keras cannot go on with the optimizer of an HDF5 file
        trained_on.compile("adam", "mse")
    trained_on.fit(X, X[:, :1], verbose=0)
    if suffix == "h5":  # which keeps no optimizer state before the first step
        return
    for a, b in zip(
        restored.optimizer.variables, model.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b)
        )


def test_clone_and_json(model):
    for copy in (
        keras.models.clone_model(model),
        keras.models.model_from_json(json.dumps(json.loads(model.to_json()))),
    ):
        copy.set_weights(model.get_weights())
        assert_same(copy, model)


def test_a_new_process_needs_the_import_alone(model, tmp_path):
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", X)
    program = """
import keras, json, sys, numpy as np
folder = sys.argv[1]
try:
    keras.models.load_model(folder + "/model.keras")
except Exception as error:
    print(json.dumps(str(error)))
import keras_weissi
model = keras.models.load_model(folder + "/model.keras")
x = np.load(folder + "/x.npy")
np.save(folder + "/predictions.npy", model.predict(x, verbose=0))
print(json.dumps([float(keras.ops.convert_to_numpy(loss)) for loss in model.losses]))
model.fit(x, x[:, :1], verbose=0)
"""
    result = run_python("-c", program, tmp_path)
    assert result.returncode == 0, result.stderr
    # Without the import, the error names the class.
    error, losses = map(json.loads, result.stdout.splitlines())
    assert "WEISSI" in error
    assert sum(losses) == pytest.approx(penalty_of(model), rel=1e-6)
    # Sums may be split over threads in another way there.
    np.testing.assert_allclose(
        np.load(tmp_path / "predictions.npy"), model.predict(X, verbose=0), rtol=1e-5
    )
