"""The search and the final runs, for many methods and settings at once."""

import collections
import csv
import dataclasses
import functools
import io
import json
import time

import numpy as np

from evidence.claims.data import FINAL, SEARCH, TEST, load
from evidence.claims.search import RATES, ROUNDS, choose, next_pairs
from evidence.claims.settings import CORE, METHODS, SETTINGS
from evidence.claims.training import STEPS, Run, Trainer
from evidence.runs import write_at_once

COLUMNS = (
    "setting",
    "method",
    "stage",
    "rate",
    "strength",
    "seed",
    "validation_accuracy",
    "validation_loss",
    "test_accuracy",
    "test_loss",
    "calibration_error",
    "steps_to_90",
    "perturbation",
    "seconds",
    "log_norms",
)
AT_ONCE = 512  # networks that train together
STAGES = ("search", "cliff", "final", "attack")
ATTACKED = 200  # test rows


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much is tried."""

    search: tuple = SEARCH
    final: tuple = FINAL
    rounds: int = ROUNDS
    steps: int = STEPS


QUICK = Budget(search=(0,), final=(100, 101), rounds=1, steps=600)

# Where the log term collapses: for each depth, at one rate.
CLIFF = {f"depth-{n}": np.geomspace(0.02, 8.0, 14) for n in (2, 8, 16)}
CLIFF["main"] = CLIFF["depth-2"]


def run_study(settings, folder, budget, rows, stages=STAGES, most=AT_ONCE):
    """Searches, and trains the final networks; what is in the table is not repeated.

    Args:
        settings: list of keys of `SETTINGS`.
        folder: `pathlib.Path`, where the table is.
        budget: `Budget`.
        rows: `pathlib.Path`, the folder for the generated rows.
        stages: tuple of `"search"`, `"cliff"`, `"final"` and `"attack"`, which trains
            the final networks of the main setting again. Defaults to all.
        most: int, how many networks train together.
    """
    seeds = budget.search + budget.final
    data = load(seeds, rows)
    table = Table(folder / "runs.csv")
    programs = collections.defaultdict(list)
    for name in settings:
        setting = SETTINGS[name]
        for method in setting.methods:
            steps = is_in_each_step(METHODS[method])
            programs[setting.network, setting.optimizer, steps].append((name, method))
    for (network, optimizer, _), pairs in programs.items():
        # All parts have one size, so that there is one program to compile.
        size = min(most, 8 * len(pairs) * len(budget.search))
        trainer = None
        for title, jobs in _jobs(pairs, budget, stages, table):
            todo = [job for job in jobs() if not table.has(*job)]
            if todo and trainer is None:
                trainer = Trainer(network, optimizer, data, seeds, budget.steps)
            for start in range(0, len(todo), size):
                part = todo[start : start + size]
                _train(trainer, part, size, table, seeds)
                done = f"{start + len(part)} of {len(todo)}"
                print(f"{network}, {optimizer}, {title}: {done} runs", flush=True)


def is_in_each_step(method):
    """Whether a method changes the weights after each step."""
    return method.flags.get("every") == 1 or "rescaling" in method.strengths


def _jobs(pairs, budget, stages, table):
    """Yields what is to be trained: a title, and a function that lists the runs."""

    def search(number):
        for name, method in pairs:
            middle = RATES[SETTINGS[name].optimizer], METHODS[method].middle
            for pair in next_pairs(middle, table.judged(name, method)[:number]):
                for seed in budget.search:
                    yield name, method, "search", pair, seed

    def cliff():
        for name, method in pairs:
            if method in ("log", "log+epoch"):
                for strength in CLIFF.get(name, ()):
                    for seed in budget.search:
                        yield name, method, "cliff", (0.1, float(strength)), seed

    def final(stage):
        for name, method in pairs:
            if stage == "attack" and (name != "main" or method not in CORE):
                continue
            pair = choose(table.judged(name, method))
            for seed in budget.final:
                yield name, method, stage, pair, seed

    if "search" in stages:
        for number in range(budget.rounds):
            yield f"round {number + 1}", functools.partial(search, number)
    if "cliff" in stages:
        yield "the cliff", cliff
    if "final" in stages:
        yield "the final runs", functools.partial(final, "final")
    if "attack" in stages:
        yield "the attacks", functools.partial(final, "attack")


def _train(trainer, part, size, table, seeds):
    """Trains some runs at once, and adds them to the table."""
    began = time.perf_counter()
    padded = part + part[-1:] * (size - len(part))
    found = trainer.train([_run(*job, seeds) for job in padded])
    seconds = (time.perf_counter() - began) / size
    for n, job in enumerate(part):
        row = _row(*job, found, n, seconds, trainer.steps)
        if row["stage"] == "attack":
            # PyTorch and foolbox, which no other stage needs.
            from evidence.attacks import smallest_perturbations

            place = seeds.index(row["seed"])
            x, y = trainer.data["x"][place], trainer.data["y"][0, place]
            rows = slice(-TEST, ATTACKED - TEST)
            weights = [w[n] for w in found["weights"]]
            distances = smallest_perturbations(
                weights, np.array(x[rows]), np.array(y[rows])
            )
            row["perturbation"] = float(np.median(distances))
        table.add(row)
    table.write()


def _run(name, method, stage, pair, seed, seeds):
    setting, method = SETTINGS[name], METHODS[method]
    rate, strength = pair
    strengths = {key: strength * by for key, by in method.strengths.items()}
    place = seeds.index(seed)
    return Run(place, rate, **setting.fields, **method.flags, **strengths)


def _row(name, method, stage, pair, seed, found, n, seconds, steps):
    curve = found["curve"][n]
    row = {
        "setting": name,
        "method": method,
        "stage": stage,
        "rate": pair[0],
        "strength": pair[1],
        "seed": seed,
        "validation_accuracy": float(found["validation"][0][n]),
        "validation_loss": float(found["validation"][1][n]),
        "seconds": seconds,
    }
    if stage == "final":
        accuracy, loss, gap = (float(part[n]) for part in found["test"])
        row |= {"test_accuracy": accuracy, "test_loss": loss, "calibration_error": gap}
        reached = np.flatnonzero(curve >= 0.9 * curve[-1])
        row["steps_to_90"] = int((reached[0] + 1) * steps // len(curve))
        row["log_norms"] = json.dumps(np.round(found["log_norms"][n], 4).tolist())
    return row


class Table:
    """The runs that are done, one row each, in a file that is written at once.

    Args:
        path: `pathlib.Path`.
    """

    def __init__(self, path):
        self.path = path
        self.rows = []
        if path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                self.rows = list(csv.DictReader(file))
        self.known = {self._key(row) for row in self.rows}

    @staticmethod
    def _key(row):
        numbers = (f"{float(row[key]):.6g}" for key in ("rate", "strength"))
        return row["setting"], row["method"], row["stage"], *numbers, int(row["seed"])

    def has(self, name, method, stage, pair, seed):
        """Whether a run is done."""
        values = name, method, stage, *pair, seed
        return self._key(dict(zip(COLUMNS, values, strict=False))) in self.known

    def add(self, row):
        """Adds a run."""
        row = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
        self.rows.append(row)
        self.known.add(self._key(row))

    def judged(self, name, method):
        """Returns the validation accuracy of each pair, by rounds of the search.

        Returns:
            List of dicts from pairs of rate and strength to floats.
        """
        found = {}
        for row in self.rows:
            if (row["setting"], row["method"], row["stage"]) == (
                name,
                method,
                "search",
            ):
                pair = float(row["rate"]), float(row["strength"])
                found.setdefault(pair, []).append(float(row["validation_accuracy"]))
        means = {pair: float(np.mean(values)) for pair, values in found.items()}
        sizes = [20, *[8] * ROUNDS]
        rounds, pairs = [], list(means)
        for size in sizes:
            if pairs:
                rounds.append({pair: means[pair] for pair in pairs[:size]})
                pairs = pairs[size:]
        return rounds

    def write(self):
        """Writes the table."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows(self.rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_at_once(self.path, text.getvalue())
