"""Several processes train one model; each holds a part of it, or a copy."""

import ast
import csv
import os
import socket
import subprocess
import sys

import pytest
from helpers import BACKEND

PROGRAM = """
import os, sys
rank, kind, folder, address = int(sys.argv[1]), *sys.argv[2:]
import keras, numpy as np
from keras_weissi import WEISSI, NormLogger, ScaleBalancer, balance_scales, norm_table
from keras_weissi import regularize

if kind == "ddp":
    import torch
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://{address}", rank=rank, world_size=2)
elif kind != "single":
    keras.distribution.initialize(address, 2, rank)
    devices = keras.distribution.list_devices()
    assert len(devices) == 4
    if kind == "data":
        distribution = keras.distribution.DataParallel(
            devices=devices, auto_shard_dataset=False)
    else:
        # Each kernel lies in four parts, two in each process.
        mesh = keras.distribution.DeviceMesh((1, 4), ("batch", "model"), devices)
        layout = keras.distribution.LayoutMap(mesh)
        layout[".*hidden/kernel"] = (None, "model")
        layout[".*out/kernel"] = ("model", None)
        distribution = keras.distribution.ModelParallel(
            layout_map=layout, batch_dim_name="batch", auto_shard_dataset=False)
    keras.distribution.set_distribution(distribution)

keras.utils.set_random_seed(0)
x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
y = x[:, :1]
model = keras.Sequential([
    keras.Input((4,)),
    keras.layers.Dense(8, "relu", name="hidden"),
    keras.layers.Dense(1, name="out"),
])
values = {}
values["attached"] = [row.norm for row in regularize(model, WEISSI(0.1, 0.01))]
# A disk of its own.
folder += f"/{rank}"
logger = NormLogger(update_freq=1)
log = keras.callbacks.CSVLogger(folder + "/norms.csv")
callbacks = [ScaleBalancer(every=2), logger, log]
if kind == "ddp":
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    callbacks = keras.callbacks.CallbackList(
        callbacks, model=parallel, verbose=2, epochs=3, steps=4)
    x, y = map(keras.ops.convert_to_tensor, (x, y))
    callbacks.on_train_begin()
    for epoch in range(3):
        callbacks.on_epoch_begin(epoch)
        for step in range(4):
            own = slice(step * 16 + rank, (step + 1) * 16, 2)
            loss = ((parallel(x[own]) - y[own]) ** 2).mean() + sum(model.losses)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            callbacks.on_train_batch_end(step)
        callbacks.on_epoch_end(epoch, {})
    callbacks.on_train_end()
else:
    model.compile(keras.optimizers.SGD(0.05), "mse")
    model.fit(x, y, 16, 3, shuffle=False, verbose=2, callbacks=callbacks)
values["record"] = list(logger.record)
values["table"] = [row.norm for row in norm_table(model, print_fn=None)]
values["balanced"] = [row.after for row in balance_scales(model)]
if kind != "ddp":
    model.fit(
        x, y, 16, 5, shuffle=False, verbose=0, callbacks=[logger], initial_epoch=3)
    values["again"] = [(row["epoch"], row["step"]) for row in logger.record[13:]]
print("\\nvalues:", values)
"""
KINDS = {"jax": ["data", "model"], "torch": ["ddp"], "tensorflow": []}[BACKEND]


def train(kind, folder, processes):
    """Runs the program in so many processes; returns what each has printed."""
    for rank in range(processes):
        (folder / str(rank)).mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = {**os.environ, "KERAS_BACKEND": BACKEND}
    env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    env["JAX_PLATFORMS"] = "cpu"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), kind, str(folder), address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        for rank in range(processes)
    ]
    try:
        outputs = [process.communicate(timeout=1200) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, errors) in zip(running, outputs, strict=True):
        assert process.returncode == 0, errors
    return [output for output, _ in outputs]


def values_in(output):
    return ast.literal_eval(output.split("\nvalues:")[1].strip())


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """What a single process prints."""
    return train("single", tmp_path_factory.mktemp("single"), 1)[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_log_once_what_one_would(kind, single, tmp_path):
    first, second = train(kind, tmp_path / "two", 2)
    assert single.count("\nEpoch ") + single.startswith("Epoch ") == 3
    for epoch in (1, 2, 3):
        assert f"Epoch {epoch}/3\n" in first and f"Epoch {epoch}/3" not in second
    expected = values_in(single)
    assert len(expected["record"]) == 13
    for output in (first, second):
        values = values_in(output)
        for key in ("attached", "table", "balanced"):
            assert values[key] == pytest.approx(expected[key], rel=1e-5)
        for row, other in zip(values["record"], expected["record"], strict=True):
            assert row == pytest.approx(other, rel=1e-5, abs=1e-6)
        if kind != "ddp":
            steps = [12, 13, 14, 15, 16, 17, 18, 19, 20]
            epochs = [3, 3, 3, 3, 4, 4, 4, 4, 5]
            assert values["again"] == list(zip(epochs, steps, strict=True))
    # CSVLogger knows of no other process. Each writes a file, in a folder of its own.
    for rank, output in enumerate((first, second)):
        folder = tmp_path / "two" / str(rank)
        assert os.listdir(folder) == ["norms.csv"]
        with open(folder / "norms.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        ends = [row for row in values_in(output)["record"] if row["step"] in (4, 8, 12)]
        assert [int(row["epoch"]) + 1 for row in rows] == [1, 2, 3]
        for row, end in zip(rows, ends, strict=True):
            for key in end.keys() - {"epoch", "step"}:
                assert float(row[key]) == end[key]
