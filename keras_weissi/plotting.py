"""Pictures. Matplotlib is imported only when one is asked for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from keras_weissi.callbacks.record import read_csv

if TYPE_CHECKING:
    import keras
    from matplotlib.axes import Axes

    from keras_weissi.callbacks.norm_logger import NormLogger

# More lines than this are drawn in one hue, without a name each.
_MAX_NAMED_LINES = 12


def plot_norms(
    source: NormLogger
    | str
    | os.PathLike
    | keras.callbacks.History
    | dict[str, list[float]],
    ax: Axes | None = None,
) -> Axes:
    """Draws the norm of each kernel and their product over the epochs, on a log axis.

    Args:
        source: A `NormLogger`, or the path of its file, or the
            `keras.callbacks.History` that `fit` returned when a `NormLogger` was among
            its callbacks, or its `history` dict.
        ax: `matplotlib.axes.Axes` to draw on, one call for each: it gets a second
            axis on the right, for which `plt.subplots(1, 2, layout="constrained")`
            leaves room. Defaults to `None`: a new figure.

    Returns:
        The `matplotlib.axes.Axes`.

    Raises:
        ValueError: If `source` holds no norms.
        OSError: If it is a path, and cannot be read.
        ImportError: If matplotlib is not installed.

    Example:

    >>> from keras_weissi.plotting import plot_norms
    >>> history = {"norm/a": [2.0, 1.0], "log_norm_product": [0.69, 0.0]}
    >>> plot_norms(history).figure.savefig("norms.png")  # doctest: +SKIP
    """
    epochs, norms, log_product = _series(source)
    try:
        import matplotlib.pyplot as plt
        from matplotlib.ticker import LogFormatter, MaxNLocator
    except ImportError as error:
        raise ImportError(
            "plot_norms needs matplotlib: pip install matplotlib"
        ) from error
    is_own = ax is None
    if ax is None:
        _, ax = plt.subplots(figsize=(8, 5), layout="constrained")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    marker = "." if len(epochs) < 3 else None
    named = len(norms) <= _MAX_NAMED_LINES
    colors = plt.get_cmap("viridis")(np.linspace(0.0, 0.9, len(norms)))
    for color, (name, values) in zip(colors, norms.items(), strict=True):
        ax.plot(
            epochs,
            _positive(values),
            color=color,
            label=name if named else None,
            linewidth=1.5 if named else 0.8,
            marker=marker,
        )
    # The product may be far from the norms, and past the range of floats: it gets an
    # axis of its own, drawn from its logarithm.
    product_ax = ax.twinx()
    product_ax.plot(
        epochs,
        _finite(log_product) / np.log(10.0),
        color="black",
        linestyle="--",
        linewidth=2,
        marker=marker,
    )
    # Less than a decade would make a mountain of a few percent.
    product_ax.set_ylim(_at_least(1.0, product_ax.get_ylim()))
    low, high = product_ax.get_ylim()
    if -3 < low and high < 6 and high - low < 3:
        ticks = np.log10([d * 10.0**k for k in range(-3, 6) for d in (1, 2, 5)])
        product_ax.set_yticks(ticks[(low <= ticks) & (ticks <= high)])
        product_ax.yaxis.set_major_formatter(lambda x, _: _plain(10.0**x))
    else:
        product_ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        product_ax.yaxis.set_major_formatter("$10^{{{x:g}}}$")
    ax.plot([], [], color="black", linestyle="--", label="product (right axis)")
    product_ax.set_ylabel("product of the norms")
    if not named:
        # The first and the last stand for the colors in between.
        first, last = list(norms)[0], list(norms)[-1]
        ax.plot([], [], color=colors[0], label=f"{first} (first of {len(norms)})")
        ax.plot([], [], color=colors[-1], label=f"{last} (last)")
    if not any(np.isfinite(_positive(values)).any() for values in norms.values()):
        ax.set_ylim(0.5, 2.0)  # or there would be no limits for a log axis
    ax.set_yscale("log")
    ax.set_ylim(10.0 ** _at_least(0.3, np.log10(ax.get_ylim())))
    ax.yaxis.set_major_formatter("{x:g}")
    choice = LogFormatter(minor_thresholds=(2, 1))  # of those there is room for
    choice.set_axis(ax.yaxis)
    ax.yaxis.set_minor_formatter(lambda x, _: choice(x) and f"{x:g}")
    ax.set_xlabel("epoch")
    ax.set_ylabel("Frobenius norm of the kernel")
    ax.grid(alpha=0.3)
    if is_own:
        _legend_below(ax)
    else:
        # What is around it is the caller's.
        ax.legend(loc="best", fontsize="small")
    return ax


def _legend_below(ax):
    """Puts the legend below the axes, where it hides no line, and makes room for it."""
    figure = ax.figure
    handles, names = ax.get_legend_handles_labels()
    for columns in range(min(4, len(names)), 0, -1):
        legend = figure.legend(
            handles, names, loc="outside lower center", ncols=columns, fontsize="small"
        )
        if columns == 1 or _part_of_width(legend) <= 1:
            break
        legend.remove()
    letters = max(map(len, names))
    while _part_of_width(legend) > 1:
        letters = int(letters / _part_of_width(legend)) - 1
        for text, name in zip(legend.get_texts(), names, strict=True):
            text.set_text(_shortened(name, letters))
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.2 * (-(-len(names) // columns) - 1))


def _part_of_width(legend):
    return legend.get_window_extent().width / legend.figure.bbox.width


def _shortened(name, letters):
    # The ends of long names tell them apart, and the starts where they come from.
    if len(name) <= letters:
        return name
    return f"{name[: letters // 3]}…{name[len(name) - (letters - letters // 3 - 1) :]}"


def _series(source):
    """Returns the epochs, the norms by name, and the log of their product."""
    if isinstance(source, (str, os.PathLike)):
        rows = read_csv(source, "source")
    else:
        rows = getattr(source, "record", None)
    if rows is not None:
        keys = dict.fromkeys(key for row in rows for key in row)
        history = {key: [row.get(key, np.nan) for row in rows] for key in keys}
    else:
        history = getattr(source, "history", source)
        history = history if isinstance(history, dict) else {}
    names = [key for key in history if key.startswith("norm/") and len(history[key])]
    if not names or "log_norm_product" not in history:
        raise ValueError(
            "Invalid value for argument `source`. Expected a NormLogger after a fit, "
            "its file, or the History of a fit with a NormLogger among its callbacks. "
            f"Received: {source!r}, with keys {list(history)}"
        )
    if rows is not None:
        epochs = _continuous_epochs(rows)
    else:
        count = len(history[names[0]])
        epochs = getattr(source, "epoch", None)
        if epochs is None or len(epochs) != count:
            epochs = np.arange(count)
        epochs = np.asarray(epochs) + 1
    norms = {name.removeprefix("norm/"): history[name] for name in names}
    return epochs, norms, history["log_norm_product"]


def _continuous_epochs(rows):
    """Places every row on one axis of epochs, also those taken between two epochs.

    A second `fit` that counts its epochs from 0 again goes on where the first ended.
    """
    positions = []
    knots: list[tuple] = []
    offset = 0
    for row in rows:
        epoch = row["epoch"] + offset
        if knots and epoch < knots[-1][1]:
            offset += knots[-1][1] - epoch
            epoch = knots[-1][1]
        is_knot = not knots or epoch > knots[-1][1]
        if is_knot:
            knots.append((row["step"], epoch))
        positions.append(epoch if is_knot else None)
    steps, epochs = zip(*knots, strict=True) if knots else ((), ())
    return [
        np.interp(row["step"], steps, epochs) if position is None else position
        for row, position in zip(rows, positions, strict=True)
    ]


def _plain(number):
    return f"{number:,.0f}" if number > 0.9 else f"{number:.4g}"


def _at_least(extent, limits):
    low, high = limits
    missing = max(0.0, extent - (high - low)) / 2
    return np.array([low - missing, high + missing])


def _finite(values):
    values = np.asarray(values, "float64")
    return np.where(np.isfinite(values), values, np.nan)


def _positive(values):
    # A log axis has no place for the norm of a dead kernel: it is a gap.
    values = _finite(values)
    return np.where(values > 0, values, np.nan)
