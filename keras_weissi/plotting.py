"""Plots of the norms. Matplotlib is imported only when one is drawn."""

from __future__ import annotations

import csv
import io
import os
from typing import TYPE_CHECKING

import numpy as np

from keras_weissi._utils.validation import invalid

if TYPE_CHECKING:
    import keras
    from matplotlib.axes import Axes

    from keras_weissi.callbacks.norm_logger import NormLogger

__all__ = ["plot_norms"]

# With more kernels than this, the legend names only the first and the last.
_MAX_NAMES = 12
_MAX_LETTERS = 32


def plot_norms(
    source: NormLogger
    | str
    | os.PathLike
    | keras.callbacks.History
    | dict[str, list[float]],
    ax: Axes | None = None,
) -> Axes:
    """Draws the norm of each kernel over the epochs, and the product of the norms.

    Both are on log axes. The product, a dashed line, has the axis on the right.

    Args:
        source: A `NormLogger`; or the `keras.callbacks.History` that `fit` returned
            when a `NormLogger` was among its callbacks, or its `history` dict; or the
            path of a CSV file, written by `NormLogger.to_csv` or by a
            `keras.callbacks.CSVLogger` that came after a `NormLogger`.
        ax: `matplotlib.axes.Axes` to draw on. `plt.subplots(1, 2,
            layout="constrained")` leaves room for the axis on the right. Defaults to
            `None`: a new figure.

    Returns:
        The `matplotlib.axes.Axes`.

    Raises:
        ValueError: If `source` holds no norms.
        OSError: If it is a path, and the file cannot be read.
        ImportError: If matplotlib is not installed.

    Examples:
        >>> from keras_weissi.plotting import plot_norms
        >>> history = {"norm/a": [2.0, 1.0], "log_norm_product": [0.69, 0.0]}
        >>> plot_norms(history).figure.savefig("norms.png")  # doctest: +SKIP
    """
    epochs, norms, log_product = _series(source)
    try:
        import matplotlib.pyplot as plt
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ImportError(
            "plot_norms needs matplotlib: pip install matplotlib"
        ) from error
    is_own = ax is None
    if ax is None:
        _, ax = plt.subplots(figsize=(9, 5), layout="constrained")
    product_ax = ax.twinx()
    marker = "." if len(epochs) < 3 else None  # or a single epoch could not be seen

    count = len(norms)
    colors = plt.get_cmap("viridis")(np.linspace(0.0, 0.9, count))
    for i, (name, values) in enumerate(norms.items()):
        label = _shortened(name)
        if count > _MAX_NAMES:
            label = f"{label} ({i + 1} of {count})" if i in (0, count - 1) else None
        ax.plot(
            epochs, _only(values, above=0), color=colors[i], label=label, marker=marker
        )
    _use_log_scale(ax)
    product = _only(log_product) / np.log(10.0)
    if np.nanmax(np.abs(product), initial=0.0) < 300:
        product_ax.plot(epochs, 10.0**product, "k--", marker=marker)
        _use_log_scale(product_ax)
        product_ax.set_ylabel("product of the norms")
    else:  # beyond the range of floats
        product_ax.plot(epochs, product, "k--", marker=marker)
        product_ax.set_ylabel("log10 of the product of the norms")
    ax.plot([], [], "k--", label="product (right axis)")

    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set_xlabel("epoch")
    ax.set_ylabel("Frobenius norm of the kernel")
    ax.grid(alpha=0.3)
    if is_own:
        ax.figure.legend(loc="outside right upper", fontsize="small")
    else:
        ax.legend(loc="best", fontsize="small")  # what is around it is the user's
    return ax


def _shortened(name):
    """Leaves out the middle of a long name: its ends tell where the kernel is."""
    if len(name) <= _MAX_LETTERS:
        return name
    return f"{name[: _MAX_LETTERS // 3]}…{name[-2 * _MAX_LETTERS // 3 :]}"


def _only(values, above=-np.inf):
    """Replaces by gaps what an axis cannot show: infinity and, on a log axis, 0."""
    values = np.asarray(values, "float64")
    return np.where(np.isfinite(values) & (values > above), values, np.nan)


def _use_log_scale(ax):
    """Makes the y axis logarithmic, with labels that can be read."""
    ax.set_yscale("log")
    low, high = np.log10(ax.get_ylim())
    # Widen the axis, so that a change of a few percent looks small.
    missing = max(0.0, 0.7 - (high - low)) / 2
    ax.set_ylim(10.0 ** (low - missing), 10.0 ** (high + missing))
    ax.yaxis.set_major_formatter("{x:,g}")
    if high - low < 3:  # there is room for more than powers of ten
        digits = "123456789" if high - low < 1 else "25"
        ax.yaxis.set_minor_formatter(
            lambda x, _: f"{x:,g}" if f"{x:e}"[0] in digits else ""
        )


def _series(source):
    """Returns the epochs, the norms by name, and the logs of their products."""
    try:
        if isinstance(source, (str, os.PathLike)):
            rows = _read_csv(source)
        else:
            rows = getattr(source, "record", None) or _rows_of_history(source)
        keys = dict.fromkeys(key for row in rows for key in row)
        names = [key for key in keys if key.startswith("norm/")]
        if not (names and {"epoch", "log_norm_product"} <= keys.keys()):
            raise ValueError("it has no norms")
        rows = _placed_by_step(rows) if "step" in keys else _placed_by_epoch(rows)
    except (ValueError, csv.Error) as error:
        expected = (
            "a NormLogger after a fit, the History of a fit with a NormLogger among "
            "its callbacks, or a CSV file of `NormLogger.to_csv` or of a CSVLogger "
            f"that came after a NormLogger ({error})"
        )
        raise invalid("source", expected, source) from None

    def column(key):
        return [row.get(key, np.nan) for _, row in rows]

    norms = {name.removeprefix("norm/"): column(name) for name in names}
    return [epoch for epoch, _ in rows], norms, column("log_norm_product")


def _read_csv(path):
    """Reads the norms from the complete rows of a CSV file."""
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        text = file.read()
    # A process that was killed while it wrote may have left a part of a line.
    whole = text[: text.rfind("\n") + 1]
    lines = csv.reader(io.StringIO(whole, newline=""))
    header = next(lines, [])
    return [
        {
            key: int(cell) if key in ("epoch", "step") else _number(cell)
            for key, cell in zip(header, line, strict=True)
            if key in ("epoch", "step") or _is_of_norms(key)
        }
        for line in lines
        if len(line) == len(header)
    ]


def _is_of_norms(key):
    return key == "log_norm_product" or key.startswith("norm/")


def _number(cell):
    try:
        return float(cell)
    except ValueError:  # such as the "NA" of a CSVLogger for a value that is missing
        return np.nan


def _rows_of_history(source):
    """Returns the rows that a `CSVLogger` would have written for a history."""
    history = getattr(source, "history", source)
    if not isinstance(history, dict):
        return []
    columns = {key: values for key, values in history.items() if _is_of_norms(key)}
    rows = list(zip(*columns.values(), strict=True))
    epochs = getattr(source, "epoch", ())
    if len(epochs) != len(rows):
        epochs = range(len(rows))
    return [
        {"epoch": epoch, **dict(zip(columns, row, strict=True))}
        for epoch, row in zip(epochs, rows, strict=True)
    ]


def _placed_by_epoch(rows):
    """Pairs rows with the epochs completed, where `epoch` counts from 0.

    If an epoch was repeated after a kill, its last row is used. Epoch 0 starts a new
    run, which is drawn after the previous one.
    """
    placed = {}
    start = end = 0
    for row in rows:
        if row["epoch"] == 0:
            start = end
        end = start + row["epoch"] + 1
        placed[end] = row
    return sorted(placed.items())


def _placed_by_step(rows):
    """Pairs rows of a record with epochs, rows within an epoch by their step.

    A run that begins with epoch 0 continues where the previous one ended.
    """
    knots: dict[int, int] = {}  # from the step to the epoch, at the ends of epochs
    start = end = 0
    for row in rows:
        if start + row["epoch"] < end:
            start = end - row["epoch"]
        if not knots or start + row["epoch"] > end:
            end = start + row["epoch"]
            knots[row["step"]] = end
    steps = [row["step"] for row in rows]
    places = np.interp(steps, list(knots), list(knots.values()))
    return list(zip(places, rows, strict=True))
