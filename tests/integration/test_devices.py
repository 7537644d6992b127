"""On many devices all comes out as on one: weights, norms, penalty, what is written."""

import csv
import importlib.util
import json
import re
import types

import keras
import numpy as np
import pytest
from helpers import (
    BACKEND,
    ROOT,
    files_named,
    relative_error,
    run_example,
    run_python,
    to_numpy,
)

EXAMPLE = ROOT / "examples" / "distributed.py"
RUNS = {
    "tensorflow": [("mirrored", 4)],
    "jax": [("data", 4), ("model", 8)],
    "torch": [("ddp", 2)],
}[BACKEND]
NAMES = ("hidden_1", "hidden_2", "logits")
EPOCHS, STEPS = 5, 4
LOG_NORM, DIRECTION_L1 = 0.05, 0.001


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("distributed", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLE.parent)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function that runs the example once for each engine and number of devices."""
    done = {}

    def run_once(engine, devices):
        if (engine, devices) not in done:
            out = tmp_path_factory.mktemp("out")
            arguments = ["--engine", engine, "--devices", devices, "--out", out]
            process = run_example("distributed.py", *arguments)
            assert process.returncode == 0, process.stderr
            assert files_named(process.stdout) == {p.name for p in out.iterdir()}
            with np.load(out / "result.npz") as result:
                result = dict(result)
            tables = []
            for name in ("log.csv", "norms.csv"):
                with open(out / name, newline="") as file:
                    tables.append(list(csv.DictReader(file)))
            done[engine, devices] = types.SimpleNamespace(
                result=result, log=tables[0], record=tables[1], stdout=process.stdout
            )
        return done[engine, devices]

    return run_once


@pytest.fixture(scope="module")
def expected(example):
    """The same training in NumPy, in float64, from the same initial weights."""
    x, y = example.make_data()
    model = example.make_model()
    weights = {v.path: to_numpy(v.value).astype("float64") for v in model.weights}
    velocity = {path: np.zeros_like(w) for path, w in weights.items()}
    return train(weights, velocity, x, y, batch=64, epochs=EPOCHS, rate=0.05)


def forward(weights, x):
    """The inputs of all layers of a ReLU network, and its output."""
    kernels, biases = list(weights.values())[::2], list(weights.values())[1::2]
    inputs = [x]
    for i, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        z = inputs[-1] @ kernel + bias
        inputs.append(z if i == len(kernels) - 1 else np.maximum(z, 0.0))
    return inputs


def penalty(kernels):
    norms = [np.linalg.norm(w) for w in kernels]
    assert min(norms) > 0.1  # else the penalty is another
    return sum(
        LOG_NORM * np.log(n) + DIRECTION_L1 * np.abs(w).sum() / n
        for w, n in zip(kernels, norms, strict=True)
    )


def train(weights, velocity, x, y, batch, epochs, rate):
    """SGD of momentum 0.9 on cross-entropy and penalty; returns weights and logs."""
    weights, velocity = dict(weights), dict(velocity)
    x = x.astype("float64")
    rows = []
    for _ in range(epochs):
        losses = []
        for start in range(0, len(x), batch):
            *inputs, logits = forward(weights, x[start : start + batch])
            shares = np.exp(logits - logits.max(axis=1, keepdims=True))
            shares /= shares.sum(axis=1, keepdims=True)
            right = np.arange(batch), y[start : start + batch]
            kernels = list(weights.values())[::2]
            losses.append(-np.log(shares[right]).mean() + penalty(kernels))
            shares[right] -= 1.0
            back = shares / batch
            paths = list(weights)
            gradients = {}
            for i in reversed(range(len(inputs))):
                w = kernels[i]
                n = np.linalg.norm(w)
                of_direction = np.sign(w) / n - np.abs(w).sum() * w / n**3
                gradients[paths[2 * i]] = (
                    inputs[i].T @ back + LOG_NORM * w / n**2
                ) + DIRECTION_L1 * of_direction
                gradients[paths[2 * i + 1]] = back.sum(axis=0)
                back = (back @ w.T) * (inputs[i] > 0)
            for path, gradient in gradients.items():
                velocity[path] = 0.9 * velocity[path] - rate * gradient
                weights[path] = weights[path] + velocity[path]
        kernels = list(weights.values())[::2]
        norms = [np.linalg.norm(w) for w in kernels]
        row = {f"norm/{name}": n for name, n in zip(NAMES, norms, strict=True)}
        row["norm_product"] = np.prod(norms)
        row["log_norm_product"] = np.log(norms).sum()
        row["regularization_loss"] = penalty(kernels)
        row["loss"] = np.mean(losses)
        rows.append(row)
    return types.SimpleNamespace(weights=weights, rows=rows)


@pytest.mark.slow
@pytest.mark.parametrize("engine, devices", [("single", 1), *RUNS])
def test_training_is_that_of_numpy(run, expected, engine, devices):
    result = run(engine, devices).result
    for path, weight in expected.weights.items():
        assert result[path].shape == weight.shape
        assert relative_error(result[path], weight) < 1e-5
    last = expected.rows[-1]
    assert float(result["penalty"]) == pytest.approx(
        last["regularization_loss"], rel=1e-5
    )
    for key in last.keys() - {"loss"}:
        assert float(result[key]) == pytest.approx(last[key], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("engine, devices", RUNS)
def test_training_is_that_of_a_single_device(run, engine, devices):
    single, result = run("single", 1).result, run(engine, devices).result
    assert result.keys() == single.keys()
    for key, value in single.items():
        assert relative_error(result[key], value) < 1e-5, key


@pytest.mark.slow
@pytest.mark.parametrize("engine, devices", RUNS)
def test_norms_are_those_of_the_whole_kernels(run, engine, devices):
    result = run(engine, devices).result
    for name in NAMES:
        kernel = result[f"network/{name}/kernel"].astype("float64")
        assert float(result[f"norm/{name}"]) == pytest.approx(
            np.linalg.norm(kernel), rel=1e-6
        )


@pytest.mark.slow
@pytest.mark.parametrize("engine, devices", RUNS)
def test_an_epoch_is_logged_once_and_not_once_a_device(run, expected, engine, devices):
    training = run(engine, devices)
    assert [row["epoch"] for row in training.log] == list("01234")
    assert int(training.result["rows"]) == EPOCHS + 1  # one before the first step
    assert int(training.result["step"]) == EPOCHS * STEPS
    for epoch in range(1, EPOCHS + 1):
        assert training.stdout.count(f"Epoch {epoch}/{EPOCHS}\n") == 1
    assert training.stdout.count("penalty: ") == 1
    # Before Keras 3.10, `loss` under MirroredStrategy is not that of all devices.
    old = tuple(map(int, keras.__version__.split(".")[:2])) < (3, 10)
    wrong = {"loss"} if old and engine == "mirrored" else set()
    for row, values in zip(training.log, expected.rows, strict=True):
        for key in values.keys() - wrong:
            assert float(row[key]) == pytest.approx(values[key], rel=1e-5)
    steps = [int(row["step"]) for row in training.record]
    assert steps == [STEPS * epoch for epoch in range(EPOCHS + 1)]
    for row, values in zip(training.record[1:], expected.rows, strict=True):
        for key in values.keys() - {"loss"}:
            assert float(row[key]) == pytest.approx(values[key], rel=1e-5)


@pytest.mark.slow
@pytest.mark.jax_only
def test_no_device_holds_a_whole_kernel(run):
    stdout = run("model", 8).stdout
    found = re.findall(r"(\w+): kernel \((.+)\), on each device \((.+)\)", stdout)
    shapes = {
        name: [tuple(map(int, shape.split(", "))) for shape in both]
        for name, *both in found
    }
    assert shapes == {
        "hidden_1": [(16, 32), (16, 32 // 4)],
        "hidden_2": [(32, 32), (32, 32 // 4)],
        "logits": [(32, 4), (32 // 4, 4)],
    }


# The tools on a model that stands on many devices. It prints the shapes of what each
# device holds, and saves what it holds, at several moments. The middle kernel has more
# than 2 ** 20 elements: those of large ones are multiplied on the device.
TOOLS = """
import json, os, sys
import numpy as np
folder, devices = sys.argv[1], int(sys.argv[2])
if os.environ["KERAS_BACKEND"] == "tensorflow":
    import tensorflow as tf
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * devices,
    )
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(devices)])
    scope = strategy.scope()
    def pieces(variable):
        replicas = strategy.experimental_local_results(variable.value)
        return [replica.numpy() for replica in replicas]
import keras
import keras_weissi
from keras_weissi import WEISSI, NormLogger, ScaleBalancer
if os.environ["KERAS_BACKEND"] == "jax":
    mesh = keras.distribution.DeviceMesh(
        (2, devices // 2), ("batch", "model"), keras.distribution.list_devices("cpu")
    )
    layout = keras.distribution.LayoutMap(mesh)
    layout[".*[ab]/kernel"] = (None, "model")
    layout[".*[ab]/bias"] = ("model",)
    layout[".*c/kernel"] = ("model", None)
    scope = keras.distribution.ModelParallel(
        layout_map=layout, batch_dim_name="batch"
    ).scope()
    def pieces(variable):
        return [np.asarray(s.data) for s in variable.value.addressable_shards]

shapes, arrays = {}, {}
def look(moment, *_):
    variables = {v.path: v for v in model.weights}
    if moment != "regularized":  # by then it is compiled
        # By what they belong to: older versions of Keras name them in another way.
        for variable, momentum in zip(
            model.trainable_variables, model.optimizer.momentums, strict=True
        ):
            variables[f"momentum of {variable.path}"] = momentum
    held = {path: pieces(variable) for path, variable in variables.items()}
    shapes[moment] = {path: [p.shape for p in ps] for path, ps in held.items()}
    for path, variable in variables.items():
        arrays[f"{moment}:{path}"] = keras.ops.convert_to_numpy(variable.value)
        if os.environ["KERAS_BACKEND"] == "tensorflow":
            arrays[f"{moment}:{path}:all"] = np.stack(held[path])

def looking(moment):
    return keras.callbacks.LambdaCallback(on_epoch_end=lambda e, logs: look(moment))

rng = np.random.default_rng(0)
x, y = rng.normal(size=(64, 8)).astype("float32"), rng.integers(4, size=64)
with scope:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([
        keras.Input((8,)),
        keras.layers.Dense(1024, "relu", name="a"),
        keras.layers.Dense(1032, "relu", name="b", bias_initializer="ones"),
        keras.layers.Dense(4, name="c", kernel_initializer="he_normal"),
    ], name="m")
    values = {}
    report = keras_weissi.regularize(model, WEISSI(0.05, 0.001))
    look("regularized")
    values["regularize"] = [row.norm for row in report]
    values["penalty"] = sum(float(keras.ops.convert_to_numpy(l)) for l in model.losses)
    rows = keras_weissi.norm_table(model, print_fn=None)
    values["norm_table"] = [row.norm for row in rows]

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
    balancer, logger = ScaleBalancer(start=False), NormLogger()
    callbacks = [looking("fitted"), balancer, looking("balanced in fit"), logger]
    model.fit(x, y, 32, verbose=0, shuffle=False, callbacks=callbacks)
    values["rows"] = [len(balancer.record), len(logger.record)]
    last = logger.record[-1]
    values["logger"] = [last[f"norm/{name}"] for name in "abc"]

    keras_weissi.shift_scales(model, {"a": 0.5, "b": 8.0, "c": 0.25})
    look("shifted")
    rows = keras_weissi.balance_scales(model)
    look("balanced")
    values["balance_scales"] = [row.after for row in rows]
    model.fit(x, y, 32, verbose=0, shuffle=False)
    look("fitted again")
print(json.dumps([shapes, values]))
np.savez(folder + "/arrays.npz", **arrays)
"""


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    if BACKEND == "torch":
        pytest.skip("PyTorch holds all of a model in each process")
    folder = tmp_path_factory.mktemp("tools")
    devices = 8 if BACKEND == "jax" else 2
    flags = f"--xla_force_host_platform_device_count={devices}"
    process = run_python("-c", TOOLS, folder, devices, XLA_FLAGS=flags)
    assert process.returncode == 0, process.stderr
    shapes, values = json.loads(process.stdout.splitlines()[-1])
    with np.load(folder / "arrays.npz") as file:
        arrays = {key: array.astype("float64") for key, array in file.items()}
    moments = {}
    for key, array in arrays.items():
        moment, path = key.split(":", 1)
        moments.setdefault(moment, {})[path] = array
    return types.SimpleNamespace(shapes=shapes, values=values, moments=moments)


def weights_in(moment):
    paths = [f"m/{name}/{kind}" for name in "abc" for kind in ("kernel", "bias")]
    return {path: moment[path] for path in paths}


def norms_in(moment):
    return [np.linalg.norm(moment[f"m/{name}/kernel"]) for name in "abc"]


MOMENTS = ["fitted", "balanced in fit", "shifted", "balanced", "fitted again"]


@pytest.mark.slow
def test_the_tools_read_norms_and_penalty_of_whole_kernels(tools):
    start = tools.moments["regularized"]
    for tool in ("regularize", "norm_table"):
        np.testing.assert_allclose(tools.values[tool], norms_in(start), rtol=1e-6)
    kernels = [start[f"m/{name}/kernel"] for name in "abc"]
    assert tools.values["penalty"] == pytest.approx(penalty(kernels), rel=1e-5)
    for tool, moment in (("logger", "balanced in fit"), ("balance_scales", "balanced")):
        norms = norms_in(tools.moments[moment])
        np.testing.assert_allclose(tools.values[tool], norms, rtol=1e-6)
    assert tools.values["rows"] == [1, 2]


@pytest.mark.slow
def test_what_a_device_holds_stays_what_it_was(tools):
    assert list(tools.shapes) == ["regularized", *MOMENTS]
    start = tools.shapes["regularized"]
    if BACKEND == "jax":
        assert start["m/a/kernel"] == [[8, 1024 // 4]] * 8
        assert start["m/b/kernel"] == [[1024, 1032 // 4]] * 8
        assert start["m/c/kernel"] == [[1032 // 4, 4]] * 8
        assert start["m/b/bias"] == [[1032 // 4]] * 8
    for moment in MOMENTS:
        assert len(tools.shapes[moment]) == 2 * len(start)  # and a momentum for each
        for path, shapes in start.items():
            momentum = f"momentum of {path}"
            assert tools.shapes[moment][path] == shapes
            assert tools.shapes[moment][momentum] == shapes


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="of MirroredStrategy")
def test_all_replicas_hold_the_same(tools):
    for moment in tools.moments.values():
        together = [array for path, array in moment.items() if path.endswith(":all")]
        assert len(together) in (6, 12)
        for array in together:
            assert len(array) == 2
            np.testing.assert_array_equal(array[0], array[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "before, after",
    [("fitted", "balanced in fit"), ("shifted", "balanced")],
)
def test_balancing_leaves_the_function_and_carries_the_momentum(tools, before, after):
    before, after = tools.moments[before], tools.moments[after]
    x = np.random.default_rng(1).normal(size=(16, 8))
    old, new = (forward(weights_in(moment), x)[-1] for moment in (before, after))
    assert relative_error(new, old) < 1e-5
    # Balanced, all are their geometric mean.
    mean = np.exp(np.log(norms_in(before)).mean())
    np.testing.assert_allclose(norms_in(after), mean, rtol=1e-5)
    assert max(norms_in(before)) > 1.05 * mean
    for path in weights_in(before):
        momentum = f"momentum of {path}"
        if np.any(before[momentum]):
            factor = np.linalg.norm(after[path]) / np.linalg.norm(before[path])
            assert relative_error(after[momentum] * factor, before[momentum]) < 1e-5


@pytest.mark.slow
def test_after_balancing_training_goes_on_as_in_numpy(tools):
    start, end = tools.moments["balanced"], tools.moments["fitted again"]
    weights = weights_in(start)
    velocity = {path: start[f"momentum of {path}"] for path in weights}
    # The data of the program above.
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 8)).astype("float32"), rng.integers(4, size=64)
    expected = train(weights, velocity, x, y, batch=32, epochs=1, rate=0.01).weights
    for path, weight in weights.items():
        step, right = end[path] - weight, expected[path] - weight
        assert relative_error(step, right) < 1e-3
        assert relative_error(end[path], expected[path]) < 1e-5


def test_the_default_engine_is_that_of_the_backend(example, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", BACKEND)
    monkeypatch.setattr("sys.argv", ["distributed.py"])
    arguments = example.parse_arguments()
    engines = {"tensorflow": "mirrored", "jax": "data", "torch": "ddp"}
    assert arguments.engine == engines[BACKEND]
    assert arguments.devices == (2 if BACKEND == "torch" else 4)


OTHER = "data" if BACKEND == "torch" else "ddp"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--devices", "3"], "argument --devices: expected a divisor of 64, got 3"),
        (["--devices", "0"], "argument --devices: expected a divisor of 64, got 0"),
        (["--engine", "single", "--devices", "2"], "argument --devices: expected 1"),
        (["--engine", OTHER], f"--engine: expected one for KERAS_BACKEND={BACKEND}"),
        (["--engine", "all"], "argument --engine: invalid choice"),
        (["--out", "/dev/null/x"], "argument --out: cannot write to"),
    ],
)
def test_the_example_names_bad_values(arguments, message):
    process = run_example("distributed.py", *arguments)
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert message in process.stderr.splitlines()[-1]
