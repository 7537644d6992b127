"""The raw results of the evidence: a row for each run, in one table."""

import csv
import json
import os

KEYS = ("task", "optimizer", "method", "strength", "stage", "seed")


class Results:
    """The results of runs: a file for each, so that none is done twice.

    Those that have been gathered into the table before count as well.

    Args:
        folder: `pathlib.Path`.
    """

    def __init__(self, folder):
        self.folder = folder / "runs"
        self.done = {key_of(row): row for row in gather(folder)}

    def get(self, run):
        """Returns the results of a run, or `None` if it has not been done."""
        return self.done.get(key_of(run))

    def put(self, run, result):
        """Writes the results of a run in one go, and returns them as they are kept."""
        path = self._path(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        row = rounded({**run, **result})
        temporary.write_text(json.dumps(row))
        os.replace(temporary, path)
        self.done[key_of(run)] = row
        return row

    def _path(self, run):
        folder = self.folder / f"{run['task']}_{run['optimizer']}"
        name = f"{run['method']}_{run['strength']:.6g}_{run['stage']}_{run['seed']}"
        return folder / f"{name}.json"


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
                kept["curves"] = json.dumps(row["curves"])
            writer.writerow(kept)
    os.replace(temporary, path)


def _parsed(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


def rounded(values):
    """Returns results with as many digits as are kept: they are the same when read."""
    if isinstance(values, dict):
        return {key: rounded(value) for key, value in values.items()}
    if isinstance(values, list):
        return [rounded(value) for value in values]
    return float(f"{values:.6g}") if isinstance(values, float) else values
