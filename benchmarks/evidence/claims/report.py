"""The report: tables, pictures and the text, all from the table of runs."""

import collections
import itertools
import json
import pathlib

import numpy as np

from evidence.claims.claims import CLAIMS, decide, interval
from evidence.claims.data import CLASSES
from evidence.claims.settings import METHODS, SETTINGS
from evidence.claims.training import MOMENTUM, STEPS
from evidence.runs import write_at_once
from keras_weissi import largest_log_norm

SHOWN = {"l2+epoch": "L2, balanced", "log": "WEISSI", "log+epoch": "WEISSI, balanced"}
COLORS = {"l2+epoch": "#2a9d8f", "log": "#999999", "log+epoch": "#e76f51"}
RECIPES = ("l2+epoch", "log+epoch")
COLLAPSED = 0.15  # an accuracy


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

    def collapsed(self, setting, method):
        """Counts the seeds whose network collapsed."""
        return int(np.sum(self.values(setting, method) < COLLAPSED))

    def has(self, setting, method):
        """Whether there are any."""
        return bool(self.rows.get((setting, method)))


def with_interval(values, digits=1):
    """Writes a mean and its 95 % interval."""
    low, high = interval(values)
    mean = np.mean(values)
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


TEMPLATE = pathlib.Path(__file__).with_name("verdict.md.template")


def write_report(rows, folder):
    """Writes `VERDICT.md` and its pictures.

    Args:
        rows: list of dicts, of the table of runs.
        folder: `pathlib.Path`.
    """
    finals = Finals(rows)
    draw_settings(finals, folder / "verdict.png")
    draw_theory(theory(finals), folder / "theory.png")
    write_at_once(folder / "VERDICT.md", verdict_text(rows, finals))


def verdict_text(rows, finals):
    """Returns the text of the report."""
    stages = collections.Counter(row["stage"] for row in rows)
    searches = collections.Counter(
        (row["setting"], row["method"]) for row in rows if row["stage"] == "search"
    )
    most = max(searches.values())
    bound = largest_log_norm(CLASSES)
    tuned = "No tuned network of the final runs collapsed."
    if found := collapses(finals):
        strength, name, _ = found[0]
        tuned = (
            "Of the tuned networks of the final runs, some collapsed from "
            f"{100 * strength / bound:.0f} % of the bound on ({SETTINGS[name].label})."
        )
    parts = {
        "claims": claims_table(finals),
        "sentences": sentences(finals).values(),
        "settings": settings_table(finals),
        "cliff": cliff_table(rows),
        "theory": theory_table(theory(finals)),
        "attacks": attack_table(rows),
        "methods": methods_table(finals),
    }
    return TEMPLATE.read_text(encoding="utf-8").format(
        classes=CLASSES,
        runs=len(rows),
        searched=stages["search"],
        final=stages["final"],
        searches=len(searches),
        fewer=sum(count < most for count in searches.values()),
        bound=bound,
        tuned=tuned,
        main=SETTINGS["main"].label,
        **{key: "\n".join(lines) for key, lines in parts.items()},
    )


def claims_table(finals):
    """Lists the claims and what became of them, or nothing if some were not run."""
    if not all(finals.has(c.setting, m) for c in CLAIMS for m in (c.method, c.than)):
        return
    differences = [finals.difference(c.setting, c.method, c.than) for c in CLAIMS]
    yield "| claim | where | points | |"
    yield "| --- | --- | ---: | --- |"
    for v in decide(differences):
        yield (
            f"| {v.claim.text} | {SETTINGS[v.claim.setting].label} | "
            f"{v.difference:+.1f} [{v.low:+.1f}, {v.high:+.1f}] | "
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
    """Returns what to try first, its gains and losses, and what to beware of."""
    said = {}
    recipes = {method: gains(finals, method) for method in RECIPES}
    usual = {
        (method, name): d
        for method, found in recipes.items()
        for name, d in found.items()
        if "shift" not in SETTINGS[name].fields
    }
    for title, choose in (("Best", max), ("Worst", min)):
        method, name = choose(usual, key=lambda key: usual[key].mean())
        other = next(m for m in RECIPES if m != method)
        said[title] = (
            f"- **{title} result** against a tuned L2, without a shifted start: "
            f"{METHODS[method].label}, {with_interval(usual[method, name])} points "
            f"({SETTINGS[name].label}; {METHODS[other].label}: "
            f"{usual[other, name].mean():+.1f})."
        )
    better = {m: _counted(found, 1) for m, found in recipes.items()}
    choice = max(recipes, key=lambda m: len(better[m]))
    rest = next(m for m in RECIPES if m != choice)
    worse = _counted(recipes[choice], -1)
    shifted = sum("shift" in SETTINGS[name].fields for name in better[choice])
    text = (
        f"- **What to try first**: {METHODS[choice].label}. It was better than a tuned "
        f"L2 in {len(better[choice])} of {len(recipes[choice])} settings ({shifted} of "
        f"them with a shifted start), and worse in {len(worse)} "
        f"({_named(worse) or 'none'})."
    )
    if finals.has("adam", "decay"):
        decay = with_interval(finals.difference("adam", "decay"))
        text += f" With Adam, {METHODS['decay'].label} (AdamW) gained more: {decay}."
    said["First"] = text
    direct = {
        name: finals.difference(name, rest, choice)
        for name in recipes[choice]
        if finals.has(name, rest)
    }
    ahead, behind = _counted(direct, 1), _counted(direct, -1)
    said["Other"] = (
        f"- **{METHODS[rest].label}**, against {METHODS[choice].label}: better in "
        f"{len(ahead)} of {len(direct)} settings ({_named(ahead) or 'none'}), worse in "
        f"{len(behind)} ({_named(behind) or 'none'})."
    )
    for method in (choice, rest):
        risky = {name: finals.collapsed(name, method) for name in recipes[method]}
        where = "; ".join(
            f"{SETTINGS[name].label}, {count} of {len(recipes[method][name])} seeds"
            for name, count in risky.items()
            if count
        )
        if where:
            label = METHODS[method].label
            said[f"Collapsed, {label}"] = f"- **Collapsed** with {label}: {where}."
    return said


def _named(differences):
    return "; ".join(
        f"{SETTINGS[name].label}: {d.mean():+.1f}" for name, d in differences.items()
    )


def _counted(found, sign):
    """Returns the differences whose interval lies on one side of 0."""
    return {
        name: d
        for name, d in found.items()
        if min(sign * bound for bound in interval(d)) > 0
    }


def cliff_table(rows):
    """Lists the largest strength of the log term that does not collapse."""
    found = collections.defaultdict(list)
    for row in rows:
        if row["stage"] == "cliff":
            key = row["setting"], row["method"]
            found[key, float(row["strength"])].append(float(row["validation_accuracy"]))
    yield "| setting | without the balancer | balanced each epoch |"
    yield "| --- | ---: | ---: |"
    for name in ("depth-2", "main", "depth-8", "depth-16"):
        cells = []
        for method in ("log", "log+epoch"):
            strengths = sorted(x for key, x in found if key == (name, method))
            steady = list(
                itertools.takewhile(
                    lambda x, key=(name, method): min(found[key, x]) > COLLAPSED,
                    strengths,
                )
            )
            lowest = f"below {strengths[0]:.2f}" if strengths else ""
            cells.append(f"{steady[-1]:.2f}" if steady else lowest)
        yield f"| {SETTINGS[name].label} | {' | '.join(cells)} |"


def collapses(finals):
    """Returns where tuned networks with the log term collapsed.

    Returns:
        List of triples: the strength, the setting and the method, the least strength
        first.
    """
    return sorted(
        (finals.values(name, method, "strength").mean(), name, method)
        for name, setting in SETTINGS.items()
        for method in setting.methods
        if "log" in METHODS[method].strengths
        and finals.has(name, method)
        and finals.collapsed(name, method)
    )


def attack_table(rows):
    """Lists the smallest perturbations in the main setting."""
    found = collections.defaultdict(dict)
    for row in rows:
        if row["stage"] == "attack":
            found[row["method"]][row["seed"]] = float(row["perturbation"])
    yield "| method | perturbation | difference to L2 |"
    yield "| --- | ---: | ---: |"
    base = found.get("l2", {})
    for method, by_seed in found.items():
        values = np.array([by_seed[seed] for seed in sorted(by_seed)])
        others = np.array([base[seed] for seed in sorted(by_seed)])
        yield (
            f"| {METHODS[method].label} | {values.mean():.3f} | "
            f"{with_interval(values - others, 3)} |"
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
        "| setting | method | accuracy, % | to L2 | collapsed | loss | "
        "calibration error | steps | rate | strength |"
    )
    yield f"| --- | --- |{' ---: |' * 8}"
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
                f"{np.sum(finals.values(name, method) < COLLAPSED)} | "
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
        total = float(row["rate"]) / 2 * STEPS / (1 - MOMENTUM)
        predicted = np.exp(-4 * float(row["strength"]) * total)
        left = []
        for row in finals.rows[name, "l2"].values():
            start, end = np.exp(2 * np.array(json.loads(row["log_norms"])))
            left.append(np.ptp(end) / np.ptp(start))
        gain = finals.difference(name, "l2+epoch")
        points.append((name, float(predicted), float(np.median(left)), gain))
    return points


def theory_table(points):
    """Lists what the theory predicts, and what was seen."""
    yield "| setting | predicted | measured | gain of balancing L2, points |"
    yield "| --- | ---: | ---: | ---: |"
    for name, predicted, measured, gain in points:
        yield (
            f"| {SETTINGS[name].label} | {predicted:.2g} | {measured:.2g} | "
            f"{with_interval(gain)} |"
        )


def draw_settings(finals, path):
    """Draws the differences to tuned L2 in each setting, with their intervals."""
    import matplotlib.pyplot as plt

    names = [name for name in SETTINGS if finals.has(name, "log+epoch")]
    figure, axes = plt.subplots(
        figsize=(7.5, 0.42 * len(names) + 1.4), layout="constrained"
    )
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
    axes.set_xlabel(
        "points of test accuracy (mean, 95 % interval; not to scale beyond 4)"
    )
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_theory(points, path):
    """Draws what L2 leaves of the imbalance against what balancing gains."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.5, 3.8), layout="tight")
    for name, predicted, _, gain in points:
        low, high = interval(gain)
        axes.errorbar(
            [max(predicted, 1e-6)],
            [gain.mean()],
            yerr=[[gain.mean() - low], [high - gain.mean()]],
            fmt="o",
            color="#2a9d8f",
        )
        if predicted > 1e-6:
            axes.annotate(
                SETTINGS[name].label,
                (predicted, gain.mean()),
                xytext=(-6, 5),
                textcoords="offset points",
                ha="right",
                fontsize=8,
            )
    axes.set_xscale("log")
    axes.set_xlim(5e-7, 2)
    axes.axhline(0, color="black", linewidth=1)
    axes.set_xlabel("imbalance that L2 leaves, as predicted (left: 1e-6 or less)")
    axes.set_ylabel("gain of balancing L2, points")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)
