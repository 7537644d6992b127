"""The raw results of the evidence: a row for each run, in one table."""

import csv
import json
import os

KEYS = ("task", "optimizer", "method", "strength", "stage", "seed")


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
