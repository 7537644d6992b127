"""The raw results: one row for each run, gathered in one table, `runs.csv`."""

import csv
import io
import json
import os

KEYS = ("task", "optimizer", "method", "strength", "stage", "seed")
# How strong the attacks of a final run are: part of the names of its columns, such as
# `pgd_0.1` and `noise_0.2`.
PGD_EPSILONS = (0.025, 0.05, 0.1, 0.15)
NOISE = (0.1, 0.2, 0.4)


class Runs:
    """The runs that are done: a file for each, so that none is repeated.

    Runs that are in the table already count as well.

    Args:
        folder: `pathlib.Path`, of the results.
    """

    def __init__(self, folder):
        self.folder = folder / "runs"
        self.done = {key_of(row): row for row in gather(folder)}

    def get(self, run):
        """Returns the results of a run, or `None` if it has not been done."""
        return self.done.get(key_of(run))

    def put(self, run, result):
        """Writes the results of a run and returns them with the digits it keeps."""
        folder = self.folder / f"{run['task']}_{run['optimizer']}"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{run['method']}_{run['strength']:.6g}_{run['stage']}_{run['seed']}"
        row = rounded({**run, **result})
        write_at_once(folder / f"{name}.json", json.dumps(row))
        self.done[key_of(run)] = row
        return row


def gather(folder):
    """Reads all runs: those in the table, and those that have only a file so far.

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
    """Returns what identifies a run, as a tuple."""
    return tuple(f"{run[key]:.6g}" if key == "strength" else run[key] for key in KEYS)


def write_table(rows, path):
    """Writes runs to a CSV file.

    Args:
        rows: List of dicts.
        path: `pathlib.Path`.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    for row in rows:
        # The searches have too many curves to keep.
        kept = {k: v for k, v in row.items() if k != "curves"}
        if row["stage"] == "final":
            kept["curves"] = json.dumps(row["curves"])
        writer.writerow(kept)
    write_at_once(path, text.getvalue())


def write_at_once(path, text):
    """Writes a file so that a killed process never leaves half of it."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8", newline="")
    os.replace(temporary, path)


def rounded(values):
    """Rounds results to six digits, so that they read back as they were written."""
    if isinstance(values, dict):
        return {key: rounded(value) for key, value in values.items()}
    if isinstance(values, list):
        return [rounded(value) for value in values]
    return float(f"{values:.6g}") if isinstance(values, float) else values


def _parsed(text):
    try:
        return json.loads(text)
    except ValueError:
        return text
