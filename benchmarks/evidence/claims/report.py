"""The report: tables, pictures and the text, all from the table of runs."""

import collections
import json

import numpy as np
from scipy import stats

from evidence.claims.claims import CLAIMS, decide, interval
from evidence.claims.settings import METHODS, SETTINGS

SHOWN = {"l2+epoch": "L2, balanced", "log": "WEISSI", "log+epoch": "WEISSI, balanced"}
COLORS = {"l2+epoch": "#2a9d8f", "log": "#999999", "log+epoch": "#e76f51"}
MOMENTUM = 0.9


class Finals:
    """The final runs.

    Args:
        rows: list of dicts, of the table of runs.
    """

    def __init__(self, rows):
        self.rows = collections.defaultdict(dict)
        for row in rows:
            if row["stage"] == "final":
                self.rows[row["setting"], row["method"]][int(row["seed"])] = row

    def values(self, setting, method, column="test_accuracy"):
        """Returns a column, one element for each seed."""
        found = self.rows[setting, method]
        return np.array([float(found[seed][column]) for seed in sorted(found)])

    def difference(self, setting, method, than="l2"):
        """Returns differences of test accuracies, in points, one per seed."""
        return 100 * (self.values(setting, method) - self.values(setting, than))

    def has(self, setting, method):
        """Whether there are any."""
        return bool(self.rows.get((setting, method)))


def with_interval(values, digits=1):
    """Writes a mean and its 95 % interval."""
    low, high = interval(values)
    mean = np.mean(values)
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def write_report(rows, folder):
    """Writes `VERDICT.md` and its pictures.

    Args:
        rows: list of dicts, of the table of runs.
        folder: `pathlib.Path`.
    """
    finals = Finals(rows)
    differences = [
        finals.difference(c.setting, c.method, c.than)
        for c in CLAIMS
        if finals.has(c.setting, c.method) and finals.has(c.setting, c.than)
    ]
    is_whole = len(differences) == len(CLAIMS)
    verdicts = decide(differences) if is_whole else []
    draw_settings(finals, folder / "verdict.png")
    points = theory(finals)
    draw_theory(points, folder / "theory.png")
    text = [
        "# Does it help?",
        "",
        "![Gains over tuned L2](verdict.png)",
        "",
        *claims_table(verdicts),
        "",
        *sentences(finals),
        "",
        "## All settings",
        "",
        *settings_table(finals),
        "",
        "## All methods",
        "",
        *methods_table(finals),
        "",
        "## When does balancing help?",
        "",
        *theory_text(points, finals),
    ]
    (folder / "VERDICT.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def claims_table(verdicts):
    """Lists the claims and what became of them."""
    yield "| | claim | difference in points | p | |"
    yield "| ---: | --- | ---: | ---: | --- |"
    for n, v in enumerate(verdicts, 1):
        where = SETTINGS[v.claim.setting].label
        yield (
            f"| {n} | {v.claim.text} ({where}) | {v.difference:+.1f} "
            f"[{v.low:+.1f}, {v.high:+.1f}] | {v.p:.2g} | "
            f"{'**holds**' if v.holds else 'not upheld'} |"
        )


def gains(finals, method):
    """Returns the differences to tuned L2, by settings."""
    return {
        name: finals.difference(name, method)
        for name in SETTINGS
        if finals.has(name, method) and finals.has(name, "l2")
    }


def sentences(finals):
    """Says the largest gain, the largest loss, and what to do."""
    recipes = {method: gains(finals, method) for method in ("l2+epoch", "log+epoch")}
    flat = {
        (method, name): d
        for method, found in recipes.items()
        for name, d in found.items()
    }
    best = max(flat, key=lambda key: flat[key].mean())
    worst = min(flat, key=lambda key: flat[key].mean())
    for title, key in (("Largest gain", best), ("Largest loss", worst)):
        method, name = key
        yield (
            f"- **{title}** over tuned L2: {METHODS[method].label}, "
            f"{with_interval(flat[key])} points ({SETTINGS[name].label})."
        )
    lowest = {m: min(d.mean() for d in found.values()) for m, found in recipes.items()}
    mean = {
        m: np.mean([d.mean() for d in found.values()]) for m, found in recipes.items()
    }
    safe = [m for m in recipes if lowest[m] >= -0.5]
    choice = max(safe or recipes, key=mean.get)
    yield (
        f"- **What to do**: {METHODS[choice].label}: on average "
        f"{mean[choice]:+.1f} points from tuned L2 over {len(recipes[choice])} "
        f"settings, at worst {lowest[choice]:+.1f}."
    )


def settings_table(finals):
    """Lists the accuracy of L2 in each setting, and the differences to it."""
    methods = ("none", "l2+epoch", "log", "log+epoch", "both+epoch")
    yield f"| setting | L2, % | {' | '.join(METHODS[m].label for m in methods)} |"
    yield f"| --- | ---: |{' ---: |' * len(methods)}"
    for name, setting in SETTINGS.items():
        cells = [
            with_interval(finals.difference(name, m)) if finals.has(name, m) else ""
            for m in methods
        ]
        if finals.has(name, "l2"):
            accuracy = 100 * finals.values(name, "l2").mean()
            yield f"| {setting.label} | {accuracy:.1f} | {' | '.join(cells)} |"


def methods_table(finals):
    """Lists the other measures of all methods, setting by setting."""
    yield (
        "| setting | method | accuracy, % | to L2 | loss | calibration error | "
        "steps to 90 % | rate | strength |"
    )
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for name, setting in SETTINGS.items():
        for method in setting.methods:
            if not finals.has(name, method):
                continue

            def mean(column, name=name, method=method):
                return finals.values(name, method, column).mean()

            yield (
                f"| {setting.label} | {METHODS[method].label} | "
                f"{100 * mean('test_accuracy'):.1f} | "
                f"{with_interval(finals.difference(name, method))} | "
                f"{mean('test_loss'):.2f} | {mean('calibration_error'):.3f} | "
                f"{mean('steps_to_90'):.0f} | {mean('rate'):.3g} | "
                f"{mean('strength'):.3g} |"
            )


def theory(finals):
    """Compares what L2 alone leaves of an imbalance with what balancing gains.

    Under L2, differences of squared norms decay as `exp(-4 * strength * sum(rates) /
    (1 - momentum))`.

    Returns:
        List of tuples: the setting, the predicted remainder, the measured one, and
        the gain of balancing each epoch, in points.
    """
    points = []
    for name, setting in SETTINGS.items():
        is_chain = setting.network.startswith("mlp") and "half" not in setting.fields
        if not (is_chain and setting.optimizer == "sgd" and finals.has(name, "l2")):
            continue
        row = next(iter(finals.rows[name, "l2"].values()))
        total = float(row["rate"]) / 2 * 3000 / (1 - MOMENTUM)
        predicted = np.exp(-4 * float(row["strength"]) * total)
        left = []
        for row in finals.rows[name, "l2"].values():
            start, end = np.exp(2 * np.array(json.loads(row["log_norms"])))
            left.append(np.ptp(end) / np.ptp(start))
        gain = finals.difference(name, "l2+epoch")
        points.append((name, float(predicted), float(np.median(left)), gain))
    return points


def theory_text(points, finals):
    """Says what the theory predicts, and what was seen."""
    yield "![What L2 leaves of the imbalance, and what balancing gains](theory.png)"
    yield ""
    yield "| setting | predicted remainder | measured | gain of balancing L2, points |"
    yield "| --- | ---: | ---: | ---: |"
    for name, predicted, measured, gain in points:
        yield (
            f"| {SETTINGS[name].label} | {predicted:.2g} | {measured:.2g} | "
            f"{with_interval(gain)} |"
        )
    if len(points) > 2:
        rank = stats.spearmanr([p[1] for p in points], [p[3].mean() for p in points])
        yield ""
        yield (
            f"Rank correlation of the predicted remainder and the gain: "
            f"{rank.statistic:.2f} (p = {rank.pvalue:.2g}, {len(points)} settings)."
        )


def draw_settings(finals, path):
    """Draws the differences to tuned L2 in each setting, with their intervals."""
    import matplotlib.pyplot as plt

    names = [name for name in SETTINGS if finals.has(name, "log+epoch")]
    figure, axes = plt.subplots(figsize=(7.5, 0.42 * len(names) + 1.4), layout="tight")
    for shift, (method, label) in zip((-0.22, 0.0, 0.22), SHOWN.items(), strict=True):
        found = [
            (n, finals.difference(name, method))
            for n, name in enumerate(names)
            if finals.has(name, method)
        ]
        means = np.array([d.mean() for _, d in found])
        half = np.array([interval(d)[1] for _, d in found]) - means
        axes.errorbar(
            means,
            [n + shift for n, _ in found],
            xerr=half,
            fmt="o",
            color=COLORS[method],
            label=label,
            markersize=5,
        )
    axes.axvline(0, color="black", linewidth=1)
    axes.set_xscale("symlog", linthresh=4)
    axes.set_xticks([-40, -20, -10, -4, -2, 0, 2, 4, 10, 20, 40])
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:+.0f}" if x else "tuned L2")
    axes.set_yticks(range(len(names)), [SETTINGS[name].label for name in names])
    axes.invert_yaxis()
    axes.set_xlabel("test accuracy, points from tuned L2 (mean and 95 % interval)")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower right", framealpha=0.9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_theory(points, path):
    """Draws what L2 leaves of the imbalance against what balancing gains."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.8), layout="tight")
    for name, predicted, _, gain in points:
        low, high = interval(gain)
        axes.errorbar(
            [max(predicted, 1e-6)],
            [gain.mean()],
            yerr=[[gain.mean() - low], [high - gain.mean()]],
            fmt="o",
            color="#2a9d8f",
        )
        axes.annotate(
            SETTINGS[name].label,
            (max(predicted, 1e-6), gain.mean()),
            xytext=(6, 3),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set_xscale("log")
    axes.axhline(0, color="black", linewidth=1)
    axes.set_xlabel("imbalance that L2 alone leaves, as predicted")
    axes.set_ylabel("gain of balancing L2, points")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)
