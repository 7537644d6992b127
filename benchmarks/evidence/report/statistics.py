"""What follows from the runs: means, intervals, paired tests, wins and losses."""

import collections
import dataclasses

import numpy as np
from scipy import stats

from evidence.search import choose
from evidence.tasks import TASKS, sizes
from evidence.training import METHODS

REFERENCE, BALANCED_L2 = "l2", "l2-balanced"
ACCURACY, DISTANCE = "test_accuracy", "deepfool"
FORMS = ("weissi", "weissi-both", "weissi-balanced")  # of this package
CLASSIC = ("l2", "l1l2", "decay", "orthogonal")  # of Keras
PERCENT = (ACCURACY, "calibration_error", "pgd", "noise")  # prefixes of measures


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A method compared with another on the same seeds.

    Attributes:
        mean: float, the mean of the method.
        half: float, half the 95 % confidence interval of the mean, by Student's t.
        base: float, the mean of the other method.
        difference: float, the mean difference to the other method.
        error: float, half the 95 % confidence interval of the difference, as if all
            runs were independent.
        corrected: float, the same with a correction for splits that share rows (Nadeau
            & Bengio, 2003).
        p: float, of the paired t-test.
    """

    mean: float
    half: float
    base: float
    difference: float
    error: float
    corrected: float
    p: float

    @property
    def low(self):
        """The lower end of the interval of the difference."""
        return self.difference - self.error

    @property
    def high(self):
        """The upper end of the interval of the difference."""
        return self.difference + self.error

    def verdict(self, corrected=False):
        """Returns `"win"`, `"tie"` or `"loss"`: a tie if the interval contains 0."""
        error = self.corrected if corrected else self.error
        if self.difference - error > 0:
            return "win"
        return "loss" if self.difference + error < 0 else "tie"


def compare(values, base, ratio=0.0):
    """Compares two methods.

    Args:
        values: List of floats, one for each final run.
        base: List of floats, those of the other method with the same seeds.
        ratio: float, the number of test rows for each training row. Defaults to `0.0`.

    Returns:
        `Comparison`.
    """
    values, base = np.asarray(values), np.asarray(base)
    pairs = values - base
    error = _half(pairs)
    widened = error * (1 + len(pairs) * ratio) ** 0.5
    p = float(stats.ttest_1samp(pairs, 0).pvalue) if pairs.any() else 1.0
    return Comparison(
        float(values.mean()),
        _half(values),
        float(base.mean()),
        float(pairs.mean()),
        error,
        widened,
        p,
    )


class Evidence:
    """All runs, by task and optimizer.

    Args:
        rows: List of dicts, as `evidence.runs.gather` returns them.

    Attributes:
        rows: List of dicts, as given.
        settings: List of pairs of a task and an optimizer, in the order of the tasks:
            those in which the reference, L2, has final runs.
    """

    def __init__(self, rows):
        self.rows = rows
        self._finals = collections.defaultdict(dict)
        self._searched = collections.defaultdict(dict)
        self._picked = {}
        for row in rows:
            study = row["task"], row["optimizer"], row["method"]
            if row["stage"] == "final":
                self._finals[study][row["seed"]] = row
            else:
                strength = self._searched[study].setdefault(row["strength"], [])
                strength.append((row["validation_accuracy"], row["validation_loss"]))
        self.settings = [
            (task, optimizer)
            for task in TASKS
            for optimizer in ("sgd", "adam")
            if (task, optimizer, REFERENCE) in self._finals
        ]

    def methods(self, setting):
        """Lists the methods that have final runs."""
        return [m for m in METHODS if (*setting, m) in self._finals]

    def finals(self, setting, method):
        """Lists the final runs of a method, in the order of the seeds."""
        by_seed = self._finals[(*setting, method)]
        return [by_seed[seed] for seed in sorted(by_seed)]

    def searched(self, setting, method):
        """Returns a dict from strengths to pairs of mean accuracy and loss."""
        tried = self._searched[(*setting, method)]
        return {s: tuple(np.mean(tried[s], axis=0)) for s in sorted(tried)}

    def strength(self, setting, method):
        """Returns the strength that the search chose."""
        return self.finals(setting, method)[0]["strength"]

    def against(self, setting, method, measure=ACCURACY, reference=REFERENCE):
        """Compares two methods on the seeds that both have, as `compare` does."""
        size = sizes(setting[0])
        ours, others = (self._finals[(*setting, m)] for m in (method, reference))
        seeds = sorted(ours.keys() & others.keys())
        return compare(
            [ours[seed][measure] for seed in seeds],
            [others[seed][measure] for seed in seeds],
            size.test / size.train,
        )

    def picked(self, setting, methods=FORMS):
        """Returns which of several methods is best on the validation rows."""
        if (setting, methods) not in self._picked:
            judged, rows = {}, 0
            for method in methods:
                strength = self.strength(setting, method)
                judged[method] = self.searched(setting, method)[strength]
                seeds = len(self._searched[(*setting, method)][strength])
                rows = seeds * sizes(setting[0]).validation
            self._picked[setting, methods] = choose(judged, rows)
        return self._picked[setting, methods]

    def best(self, setting, measure=ACCURACY):
        """Returns the method with the highest mean on the test rows."""
        return max(
            self.methods(setting),
            key=lambda m: np.mean([r[measure] for r in self.finals(setting, m)]),
        )

    def correlation(self, setting, one, two):
        """Returns Spearman's rank correlation of two measures over the methods.

        Args:
            setting: Pair of a task and an optimizer.
            one: str, a measure, or a key of the curves, of which the last value is
                taken.
            two: str, the same for the other measure.
        """
        means = [
            [
                np.mean([_last(row, key) for row in self.finals(setting, method)])
                for method in self.methods(setting)
            ]
            for key in (one, two)
        ]
        return float(stats.spearmanr(*means).statistic)


def is_percent(measure):
    """Returns whether a measure is a fraction that is shown in percent."""
    return measure.startswith(PERCENT)


def _last(row, key):
    return row["curves"][key][-1] if key in row["curves"] else row[key]


def _half(values):
    """Half of the 95 % confidence interval of a mean, by Student's t."""
    if len(values) < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
