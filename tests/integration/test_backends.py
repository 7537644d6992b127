"""All backends that are installed compute the same, each in a process of its own."""

import importlib.util
import json

import keras
import numpy as np
import pytest
from helpers import ROOT, numeric_gradient, reference_penalty, run_python
from keras import layers

from keras_weissi import WEISSI

BACKENDS = [b for b in ("tensorflow", "jax", "torch") if importlib.util.find_spec(b)]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(len(BACKENDS) < 2, reason="needs two backends"),
]
SHAPES = [(), (7,), (4, 5), (3, 1, 4), (3, 3, 2, 5), (2, 1, 3, 1, 2)]
# The norm, in units of the floor, and the two coefficients.
REGIMES = {
    "zero": (0.0, 0.3, 0.2),
    "far below": (1e-3, 0.3, 0.2),
    "below": (0.9, 0.3, 0.2),
    "at": (1.0, 0.3, 0.0),
    "just above": (1.001, 0.3, 0.2),
    "log": (50.0, 0.3, 0.0),
    "direction": (50.0, 0.0, 0.2),
    "both": (70.0, 0.3, 0.2),
    "large": (1e9, 0.3, 0.2),
}
# Two shapes in each regime, and every shape three times.
KERNELS = [
    (regime, SHAPES[(2 * i + j) % len(SHAPES)])
    for i, regime in enumerate(REGIMES)
    for j in range(2)
]
MIN_NORM = 0.1
PROGRAM = """
import json, sys
import keras, numpy as np
from helpers import float64, value_and_gradient
from keras_weissi import WEISSI, norm_table

folder = sys.argv[1]
assert keras.backend.backend() == sys.argv[2]
kernels = np.load(folder + "/kernels.npz")
arguments = json.load(open(folder + "/arguments.json"))
results = {}
for name, w in kernels.items():
    regularizer = WEISSI(*arguments[name])
    if w.dtype == "float64":
        with float64():
            value, gradient = value_and_gradient(regularizer, w)
    else:
        value, gradient = value_and_gradient(regularizer, w)
    assert value.dtype == gradient.dtype == w.dtype, name
    results[name + "/value"], results[name + "/gradient"] = value, gradient
model = keras.models.load_model(folder + "/model.keras")
for row in norm_table(model, print_fn=None):
    results["norm/" + row.name] = row.norm
np.savez(sys.argv[2] + ".npz", **results)
"""


def make_model():
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(3, 3, kernel_regularizer=WEISSI(), name="conv"),
            layers.BatchNormalization(name="bn"),
            layers.SeparableConv2D(4, 2, name="separable"),
            layers.Reshape((9, 4)),
            layers.LSTM(5, name="lstm"),
            layers.Dense(3, name="out"),
        ]
    )


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """What goes in and, for each backend, what comes out."""
    folder = tmp_path_factory.mktemp("backends")
    rng = np.random.default_rng(0)
    kernels, arguments = {}, {}
    for number, (regime, shape) in enumerate(KERNELS):
        norm, *coefficients = REGIMES[regime]
        w = rng.normal(size=shape)
        w = np.asarray(w * norm * MIN_NORM / np.sqrt(np.sum(w * w)))
        for dtype in ("float32", "float64"):
            name = f"{number} {regime} {shape} {dtype}"
            kernels[name] = w.astype(dtype)
            arguments[name] = (*coefficients, MIN_NORM)
    np.savez(folder / "kernels.npz", **kernels)
    (folder / "arguments.json").write_text(json.dumps(arguments))
    keras.utils.set_random_seed(0)
    model = make_model()
    model.save(folder / "model.keras")
    norms = {}
    for layer in model.layers:
        for variable in layer.weights:
            if "kernel" in variable.name:
                w = keras.ops.convert_to_numpy(variable.value).astype("float64")
                norms[variable.path] = np.sqrt(np.sum(w * w))
    results = {}
    for backend in BACKENDS:
        path = f"{ROOT / 'tests'}:{ROOT}"
        run = run_python(
            "-c",
            PROGRAM,
            folder,
            backend,
            cwd=folder,
            KERAS_BACKEND=backend,
            PYTHONPATH=path,
        )
        assert run.returncode == 0, run.stderr
        results[backend] = dict(np.load(folder / f"{backend}.npz"))
    return kernels, arguments, norms, results


def difference(actual, expected, scale=0.0):
    """The largest difference, over the largest element or, if that is more, `scale`."""
    size = max(np.abs(expected).max(), scale)
    return 0.0 if size == 0.0 else np.abs(actual - expected).max() / size


def scales(name, w, log_norm, direction_l1, min_norm):
    """The sizes of the terms whose sums the value and the gradient are."""
    norm = max(np.sqrt(np.sum(np.square(w, dtype="float64"))), min_norm)
    largest = np.abs(w).max()
    value = log_norm * abs(np.log(norm)) + direction_l1 * np.abs(w).sum() / norm
    gradient = log_norm * largest / norm**2
    gradient += direction_l1 * (np.abs(w).sum() * largest / norm**3 + 1 / norm)
    return value, gradient


def test_values_and_gradients_agree_on_all_backends(computed):
    """float32 too: relative to the terms of the sum, where these cancel."""
    kernels, arguments, _, results = computed
    first, *others = results.values()
    for name, w in kernels.items():
        tolerance = 1e-12 if w.dtype == "float64" else 1e-6
        for what, scale in zip(
            ("value", "gradient"), scales(name, w, *arguments[name]), strict=True
        ):
            key = f"{name}/{what}"
            for other in others:
                assert difference(other[key], first[key], scale) < tolerance, key


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_gradients_are_those_of_numpy(backend, computed):
    kernels, arguments, _, results = computed
    for name, w in kernels.items():
        value, gradient = scales(name, w, *arguments[name])
        tolerance = 1e-12 if w.dtype == "float64" else 1e-6
        expected = reference_penalty(w, *arguments[name])
        actual = results[backend][f"{name}/value"]
        assert difference(actual, expected, value) < tolerance, name
        if not w.any():
            np.testing.assert_array_equal(results[backend][f"{name}/gradient"], 0.0)
            continue
        wide = w.astype("float64")
        step = 1e-6 * np.sqrt(np.mean(wide**2))
        if arguments[name][1]:
            step = min(step, np.abs(wide).min() / 2)  # not across the kink at 0
        expected = numeric_gradient(
            lambda w, name=name: reference_penalty(w, *arguments[name]), wide, step
        )
        # What is left of the differences where the terms are rounded to 1e-16.
        noise = 1e-15 * abs(reference_penalty(w, *arguments[name])) / step
        actual = results[backend][f"{name}/gradient"]
        assert difference(actual, expected, gradient + 1e6 * noise) < 1e-6, name


def test_norms_of_a_saved_model_agree_on_all_backends(computed):
    *_, norms, results = computed
    for result in results.values():
        names = [key for key in result if key.startswith("norm/")]
        assert len(names) == len(norms) == 6
        actual = np.array([result[name] for name in names])
        expected = np.array(list(norms.values()))
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
