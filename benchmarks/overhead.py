"""What the regularizer and the logger cost, on the backend that is set.

    KERAS_BACKEND=jax python benchmarks/overhead.py

It takes about three minutes. Times are taken in one run, the variants interleaved in
random order. Each round gives a ratio to Keras's `L1L2`, and the table their median: on
a busy machine the ratios hold where the times, of which the table gives the median too,
do not. On JAX, the bytes are XLA's own count, the same on every run.
"""

import argparse
import random
import statistics
import time

import keras
import numpy as np
from keras import layers, ops
from rich.console import Console
from rich.progress import track
from rich.table import Table

from keras_weissi import WEISSI, NormLogger
from keras_weissi._utils.backend import compile_function
from keras_weissi.model.kernels import kernels

CONSOLE = Console()
# Of a training step with a logger that records every 10 to one without.
LARGEST_RATIO = 1.03
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


def step_times(make_model, rounds, steps, batch_size=32):
    """Seconds per training step of each penalty, a list with one entry a round."""
    models = {}
    for name, regularizer in PENALTIES.items():
        models[name] = make_model(regularizer)
        models[name].compile(keras.optimizers.SGD(1e-3), "mse")
    rng = np.random.default_rng(0)
    some = models["none"]
    x = rng.normal(size=(batch_size * steps, *some.input_shape[1:])).astype("float32")
    y = rng.normal(size=(batch_size * steps, *some.output_shape[1:])).astype("float32")
    times = {name: [] for name in models}
    for turn in track(range(rounds + 1), "timing", console=CONSOLE, transient=True):
        for name in random.sample(list(models), len(models)):
            start = time.perf_counter()
            models[name].fit(x, y, batch_size, shuffle=False, verbose=0)
            if turn:  # the first compiles
                times[name].append((time.perf_counter() - start) / steps)
    return times


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


def logged_step_times(rounds, steps, update_freq=10, batch_size=32):
    """Seconds per training step of a CNN without and with a logger, per round.

    One model takes all steps, so that both do the same work. The order within a round
    is drawn at random.
    """
    model = cnn(WEISSI(0.01))
    model.compile(keras.optimizers.SGD(1e-3), "mse")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch_size * steps, *model.input_shape[1:])).astype("float32")
    y = rng.normal(size=(batch_size * steps, *model.output_shape[1:])).astype("float32")
    variants = {
        # Draws nothing with verbose=0, as the bar that Keras itself would add.
        "none": keras.callbacks.ProgbarLogger(),
        "epoch": NormLogger(),
        update_freq: NormLogger(update_freq=update_freq),
    }
    times = {name: [] for name in variants}
    for turn in track(range(rounds + 1), "timing", console=CONSOLE, transient=True):
        for name in random.sample(list(variants), len(variants)):
            callbacks = [variants[name]]
            start = time.perf_counter()
            model.fit(x, y, batch_size, shuffle=False, verbose=0, callbacks=callbacks)
            if turn:  # the first compiles
                times[name].append((time.perf_counter() - start) / steps)
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


def _print_steps(title, times):
    table = Table(title=title, title_justify="left")
    for column in ("penalty", "ms per step", "ratio to L1L2 in a round"):
        table.add_column(column, justify="left" if column == "penalty" else "right")
    for name, own in times.items():
        ratios = [t / base for t, base in zip(own, times["L1L2"], strict=True)]
        table.add_row(
            name,
            f"{1e3 * statistics.median(own):.2f}",
            f"{statistics.median(ratios):.3f}",
        )
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
    if limit is None:
        return ""
    return f"{limit:.2f}, {'held' if measured < limit else 'MISSED'}"


def _print_logged_steps(rounds, steps):
    title = "A training step of the CNN with NormLogger, batch 32"
    table = Table(title=title, title_justify="left")
    columns = ("update_freq", "ms per step", "ratio to none in a round", "quartiles")
    for column in (*columns, "limit"):
        table.add_column(column, justify="right")
    times = logged_step_times(rounds, steps)
    for name, own in times.items():
        ratios = [t / base for t, base in zip(own, times["none"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        table.add_row(
            str(name),
            f"{1e3 * statistics.median(own):.2f}",
            f"{middle:.3f}",
            f"{low:.3f} to {high:.3f}",
            _verdict(middle, LARGEST_RATIO if name == 10 else None),
        )
    CONSOLE.print(table)


def main():
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=25, help="rounds of timing")
    parser.add_argument("--quick", action="store_true", help="a few rounds, no 1,000")
    arguments = parser.parse_args()
    rounds = 3 if arguments.quick else arguments.rounds
    steps = 2 if arguments.quick else 8
    CONSOLE.print(f"backend {keras.backend.backend()}, Keras {keras.__version__}\n")
    times = step_times(mlp, rounds, steps)
    _print_steps("A training step of an MLP, 4 x 2048, batch 32", times)
    times = step_times(cnn, rounds, 4 * steps)
    _print_steps("A training step of a CNN, 3 convolutions, batch 32", times)
    _print_logged_steps(rounds, 20 if arguments.quick else 200)
    if keras.backend.backend() == "jax":
        _print_bytes()
    _print_logger(rounds, arguments.quick)


if __name__ == "__main__":
    main()
