"""Draws the pictures of the documentation that no example or benchmark draws.

    python docs/pictures.py
    python docs/pictures.py --out somewhere

The curves come from real models and real gradient steps. Before it draws them, the
program compares them with the formulas of `docs/symmetry.md`.
"""

import argparse
import os
import pathlib
import re
import warnings

# TensorFlow and its log of the machine's features are not what this is about.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("MPLBACKEND", "Agg")

import keras
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyBboxPatch

from keras_weissi import (
    WEISSI,
    NormLogger,
    ScaleBalancer,
    regularize,
    scale_groups,
    shift_scales,
)

IMAGES = pathlib.Path(__file__).parent / "images"
# The same files from the same numbers: no random ids, no date, no fonts of the machine.
STYLE = {"svg.hashsalt": "keras_weissi", "svg.fonttype": "path", "font.size": 10}
# Colors that differ in lightness too, of the map that `plot_norms` uses.
PURPLE, BLUE, GREEN = plt.get_cmap("viridis")([0.1, 0.35, 0.6])
GRAY = "#767676"
MEASURED = {"lw": 4, "alpha": 0.6}
FORMULA = {"color": "black", "ls": "--", "lw": 1}


# ---- The numbers -----------------------------------------------------------------


def make_chain(widths, seed=0):
    """Returns a ReLU network of dense layers without biases, with NumPy's weights."""
    layers = [
        keras.layers.Dense(
            width,
            "relu" if i < len(widths) - 1 else None,
            use_bias=False,
            name=f"layer{i}",
        )
        for i, width in enumerate(widths[1:], start=1)
    ]
    model = keras.Sequential([keras.Input(widths[:1]), *layers])
    rng = np.random.default_rng(seed)
    model.set_weights(
        [rng.normal(size=w.shape) / np.sqrt(w.shape[0]) for w in model.weights]
    )
    return model


def norms_of(model):
    """Returns the Frobenius norms of the kernels."""
    return [float(np.linalg.norm(w)) for w in model.get_weights()]


def along_the_orbit(count=41):
    """Shifts a factor from one layer to the other, and measures both penalties.

    Returns:
        Dict of arrays of `count` elements: the factors `gamma`, `l2`, `weissi`, and the
        largest relative change of an output, `moved`. And `norms`, those at 1.
    """
    model = make_chain([16, 64, 4])
    x = np.random.default_rng(1).normal(size=(100, 16)).astype("float32")
    norms, outputs = norms_of(model), model.predict(x, verbose=0)
    gammas = np.geomspace(1 / 8, 2, count)
    measured = {"gamma": gammas, "l2": [], "weissi": [], "moved": []}
    now = 1.0
    for gamma in gammas:
        shift_scales(model, {"layer1": gamma / now, "layer2": now / gamma})
        now = gamma
        for key, penalty in (("l2", keras.regularizers.L2(1.0)), ("weissi", WEISSI(1))):
            values = [penalty(layer.kernel) for layer in model.layers]
            measured[key].append(float(keras.ops.convert_to_numpy(sum(values))))
        moved = model.predict(x, verbose=0) - outputs
        measured["moved"].append(abs(moved).max() / abs(outputs).max())
    return {"norms": norms, **{k: np.array(v) for k, v in measured.items()}}


def l2_on_the_orbit(norms, gamma):
    """The formula: the L2 penalty of two layers after a shift by `gamma`."""
    return (gamma * norms[0]) ** 2 + (norms[1] / gamma) ** 2


def train(model, x, y, loss, rate, steps, every, callbacks=()):
    """Takes gradient steps, all on the same rows.

    Returns:
        The times, which are rate times steps, and the norms: an array with one row for
        each time and one column for each layer.
    """
    names = [layer.name for layer in model.layers]
    logger = NormLogger(names, update_freq=every)
    model.compile(keras.optimizers.SGD(rate), loss)
    with warnings.catch_warnings():
        # The logger says that a layer collapses, which is what is to be shown.
        warnings.filterwarnings("ignore", message="(?s).*min_norm")
        model.fit(
            np.tile(x, (steps, 1)),
            np.tile(y, (steps, 1)),
            batch_size=len(x),
            shuffle=False,
            verbose=0,
            callbacks=[*callbacks, logger],
        )
    times = [row["step"] * rate for row in logger.record]
    norms = [[row[f"norm/{name}"] for name in names] for row in logger.record]
    return np.array(times), np.array(norms)


def without_data(y, outputs):
    """A loss without a gradient, so that the penalty alone acts on the weights."""
    return 0.0 * keras.ops.mean(outputs, axis=-1)


def under_the_log_term(is_balanced, log_norm=0.1, steps=2000):
    """Lets the log term alone act on three layers of norms 3, 2 and 1.

    Returns:
        The times, in units of `1 / log_norm`, and the norms.
    """
    model = make_chain([8, 8, 8, 8])
    for layer, norm in zip(model.layers, (3.0, 2.0, 1.0), strict=True):
        kernel = layer.get_weights()[0]
        layer.set_weights([kernel / np.linalg.norm(kernel) * norm])
    regularize(model, WEISSI(log_norm))
    rows = np.ones((1, 8), "float32")
    balancer = [ScaleBalancer()] if is_balanced else []
    times, norms = train(
        model, rows, rows, without_data, 1e-3 / log_norm, steps, 40, balancer
    )
    return log_norm * times, norms


def norm_under_the_log_term(norm, time, min_norm=0.1):
    """The formula: the squared norm falls by 2 per time, then decays below the floor.

    Args:
        norm: float, at time 0, above the floor.
        time: array, in units of `1 / log_norm`.
        min_norm: float, the floor.
    """
    floor = min_norm**2
    square = norm**2 - 2 * time
    since = np.maximum(time - (norm**2 - floor) / 2, 0.0)
    return np.sqrt(np.where(since > 0, floor * np.exp(-2 * since / floor), square))


def out_of_balance(regularizer, rate=0.005, steps=1200):
    """Trains two layers that start out of balance.

    Returns:
        The times, and the difference of the squared norms.
    """
    model = make_chain([8, 32, 2])
    shift_scales(model, {"layer1": 1.5, "layer2": 1 / 1.5})
    if regularizer is not None:
        regularize(model, regularizer)
    rng = np.random.default_rng(2)
    x = rng.normal(size=(64, 8)).astype("float32")
    y = np.abs(x[:, :2]) + x[:, 2:4]
    times, norms = train(model, x, y, "mse", rate, steps, 20)
    return times, norms[:, 0] ** 2 - norms[:, 1] ** 2


def difference_under_l2(start, time, strength):
    """The formula: how the difference of squared norms decays under `L2(strength)`."""
    return start * np.exp(-4 * strength * time)


# ---- The drawings ----------------------------------------------------------------


def blank(width, height):
    """Returns a figure and axes without anything, in units of an inch."""
    figure = plt.figure(figsize=(width, height))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    return figure, ax


def box(ax, x, y, text, size=(0.95, 0.5), color="black", fill="white"):
    """Draws a box around (x, y) with a text in it."""
    width, height = size
    corner = x - width / 2, y - height / 2
    style = "round,pad=0,rounding_size=0.08"
    ax.add_patch(
        FancyBboxPatch(
            corner, width, height, style, facecolor=fill, edgecolor=color, lw=1.2
        )
    )
    ax.text(x, y, text, ha="center", va="center", color=color)


def arrow(ax, points, text="", color="black", place=(0.0, 0.14), at=None):
    """Draws a line through points that ends in an arrow, with a text at its middle."""
    *first, last = points
    lw = 2.4
    xs, ys = zip(*first, strict=True)
    ax.plot(xs, ys, color=color, lw=lw, solid_capstyle="round")
    shape = {"arrowstyle": "-|>", "color": color, "lw": lw, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", last, first[-1], arrowprops=shape)
    x, y = at or np.mean(points, axis=0)
    ax.text(x + place[0], y + place[1], text, ha="center", va="center", color=color)


def draw_chain():
    """Two layers: which weights and tensors a shift by gamma multiplies."""
    figure, ax = blank(8, 1.8)
    y = 0.9
    size = (1.3, 0.62)
    box(ax, 2.0, y, "$γ\\,W_1$", size, PURPLE)
    box(ax, 4.0, y, "ReLU", (0.9, 0.62))
    box(ax, 6.0, y, "$W_2\\,/\\,γ$", size, PURPLE)
    for x, text, color in ((2.0, "$+\\;γ\\,b_1$", PURPLE), (6.0, "$+\\;b_2$", GRAY)):
        ax.text(x, y - 0.5, text, ha="center", va="center", color=color)
    above = (0, 0.18)
    arrow(ax, [(0.3, y), (1.35, y)], "$x$", GRAY, above)
    arrow(ax, [(2.65, y), (3.55, y)], "$× γ$", PURPLE, above)
    arrow(ax, [(4.45, y), (5.35, y)], "$× γ$", PURPLE, above)
    arrow(ax, [(6.65, y), (7.7, y)], "$y$", GRAY, above)
    for x, text in ((0.85, "the same input"), (7.15, "the same output")):
        ax.text(x, y + 0.62, text, ha="center", va="center", color=GRAY)
    text = "multiplied by γ on the way"
    ax.text(4.0, y + 0.62, text, ha="center", va="center", color=PURPLE)
    return figure


def residual_block():
    """Returns the model on the left side of `draw_groups`."""
    x = inputs = keras.Input((4,))
    x = keras.layers.Dense(4, name="stem")(x)
    y = keras.layers.Dense(4, "relu", name="a")(x)
    y = keras.layers.Dense(4, name="b")(y)
    x = keras.layers.Add(name="sum")([x, y])
    return keras.Model(inputs, keras.layers.Dense(2, name="logits")(x))


def attention_head():
    """Returns the model on the right side of `draw_groups`."""
    inputs = keras.Input((6, 4))
    q, k, v = (keras.layers.Dense(4, name=name)(inputs) for name in ("q", "k", "v"))
    scores = keras.layers.Dot((2, 2), name="scores")([q, k])
    weights = keras.layers.Softmax(name="softmax")(scores)
    mean = keras.layers.Dot((2, 1), name="mean")([weights, v])
    return keras.Model(inputs, keras.layers.Dense(4, name="out")(mean))


def scales_of(model, names):
    """Returns random factors of the outputs of layers, of all that the model allows."""
    groups = scale_groups(model)
    z = np.random.default_rng(0).normal(size=groups.dimension)
    factors = np.exp(groups.directions @ z)
    return [
        next(factors[group.index] for group in groups.groups if name in group.layers)
        for name in names
    ]


def check_groups():
    """Checks that the factors in `draw_groups` are those that the package finds."""
    block, head = residual_block(), attention_head()
    assert [scale_groups(model).dimension for model in (block, head)] == [2, 2]
    stem, a, total, logits = scales_of(block, ["stem", "a", "sum", "logits"])
    assert stem == total != a and logits == 1
    names = ["q", "k", "scores", "softmax", "v", "mean", "out"]
    q, k, scores, weights, v, mean, out = scales_of(head, names)
    assert scores == weights == out == 1 and v == mean != q != 1
    np.testing.assert_allclose(q * k, 1.0)


def draw_groups():
    """A residual block and an attention head, with the factors of their tensors."""
    check_groups()
    figure, ax = blank(8, 4.7)
    for x, text in ((1.75, "A residual block"), (5.85, "Attention, one head")):
        ax.text(x, 4.45, text, ha="center", va="center", weight="bold")
    ax.plot([3.55, 3.55], [0.45, 4.5], color=GRAY, lw=0.6)

    left = 2.1
    tiny = (1.12, 0.36)
    side = (0.3, 0)
    rows = {"stem": 3.75, "a": 2.85, "b": 1.95, "sum": 1.35, "logits": 0.6}
    arrow(ax, [(left, 4.25), (left, 3.93)], "× 1", GRAY, side)
    arrow(ax, [(left, 3.57), (left, 3.03)], "× s", PURPLE, side, (left, 3.4))
    arrow(ax, [(left, 2.67), (left, 2.13)], "× t", GREEN, side)
    arrow(ax, [(left, 1.77), (left, 1.5)], "× s", PURPLE, side)
    arrow(ax, [(left, 1.2), (left, 0.78)], "× s", PURPLE, side)
    arrow(ax, [(left, 0.42), (left, 0.1)], "× 1", GRAY, side)
    skip = [(left, 3.3), (0.9, 3.3), (0.9, 1.35), (left - 0.15, 1.35)]
    arrow(ax, skip, "× s", PURPLE, (-0.3, 0), (0.9, 2.3))
    box(ax, left, rows["stem"], "stem × s", tiny)
    box(ax, left, rows["a"], "a × t/s", tiny)
    box(ax, left, rows["b"], "b × s/t", tiny)
    box(ax, left, rows["logits"], "logits × 1/s", tiny)
    circle = plt.Circle((left, rows["sum"]), 0.15, fc="white", ec="black", lw=1.2)
    ax.add_patch(circle)
    ax.text(left, rows["sum"], "+", ha="center", va="center")

    q, k, v = 4.35, 5.55, 7.15
    middle = (q + k) / 2
    for x in (q, k, v):
        arrow(ax, [(x, 4.1), (x, 3.78)], "", GRAY)
    ax.plot([q, v], [4.1, 4.1], color=GRAY, lw=2.4)
    ax.text(5.85, 4.22, "× 1", ha="center", va="center", color=GRAY)
    arrow(ax, [(q, 3.42), (q, 2.93), (middle - 0.2, 2.93)], "× s", PURPLE, at=(q, 3.05))
    ax.texts[-1].set_position((q - 0.28, 3.15))
    arrow(ax, [(k, 3.42), (k, 2.93), (middle + 0.2, 2.93)], "× 1/s", PURPLE)
    ax.texts[-1].set_position((k + 0.38, 3.15))
    arrow(ax, [(middle, 2.73), (middle, 2.33)], "× 1", GRAY, (0.3, 0.02))
    arrow(ax, [(middle, 1.97), (middle, 1.35), (v - 0.2, 1.35)], "× 1", GRAY)
    ax.texts[-1].set_position((6.0, 1.5))
    arrow(ax, [(v, 3.42), (v, 1.55)], "× t", GREEN, (0.3, 0))
    arrow(ax, [(v, 1.15), (v, 0.78)], "× t", GREEN, (0.3, 0))
    arrow(ax, [(v, 0.42), (v, 0.1)], "× 1", GRAY, (0.3, 0))
    box(ax, q, 3.6, "query × s", tiny)
    box(ax, k, 3.6, "key × 1/s", tiny)
    box(ax, v, 3.6, "value × t", tiny)
    box(ax, middle, 2.15, "softmax", tiny)
    box(ax, v, 0.6, "out × 1/t", tiny)
    for x, y in ((middle, 2.93), (v, 1.35)):
        ax.add_patch(plt.Circle((x, y), 0.2, fc="white", ec="black", lw=1.2))
        ax.text(x, y, "•", ha="center", va="center")
    return figure


def draw_orbit():
    """L2 and WEISSI along the orbit."""
    data = along_the_orbit()
    (a, b), gamma = data["norms"], data["gamma"]
    np.testing.assert_allclose(data["l2"], l2_on_the_orbit((a, b), gamma), rtol=1e-4)
    np.testing.assert_allclose(data["weissi"], np.log(a * b), rtol=1e-4)
    assert data["moved"].max() < 1e-5
    best = np.sqrt(b / a)
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for ax, values, color, balanced, start in (
        (axes[0], data["l2"], PURPLE, 2 * a * b, a**2 + b**2),
        (axes[1], data["weissi"], GREEN, np.log(a * b), np.log(a * b)),
    ):
        ax.plot(gamma, values, color=color, lw=2)
        for x, y, text in ((best, balanced, "balanced"), (1, start, "as it was")):
            ax.plot(x, y, "o", color="black")
            # To the right of the curve where it rises.
            is_beside = y > balanced
            place, side = ((9, -6), "left") if is_beside else ((0, 9), "center")
            ax.annotate(text, (x, y), place, textcoords="offset points", ha=side)
        ax.set_xscale("log")
        ax.set_xticks([1 / 8, 1 / 4, 1 / 2, 1, 2], ["1/8", "1/4", "1/2", "1", "2"])
        ax.minorticks_off()
        ax.set_xlabel("γ, the factor of the first layer")
        ax.grid(alpha=0.3)
    axes[0].axhline(2 * a * b, **FORMULA)
    axes[0].text(2, 2 * a * b - 5, "2 ‖W₁‖ ‖W₂‖", ha="right", va="top")
    axes[0].set(title="L2", ylabel="sum of the squared norms", ylim=(0, None))
    axes[1].set(title="WEISSI", ylabel="sum of the log norms", ylim=(0, 5))
    return figure


def draw_collapse():
    """Norms of three layers under the log term alone, with and without balancing."""
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.1), layout="constrained")
    for is_balanced, color, title in (
        (False, PURPLE, "as they are"),
        (True, GREEN, "balanced at the start"),
    ):
        times, norms = under_the_log_term(is_balanced)
        starts = [6 ** (1 / 3)] * 3 if is_balanced else [3, 2, 1]
        exact = np.transpose([norm_under_the_log_term(s, times) for s in starts])
        np.testing.assert_allclose(norms, exact, atol=0.02)
        ax = axes[int(is_balanced)]
        # Balanced, the three lines are one.
        shown = slice(1) if is_balanced else slice(3)
        ax.plot(times, norms[:, shown], color=color, **MEASURED)
        ax.plot(times, exact[:, shown], **FORMULA)
        ax.set(title=title, ylabel="norm", ylim=(0, 3.2), yticks=range(4))
        product = norms.prod(axis=1)
        axes[2].plot(times, product, color=color, label=title, **MEASURED)
        axes[2].plot(times, exact.prod(axis=1), **FORMULA)
    for x, y, text in (
        (1.2, 2.68, "layer 1"),
        (1.2, 1.4, "layer 2"),
        (0.4, 0.7, "layer 3"),
    ):
        axes[0].text(x, y, text)
    axes[1].text(0.9, 1.45, "all three layers")
    axes[2].plot([], [], label="formula", **FORMULA)
    axes[2].legend(fontsize="small")
    axes[2].set(title="both", ylabel="product of the norms", ylim=(0, 6.4))
    for ax in axes:
        ax.set(xlabel="λ · time", xlim=(0, 2), xticks=(0, 0.5, 1, 1.5, 2))
        ax.grid(alpha=0.3)
    return figure


def draw_imbalance(strength=0.1):
    """The difference of squared norms under no penalty, L2 and WEISSI."""
    figure, ax = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
    for name, regularizer, decay, style in (
        ("no penalty", None, 0.0, {"color": BLUE, "lw": 8, "alpha": 0.35}),
        ("WEISSI", WEISSI(strength), 0.0, {"color": GREEN, **MEASURED}),
        (
            "L2",
            keras.regularizers.L2(strength),
            strength,
            {"color": PURPLE, **MEASURED},
        ),
    ):
        times, found = out_of_balance(regularizer)
        exact = difference_under_l2(found[0], times, decay)
        np.testing.assert_allclose(found, exact, rtol=0.03)
        ax.plot(times, found / found[0], label=name, **style)
        ax.plot(times, exact / found[0], **FORMULA)
    ax.plot([], [], label="formula", **FORMULA)
    ax.set_yscale("log")
    ax.set_yticks([0.1, 0.2, 0.5, 1.0], ["0.1", "0.2", "0.5", "1"])
    ax.minorticks_off()
    ax.set(xlabel="time: learning rate × steps", ylabel="‖W₁‖² − ‖W₂‖², start = 1")
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")
    return figure


PICTURES = {
    "chain": draw_chain,
    "orbit": draw_orbit,
    "collapse": draw_collapse,
    "groups": draw_groups,
    "imbalance": draw_imbalance,
}


def save(draw, path):
    """Draws a picture and writes it as a small SVG: two decimals, no indentation."""
    with plt.rc_context(STYLE):
        draw().savefig(path, metadata={"Date": None, "Creator": None})

    def rounded(line):
        return re.sub(r"\d+\.\d{3,}", lambda x: f"{float(x[0]):.2f}", line[0])

    text = re.sub(r' d="[^"]*"', rounded, path.read_text(encoding="utf-8"))
    path.write_text(re.sub(r"(?m)^ +| +$", "", text), encoding="utf-8")


def main():
    """Draws all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--out", type=pathlib.Path, default=IMAGES, help="folder for the pictures"
    )
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        save(draw, folder / f"{name}.svg")
        print(folder / f"{name}.svg")


if __name__ == "__main__":
    main()
