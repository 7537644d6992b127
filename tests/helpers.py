"""What several test modules need; nothing here comes from the package itself."""

import contextlib
import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np

BACKEND = keras.backend.backend()
ROOT = pathlib.Path(__file__).parent.parent


def takes_functions_as_regularizers():
    """Whether this version of Keras does."""
    try:
        keras.Variable([1.0]).regularizer = keras.ops.sum
    except ValueError:
        return False
    return True


def to_numpy(x):
    return keras.ops.convert_to_numpy(x)


def norm_of(variable):
    return float(np.linalg.norm(to_numpy(variable).astype("float64")))


def penalty_of(model):
    return float(sum(float(to_numpy(loss)) for loss in model.losses))


def value_and_gradient(function, x):
    """The value and the gradient of a scalar function, by the backend's autodiff."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        x = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = function(x)
        return value.numpy(), tape.gradient(value, x).numpy()
    if BACKEND == "jax":
        import jax

        value, gradient = jax.value_and_grad(function)(jax.numpy.asarray(x))
        return np.asarray(value), np.asarray(gradient)
    import torch

    x = torch.tensor(x, requires_grad=True)
    value = function(x)
    value.backward()
    return value.detach().numpy(), x.grad.numpy()


@contextlib.contextmanager
def float64():
    """Lets JAX keep float64, which it turns into float32 by default."""
    if BACKEND == "jax":
        import jax

        with jax.enable_x64(True):
            yield
    else:
        yield


def run_python(*arguments, timeout=1200, cwd=None, **environment):
    """Runs a new Python process on the backend under test; returns its result."""
    env = {**os.environ, "KERAS_BACKEND": BACKEND, **environment}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        env=env,
    )


def reference_penalty(w, log_norm=0.01, direction_l1=0.0, min_norm=0.1):
    """The penalty in closed form, in float64."""
    w = np.asarray(w, "float64")
    norm = np.sqrt(np.sum(w * w))
    if norm >= min_norm:
        log = np.log(norm)
    else:
        log = np.log(min_norm) + (norm**2 / min_norm**2 - 1) / 2
    return log_norm * log + direction_l1 * np.abs(w).sum() / max(norm, min_norm)


def numeric_gradient(function, w, step=1e-6):
    """Central differences, in float64."""
    w = np.array(w, "float64")
    gradient = np.empty_like(w)
    for index in np.ndindex(*w.shape):
        middle = w[index]
        w[index] = middle + step
        above = function(w)
        w[index] = middle - step
        gradient[index] = (above - function(w)) / (2 * step)
        w[index] = middle
    return gradient


def weights_of(model):
    """Copies of all weights, in float64 (half precision fits into it)."""
    return [to_numpy(keras.ops.cast(v.value, _wide(v))) + 0.0 for v in model.weights]


def _wide(variable):
    return "float64" if variable.dtype == "float64" else "float32"


def outputs_of(model, x, training=False):
    """All outputs of a model, joined into one vector."""
    outputs = keras.tree.flatten(model(x, training=training))
    return np.concatenate([to_numpy(y).ravel() for y in outputs])


def relative_error(actual, expected):
    """The largest difference over the largest value."""
    return np.abs(actual - expected).max() / np.abs(expected).max()


def run_example(name, *arguments, **environment):
    """Runs an example in a new process, where a warning of ours is an error."""
    path = ROOT / "examples" / name
    options = ("-W", "error::UserWarning:keras_weissi")
    return run_python(*options, path, *arguments, **environment)


def files_named(stdout):
    """The files that an example says it wrote, in its only line that names some."""
    (names,) = re.findall(r"^In \S+: (.*)$", stdout, re.MULTILINE)
    return {name.rstrip("/") for name in names.split(", ")}


def count_transfers(monkeypatch, variable):
    """Returns a list that grows with every tensor or variable brought to the host."""
    kinds = {type(keras.ops.sum(variable)), type(variable.value), type(variable)}
    transfers, nesting = [], []

    def counting(original):
        def count(*args, **kwargs):
            if not nesting:
                transfers.append(original)
            nesting.append(True)
            try:
                return original(*args, **kwargs)
            finally:
                nesting.pop()

        return count

    for kind in kinds:
        for way in ("numpy", "item", "tolist", "__float__", "cpu", "__dlpack__"):
            if hasattr(kind, way):
                monkeypatch.setattr(kind, way, counting(getattr(kind, way)))
    # NumPy may take the memory of a tensor without asking any method of it.
    for module, way in (
        (keras.ops, "convert_to_numpy"),
        (np, "asarray"),
        (np, "array"),
    ):
        original = getattr(module, way)
        counted = counting(original)

        def either(x, *args, original=original, counted=counted, **kwargs):
            chosen = counted if isinstance(x, tuple(kinds)) else original
            return chosen(x, *args, **kwargs)

        monkeypatch.setattr(module, way, either)
    return transfers
