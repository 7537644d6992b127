"""The figures of the report."""

import io

import numpy as np
from matplotlib import pyplot as plt
from PIL import Image

from evidence.report.limits import limit
from evidence.report.statistics import (
    ACCURACY,
    BALANCED_L2,
    DISTANCE,
    FORMS,
    REFERENCE,
)
from evidence.runs import NOISE, PGD_EPSILONS
from evidence.tasks import TASKS, sizes

COLORS = {"weissi": "tab:red", BALANCED_L2: "tab:blue", "l2": "tab:gray"}


def draw_all(evidence, folder):
    """Draws a figure for each setting, `summary.png` and `cliff.png`.

    Args:
        evidence: `evidence.report.statistics.Evidence`.
        folder: `pathlib.Path`.
    """
    plt.switch_backend("Agg")
    folder.mkdir(exist_ok=True)
    for task, optimizer in evidence.settings:
        _save(
            _draw_setting(evidence, (task, optimizer)), folder / f"{task}_{optimizer}"
        )
    needed = {REFERENCE, BALANCED_L2, *FORMS}
    compared = [s for s in evidence.settings if needed <= set(evidence.methods(s))]
    if compared:
        _save(_draw_summary(evidence, compared), folder / "summary")
        _save(_draw_cliff(evidence, compared), folder / "cliff")


def _draw_setting(evidence, setting):
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), layout="constrained")
    (attacked, noisy), (norms, gradients) = axes
    colors = plt.get_cmap("tab10")
    for i, method in enumerate(evidence.methods(setting)):
        finals = evidence.finals(setting, method)
        style = {"color": colors(i), "label": method, "marker": "."}
        for ax, name, levels in (
            (attacked, "pgd", PGD_EPSILONS),
            (noisy, "noise", NOISE),
        ):
            keys = [ACCURACY, *(f"{name}_{level}" for level in levels)]
            values = np.mean([[row[key] for key in keys] for row in finals], axis=0)
            ax.plot((0, *levels), 100 * values, **style)
        epochs = finals[0]["curves"]["epoch"]
        for ax, key in ((norms, "log_norm"), (gradients, "input_gradient")):
            curves = [row["curves"][key] for row in finals]
            ax.plot(epochs, np.mean(curves, axis=0), **style)
    attacked.set(xlabel="ε of PGD, maximum norm", ylabel="test accuracy, %")
    noisy.set(xlabel="standard deviation of Gaussian noise", ylabel="test accuracy, %")
    norms.set(xlabel="epoch", ylabel="Σ log ‖W‖, bounds the log gradient")
    gradients.set(xlabel="epoch", ylabel="gradient of the true logit", yscale="log")
    for ax in axes.flat:
        ax.grid(alpha=0.3)
    figure.suptitle(", ".join(setting))
    handles, labels = attacked.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure


def _draw_summary(evidence, settings):
    figure, axes = plt.subplots(
        1, 2, figsize=(11, 7), sharey=True, layout="constrained"
    )
    places = np.arange(len(settings))[::-1]
    for ax, measure in zip(axes, (ACCURACY, DISTANCE), strict=True):
        for label, offset in (("weissi", 0.15), (BALANCED_L2, -0.15)):
            compared = [
                evidence.against(
                    setting,
                    evidence.picked(setting) if label == "weissi" else label,
                    measure,
                )
                for setting in settings
            ]
            scale = [100 / (1 if measure == ACCURACY else c.base) for c in compared]
            ax.errorbar(
                [c.difference * s for c, s in zip(compared, scale, strict=True)],
                places + offset,
                xerr=[c.error * s for c, s in zip(compared, scale, strict=True)],
                fmt="o",
                color=COLORS[label],
                label={
                    "weissi": "WEISSI, the form that validation chose",
                    BALANCED_L2: "L2 with ScaleBalancer",
                }[label],
            )
        ax.axvline(0, color="black", linewidth=1)
        ax.grid(axis="x", alpha=0.3)
        ax.set_xscale("symlog", linthresh=1 if measure == ACCURACY else 10)
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:+g}" if x else "0")
    ticks = {0: (-20, -5, -1, -0.5, 0, 0.5, 1, 2), 1: (-50, -20, -10, -5, 0, 5, 10, 20)}
    for i, ax in enumerate(axes):
        ax.set_xticks(ticks[i], minor=False)
        ax.set_xticks([], minor=True)
    axes[0].set(xlabel="test accuracy, points more than L2 (scale not linear)")
    axes[1].set(xlabel="DeepFool's perturbation, % more than L2 (scale not linear)")
    axes[0].set_yticks(places, [", ".join(setting) for setting in settings])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2)
    return figure


def _draw_cliff(evidence, settings):
    methods = ("weissi", "weissi-balanced", "l2")
    kinds = ("10 classes, clean labels", "10 classes, wrong labels", "2 or 3 classes")
    figure, axes = plt.subplots(
        3, 3, figsize=(13, 10), sharey="row", layout="constrained"
    )
    colors = plt.get_cmap("tab10")
    for row, kind in zip(axes, kinds, strict=True):
        shown = [s for s in settings if _kind(s[0]) == kind]
        tasks = list(dict.fromkeys(task for task, _ in shown))
        for ax, method in zip(row, methods, strict=True):
            for task, optimizer in shown:
                tried = evidence.searched((task, optimizer), method)
                unit = 1.0 if method == "l2" else limit(task)
                ax.plot(
                    [strength / unit for strength in tried],
                    [100 * accuracy for accuracy, _ in tried.values()],
                    "-" if optimizer == "sgd" else "--",
                    marker=".",
                    color=colors(tasks.index(task)),
                    label=f"{task}, {optimizer}",
                )
            ax.set_xscale("log")
            ax.grid(alpha=0.3)
            if method != "l2":
                ax.axvline(1, color="black", linewidth=1)
                ax.set_xlim(1e-3, 30)
        row[0].set_ylabel(f"{kind}\nvalidation accuracy, %")
        row[0].legend(fontsize="small", loc="lower left")
    for ax, method in zip(axes[0], methods, strict=True):
        ax.set_title(method)
    for ax, method in zip(axes[-1], methods, strict=True):
        ax.set_xlabel("λ" if method == "l2" else "λ / largest_log_norm(classes)")
    return figure


def _kind(task):
    if sizes(task).classes < 10:
        return "2 or 3 classes"
    return f"10 classes, {'wrong' if TASKS[task].noise else 'clean'} labels"


def _save(figure, path):
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=80)
    plt.close(figure)
    # Lines need few colors, and the file is then a third of the size.
    image = Image.open(drawn).convert("RGB").quantize(255)
    image.save(path.with_suffix(".png"), optimize=True)
