"""Tables and figures of the evidence, made from the raw results alone."""

import csv
import io
import json
import os

import numpy as np

KEYS = ("task", "optimizer", "method", "strength", "stage", "seed")
REFERENCE = "l2"
MEASURES = {  # what is compared, whether it is in percent, and how it is called
    "test_accuracy": (True, "test accuracy, %"),
    "deepfool": (False, "median smallest perturbation (DeepFool)"),
}


def gather(folder):
    """Reads the results of all runs, those gathered before and those since.

    Args:
        folder: `pathlib.Path`, of the results.

    Returns:
        List of dicts, in the order of `KEYS`.
    """
    rows = {}
    table = folder / "runs.csv"
    if table.exists():
        with open(table, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                row = {key: _parsed(value) for key, value in row.items() if value}
                rows[key_of(row)] = row
    for path in (folder / "runs").glob("*/*.json"):
        row = json.loads(path.read_text())
        rows[key_of(row)] = row
    return [rows[key] for key in sorted(rows)]


def key_of(run):
    """Returns what tells a run from all others, as a tuple."""
    return tuple(f"{run[key]:.6g}" if key == "strength" else run[key] for key in KEYS)


def write(rows, path):
    """Writes runs to a CSV file, which is replaced in one go."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            # The curves of the search, of which there are many, tell little.
            kept = {k: v for k, v in row.items() if k != "curves"}
            if row["stage"] == "final":
                kept["curves"] = json.dumps(_rounded(row["curves"]))
            writer.writerow(_rounded(kept))
    os.replace(temporary, path)


def compare(rows, measure):
    """Compares the final runs of each method with those of tuned L2.

    Args:
        rows: List of dicts, of one task and one optimizer.
        measure: str, a key of the results.

    Returns:
        Dict from methods to dicts: `strength`; `mean` and `half`, half the 95 %
        confidence interval of the mean, by Student's t; `difference`, `low` and `high`,
        the mean difference to L2 on the same seeds and its interval; `p`, of the paired
        t-test. For L2 itself, and without pairs, the latter are not numbers.
    """
    from scipy import stats

    finals = {}
    for row in rows:
        if row["stage"] == "final" and np.isfinite(row.get(measure, np.nan)):
            finals.setdefault(row["method"], {})[row["seed"]] = row
    compared = {}
    for method, by_seed in finals.items():
        values = np.array([row[measure] for row in by_seed.values()])
        result = {"strength": next(iter(by_seed.values()))["strength"]}
        result["mean"], result["half"] = values.mean(), _half(values)
        seeds = sorted(set(by_seed) & set(finals.get(REFERENCE, {})))
        pairs = np.array(
            [by_seed[s][measure] - finals[REFERENCE][s][measure] for s in seeds]
        )
        result |= dict.fromkeys(("difference", "low", "high", "p"), np.nan)
        if method != REFERENCE and len(pairs) > 1:
            mean, half = pairs.mean(), _half(pairs)
            result |= {"difference": mean, "low": mean - half, "high": mean + half}
            result["p"] = stats.ttest_1samp(pairs, 0).pvalue if pairs.any() else 1.0
        compared[method] = result
    return compared


def tables(rows):
    """Returns the tables of all tasks as Markdown."""
    from evidence_training import METHODS

    lines = []
    settings = dict.fromkeys((row["task"], row["optimizer"]) for row in rows)
    for task, optimizer in settings:
        chosen = [
            row for row in rows if (row["task"], row["optimizer"]) == (task, optimizer)
        ]
        for measure, (percent, title) in MEASURES.items():
            compared = compare(chosen, measure)
            if not compared:
                continue
            unit = 100 if percent else 1
            digits = 2 if percent else 3
            best = max(result["mean"] for result in compared.values())
            lines += [f"**{task}, {optimizer}: {title}**", ""]
            lines += ["| method | strength | mean | against L2 | p |"]
            lines += ["| --- | ---: | ---: | ---: | ---: |"]
            for method in METHODS:
                if method not in compared:
                    continue
                r = {k: v * unit for k, v in compared[method].items()}
                mean = f"{r['mean']:.{digits}f} ± {r['half']:.{digits}f}"
                mean = f"**{mean}**" if compared[method]["mean"] == best else mean
                against, p = "", ""
                if np.isfinite(r["difference"]):
                    against = f"{r['difference']:+.{digits}f} "
                    against += f"[{r['low']:+.{digits}f}, {r['high']:+.{digits}f}]"
                    p = f"{compared[method]['p']:.2g}"
                strength = f"{compared[method]['strength']:.3g}"
                lines.append(f"| {method} | {strength} | {mean} | {against} | {p} |")
            lines.append("")
    return "\n".join(lines)


def report(folder):
    """Gathers the runs and writes `runs.csv`, `TABLES.md` and the figures.

    Args:
        folder: `pathlib.Path`, of the results.
    """
    rows = gather(folder)
    if not rows:
        raise SystemExit(f"there are no results in {folder}: run the benchmark before")
    write(rows, folder / "runs.csv")
    text = tables(rows)
    temporary = folder / "TABLES.tmp"
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, folder / "TABLES.md")
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    for task, optimizer in dict.fromkeys((r["task"], r["optimizer"]) for r in rows):
        chosen = [
            row
            for row in rows
            if (row["task"], row["optimizer"], row["stage"])
            == (task, optimizer, "final")
        ]
        if chosen:
            _draw(chosen, f"{task}, {optimizer}", figures / f"{task}_{optimizer}.png")
    print(f"In {folder}: runs.csv, TABLES.md, figures ({len(rows)} runs)")


def _draw(rows, title, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from evidence_attacks import PGD_EPSILONS
    from PIL import Image

    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(14, 4.5), layout="constrained"
    )
    colors = plt.get_cmap("tab10")
    methods = dict.fromkeys(row["method"] for row in rows)
    for i, method in enumerate(methods):
        own = [row for row in rows if row["method"] == method and "curves" in row]
        names = [f"pgd_{epsilon}" for epsilon in PGD_EPSILONS]
        curves = [
            [row["test_accuracy"], *(row.get(name, np.nan) for name in names)]
            for row in own
        ]
        style = {"color": colors(i), "label": method, "marker": "."}
        left.plot((0, *PGD_EPSILONS), np.nanmean(curves, axis=0), **style)
        for ax, key in ((middle, "log_norm"), (right, "input_gradient")):
            epochs = own[0]["curves"]["epoch"]
            ax.plot(
                epochs, np.mean([row["curves"][key] for row in own], axis=0), **style
            )
    left.set(xlabel="ε of PGD, maximum norm", ylabel="accuracy")
    middle.set(xlabel="epoch", ylabel="Σ log ‖W‖, which bounds the log gradient")
    right.set(xlabel="epoch", ylabel="gradient of the true logit by the input")
    right.set_yscale("log")
    for ax in (left, middle, right):
        ax.grid(alpha=0.3)
    figure.suptitle(title)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=80)
    plt.close(figure)
    # A picture of lines needs few colors, and is a third of the size with them.
    Image.open(drawn).convert("RGB").quantize(64).save(path, optimize=True)


def _half(values):
    """Half of the 95 % confidence interval of a mean, by Student's t."""
    from scipy import stats

    if len(values) < 2:
        return np.nan
    return stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)


def _parsed(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


def _rounded(values):
    return {
        key: float(f"{value:.6g}")
        if isinstance(value, float)
        else [float(f"{v:.5g}") for v in value]
        if isinstance(value, list)
        else value
        for key, value in values.items()
    }
