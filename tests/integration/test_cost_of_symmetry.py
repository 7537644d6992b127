"""On models of the size that people use: exact, and with little memory."""

import json

import pytest
from helpers import BACKEND, ROOT, run_python

SCRIPT = """
import gc, json, os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
sys.path.insert(0, "tests")
import keras, numpy as np
if keras.backend.backend() == "jax":
    import jax
    jax.config.update("jax_enable_x64", True)
keras.config.set_floatx("float64")
import networks
from keras_weissi import balance_scales, shift_scales

name = sys.argv[1]
if name == "resnet18":
    model = networks.resnet18("float64")
else:
    model = getattr(keras.applications, name)(weights=None, classifier_activation=None)
rng = np.random.default_rng(0)
for variable in model.weights:
    if variable.name in ("bias", "beta", "moving_mean"):
        variable.assign(rng.normal(0, 0.1, variable.shape))
    elif variable.name == "kernel":  # so that the signal gets to the end
        fan_in = np.prod(variable.shape) / max(variable.shape[-1], 1)
        if "depthwise" in variable.path:
            fan_in = np.prod(variable.shape[:2])
        value = keras.random.normal(variable.shape, 0, (2 / fan_in) ** 0.5, "float64")
        variable.assign(value)
    else:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))
for variable in model.weights:
    float(keras.ops.max(variable.value))  # JAX works in the background
size = sum(int(np.prod(v.shape)) for v in model.weights) * 8 / 2**20
factors = networks.random_factors(model, 0)
result = {"size": size, "spread": max(factors.values()) / min(factors.values())}

def status(key):
    with open("/proc/self/status") as file:
        return [int(line.split()[1]) / 1024 for line in file if line.startswith(key)][0]

def measured(label, function, *arguments):
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the peak so far
    before = status("VmRSS")
    function(*arguments)
    result[label + " MB"] = status("VmHWM") - before

x = rng.normal(size=(1, *model.input_shape[1:]))
weights = [keras.ops.convert_to_numpy(v) + 0 for v in model.weights]
measured("shift", shift_scales, model, factors)
measured("balance", balance_scales, model)
after = keras.ops.convert_to_numpy(model(x))
moved = sum(
    not np.array_equal(w, keras.ops.convert_to_numpy(v))
    for w, v in zip(weights, model.weights)
)
model.set_weights(weights)
before = keras.ops.convert_to_numpy(model(x))
shift_scales(model, factors)
shifted = keras.ops.convert_to_numpy(model(x))
largest = np.abs(before).max()
result["moved"] = moved
result["output"] = float(largest)
result["shift error"] = float(np.abs(shifted - before).max() / largest)
result["balance error"] = float(np.abs(after - before).max() / largest)
print(json.dumps(result))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "VGG16", "MobileNetV2"])
def test_exact_and_with_little_memory(name, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    # So that memory that is freed is given back, and counts when it is used again.
    allocator = {
        f"MALLOC_{key}_": str(2**16) for key in ("TRIM_THRESHOLD", "MMAP_THRESHOLD")
    }
    process = run_python(script, name, cwd=ROOT, timeout=1200, **allocator)
    assert process.returncode == 0, process.stderr[-3000:]
    result = json.loads(process.stdout.splitlines()[-1])
    print(BACKEND, name, {key: round(value, 15) for key, value in result.items()})
    assert 1e-6 < result["output"] < 1e6 and result["moved"] > 10
    # Keras takes means in float32 on JAX, and on PyTorch multiplies matrices in it.
    exact = BACKEND == "tensorflow" or (BACKEND == "jax" and name == "VGG16")
    for what in ("shift", "balance"):
        assert result[f"{what} error"] < (1e-12 if exact else 1e-5)
        # The runtime's own work space is as large as the weights of a small model.
        assert result[f"{what} MB"] <= max(result["size"], 64)
