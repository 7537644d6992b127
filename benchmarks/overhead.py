"""What the regularizer, the logger and balancing cost, on the backend that is set.

    KERAS_BACKEND=jax python benchmarks/overhead.py

It takes three to five minutes; `--quick` takes one and is rough. Each penalty is timed
in processes of its own, because models in one process change each other's times. All
take turns in random order, so that a busy machine slows all of them. A ratio is that of
the medians beside it. On JAX, the bytes are XLA's own count, the same on every run.
"""

import argparse
import contextlib
import functools
import multiprocessing
import os
import random
import statistics
import time
from concurrent.futures import ProcessPoolExecutor

import keras
import numpy as np
from keras import layers, ops
from rich.console import Console
from rich.progress import track
from rich.table import Table

from keras_weissi import WEISSI, NormLogger, balance_scales
from keras_weissi._utils.backend import compile_function
from keras_weissi.model.kernels import kernels

CONSOLE = Console()
# The largest ratios to L1L2 of a training step of the CNN and, on PyTorch, of the
# penalty of a small kernel alone; and of a training step with a logger that records
# every 10 to one without.
CNN_LIMITS = {"WEISSI (log)": 1.03, "WEISSI (both)": 1.03}
SMALL_LIMITS = {"WEISSI (log)": 0.85, "WEISSI (both)": 1.3}
LOGGER_LIMITS = {"10": 1.03}
PENALTIES = {
    "none": None,
    "L2": keras.regularizers.L2(1e-4),
    "L1L2": keras.regularizers.L1L2(1e-4, 1e-4),
    "WEISSI (log)": WEISSI(0.01),
    "WEISSI (both)": WEISSI(0.01, 1e-4),
}


def mlp(regularizer, depth=4, width=2048):
    """A network whose weights, not its activations, take the time."""
    return keras.Sequential(
        [
            keras.Input((width,)),
            *(
                layers.Dense(width, activation="relu", kernel_regularizer=regularizer)
                for _ in range(depth)
            ),
        ]
    )


def branches(regularizer, count, width=64):
    """Many small layers side by side: a chain of 1,000 is too deep for Keras."""
    inputs = keras.Input((width,))
    return keras.Model(
        inputs,
        [
            layers.Dense(width, activation="relu", kernel_regularizer=regularizer)(
                inputs
            )
            for _ in range(count)
        ],
    )


def cnn(regularizer):
    """A small convolutional network on images of 32 x 32."""

    def conv(filters):
        return layers.Conv2D(
            filters, 3, 2, "same", activation="relu", kernel_regularizer=regularizer
        )

    dense = layers.Dense(10, kernel_regularizer=regularizer)
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            conv(32),
            conv(64),
            conv(128),
            layers.Flatten(),
            dense,
        ]
    )


def job_times(jobs, processes, rounds):
    """Seconds of each job with each penalty, one of each list for each round.

    Args:
        jobs: dict of functions that take the name of a penalty and return seconds. What
            they keep from call to call is theirs, as each penalty has its own process.
        processes: int: how often new processes are started.
        rounds: int: how often the jobs are done in one of them.

    Returns:
        Dict of dicts of lists: first by the job, then by the penalty.
    """
    times = {job: {name: [] for name in PENALTIES} for job in jobs}
    spawn = multiprocessing.get_context("spawn")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    turns = [turn for _ in range(processes) for turn in range(rounds + 1)]
    with contextlib.ExitStack() as stack:
        for turn in track(turns, "timing", console=CONSOLE, transient=True):
            if turn == 0:
                stack.close()
                pools = {
                    name: stack.enter_context(ProcessPoolExecutor(1, spawn))
                    for name in PENALTIES
                }
            for job, function in jobs.items():
                for name in random.sample(list(PENALTIES), len(PENALTIES)):
                    seconds = pools[name].submit(function, name).result()
                    if turn:  # the first compiles
                        times[job][name].append(seconds)
    return times


@functools.cache
def _compiled(make_model, penalty, rows):
    model = make_model(PENALTIES[penalty])
    model.compile(keras.optimizers.SGD(1e-3), "mse")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, *model.input_shape[1:])).astype("float32")
    y = rng.normal(size=(rows, *model.output_shape[1:])).astype("float32")
    return model, x, y


def step_time(make_model, steps, penalty, batch_size=32):
    """Seconds per training step."""
    model, x, y = _compiled(make_model, penalty, batch_size * steps)
    start = time.perf_counter()
    model.fit(x, y, batch_size, shuffle=False, verbose=0)
    return (time.perf_counter() - start) / steps


def small_kernel_time(penalty, repeats=100):
    """Seconds of the penalty of a 3 x 3 x 32 x 64 kernel and its gradient (PyTorch)."""
    import torch

    penalty = PENALTIES[penalty] or torch.sum
    kernel = torch.randn(3, 3, 32, 64, requires_grad=True)
    start = time.perf_counter()
    for _ in range(repeats):
        torch.autograd.grad(penalty(kernel), kernel)
    return (time.perf_counter() - start) / repeats


def update_cost(penalty, depth=4, width=2048):
    """XLA's count for one SGD update of `depth` kernels with a penalty (JAX only).

    Returns:
        The bytes read and written, and the bytes of scratch memory.
    """
    import jax

    def update(kernels, gradients):
        # As in a training step, the value is computed too: it is part of the loss.
        value = 0.0
        if penalty is not None:
            value, extra = jax.value_and_grad(lambda ks: sum(map(penalty, ks)))(kernels)
            gradients = [g + e for g, e in zip(gradients, extra, strict=True)]
        updated = [k - 0.1 * g for k, g in zip(kernels, gradients, strict=True)]
        return value, updated

    shapes = [jax.ShapeDtypeStruct((width, width), "float32")] * depth
    compiled = jax.jit(update, donate_argnums=0).lower(shapes, shapes).compile()
    return (
        compiled.cost_analysis()["bytes accessed"],
        compiled.memory_analysis().temp_size_in_bytes,
    )


def logger_times(model, rounds):
    """Seconds of a logger's epoch, and of reading every kernel once, per round."""
    logger = NormLogger()
    logger.set_params({"verbose": 0, "epochs": 1, "steps": 1})
    logger.set_model(model)
    logger.on_train_begin()
    logger.on_epoch_begin(0)
    variables = [kernel.variable for kernel in kernels(model)]
    read_once = compile_function(
        lambda values: ops.stack([ops.sum(v) for v in values]), variables
    )

    def read():
        ops.convert_to_numpy(read_once())

    def log():
        logger.on_epoch_end(0, {})

    times = {read: [], log: []}
    for turn in range(rounds + 1):
        for job in (read, log):
            start = time.perf_counter()
            job()
            if turn:
                times[job].append(time.perf_counter() - start)
    return times[log], times[read]


def logged_step_times(rounds, steps):
    """Seconds per training step of a CNN without and with a logger, per round.

    One model takes all steps, so that all variants do the same work.
    """
    model, x, y = _compiled(cnn, "WEISSI (log)", 32 * steps)
    variants = {
        # Draws nothing with verbose=0, as the bar that Keras itself would add.
        "none": keras.callbacks.ProgbarLogger(),
        "epoch": NormLogger(),
        "10": NormLogger(update_freq=10),
    }
    times = {name: [] for name in variants}
    for turn in track(range(rounds + 1), "timing", console=CONSOLE, transient=True):
        for name in random.sample(list(variants), len(variants)):
            callbacks = [variants[name]]
            start = time.perf_counter()
            model.fit(x, y, 32, shuffle=False, verbose=0, callbacks=callbacks)
            if turn:  # the first compiles
                times[name].append((time.perf_counter() - start) / steps)
    return times


def balancing_times(model, rounds):
    """Seconds of balancing a model, and of one copy of its weights, per round."""
    times = [], []
    jobs = (
        lambda: balance_scales(model),
        lambda: [ops.convert_to_numpy(v).copy() for v in model.weights],
    )
    for turn in range(rounds + 1):
        for job, own in zip(jobs, times, strict=True):
            start = time.perf_counter()
            job()
            if turn:  # what is known of the model is kept from the first
                own.append(time.perf_counter() - start)
    return times


def logger_transfers(model):
    """The number of times that a logger's epoch brings values over to the host."""
    logger = NormLogger()
    logger.set_params({"verbose": 0, "epochs": 1, "steps": 1})
    logger.set_model(model)
    logger.on_train_begin()
    logger.on_epoch_begin(0)
    original, calls = ops.convert_to_numpy, []
    ops.convert_to_numpy = lambda x: calls.append(x) or original(x)
    try:
        logger.on_epoch_end(0, {})
    finally:
        ops.convert_to_numpy = original
    return len(calls)


def _print_times(title, heading, times, base, limits, unit="ms"):
    table = Table(title=title, title_justify="left")
    for column in (heading, f"{unit}, median", f"to {base}", "limit"):
        table.add_column(column, justify="left" if column == heading else "right")
    medians = {name: statistics.median(own) for name, own in times.items()}
    for name, median in medians.items():
        ratio = median / medians[base]
        scaled = median * {"ms": 1e3, "\u00b5s": 1e6}[unit]
        limit = _verdict(ratio, limits[name]) if name in limits else ""
        table.add_row(name, f"{scaled:.2f}", f"{ratio:.3f}", limit)
    CONSOLE.print(table)


def _print_bytes():
    table = Table(
        title="One SGD update of 4 kernels of 2048 x 2048, counted by XLA",
        title_justify="left",
    )
    for column in ("penalty", "MB moved", "MB scratch", "to L2", "to L1L2"):
        table.add_column(column, justify="left" if column == "penalty" else "right")
    costs = {name: update_cost(penalty) for name, penalty in PENALTIES.items()}
    for name, (moved, scratch) in costs.items():
        table.add_row(
            name,
            f"{moved / 1e6:.1f}",
            f"{scratch / 1e6:.1f}",
            f"{moved / costs['L2'][0]:.3f}",
            f"{moved / costs['L1L2'][0]:.3f}",
        )
    CONSOLE.print(table)


def _print_logger(rounds, quick):
    table = Table(title="An epoch's end with NormLogger", title_justify="left")
    headings = ("kernels", "weights", "logger, ms", "reading once, ms", "transfers")
    for column in (*headings, "limit, ms"):
        table.add_column(column, justify="right")
    models = [mlp(WEISSI()), *(branches(WEISSI(), n) for n in (10, 100, 1000))]
    for model in models[: 3 if quick else None]:
        count = len(model.trainable_variables) // 2
        log, read = map(statistics.median, logger_times(model, rounds))
        table.add_row(
            f"{count}",
            f"{model.count_params():,}",
            f"{1e3 * log:.2f}",
            f"{1e3 * read:.2f}",
            f"{logger_transfers(model)}",
            _verdict(1e3 * log, 1.5e3 * read + count / 100),
        )
    CONSOLE.print(table)
    CONSOLE.print("limit: 1.5 times reading once, and 1 ms per 100 kernels")


def _verdict(measured, limit):
    return f"{limit:.2f}, {'held' if measured < limit else 'MISSED'}"


def _print_balancing(rounds, quick):
    table = Table(title="balance_scales, once it has been called", title_justify="left")
    for column in ("model", "balancing, ms", "a copy of the weights, ms"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name in ["ResNet50", "VGG16", "ResNet152V2"][: 1 if quick else None]:
        model = getattr(keras.applications, name)(weights=None)
        medians = map(statistics.median, balancing_times(model, rounds))
        table.add_row(name, *(f"{1e3 * median:.0f}" for median in medians))
    CONSOLE.print(table)


def main():
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=12, help="of timing")
    parser.add_argument("--quick", action="store_true", help="a few rounds, no 1,000")
    arguments = parser.parse_args()
    quick, rounds = arguments.quick, 2 if arguments.quick else arguments.rounds
    backend = keras.backend.backend()
    CONSOLE.print(f"backend {backend}, Keras {keras.__version__}\n")
    jobs = {
        "mlp": functools.partial(step_time, mlp, 1 if quick else 4),
        "cnn": functools.partial(step_time, cnn, 8 if quick else 32),
    }
    if backend == "torch":
        jobs["small"] = small_kernel_time
    times = job_times(jobs, 1 if quick else 3, rounds)
    for job, title, limits, unit in (
        ("mlp", "A training step of an MLP, 4 x 2048, batch 32", {}, "ms"),
        ("cnn", "A training step of a CNN, batch 32", CNN_LIMITS, "ms"),
        ("small", "A 3 x 3 x 32 x 64 kernel and its gradient", SMALL_LIMITS, "\u00b5s"),
    ):
        if job in jobs:
            _print_times(title, "penalty", times[job], "L1L2", limits, unit)
    title = "A step of the CNN with NormLogger"
    times = logged_step_times(rounds, 20 if quick else 100)
    _print_times(title, "update_freq", times, "none", LOGGER_LIMITS)
    if backend == "jax":
        _print_bytes()
    _print_logger(rounds, quick)
    _print_balancing(3 if quick else 5, quick)


if __name__ == "__main__":
    main()
