"""The numbers in the text of the report, with their signs and units."""

import collections

import numpy as np

from evidence.report.limits import limit, limit_with_noise
from evidence.report.statistics import (
    ACCURACY,
    CLASSIC,
    DISTANCE,
    FORMS,
    REFERENCE,
    is_percent,
)
from evidence.search import Budget
from evidence.tasks import CONVOLUTIONAL, TASKS
from evidence.training import METHODS, RATES

FMN = "fmn"
MEASURES = {
    ACCURACY: "test accuracy, %",
    DISTANCE: "median smallest perturbation (DeepFool)",
}
NAMES = {"sgd": "SGD", "adam": "Adam"}
MARKS = {"win": " ▲", "tie": "", "loss": " ▼"}
REMAINS = "†"  # with the correction for splits that share rows
POOR = 1.5  # a network has collapsed if its accuracy is below the highest divided by it
EXTRA = ("width-64", "width-512")  # not tasks of the comparison


class Numbers:
    """Numbers for the text of the report.

    In all methods, `"picked"` stands for the form of WEISSI that the validation rows
    choose, and as a reference, `"classic"` stands for the regularizer of Keras that
    they choose.

    Args:
        evidence: `evidence.report.statistics.Evidence`.

    Attributes:
        evidence: `evidence.report.statistics.Evidence`, as given.
        settings: List of pairs of a task and an optimizer, those of the comparison.
    """

    def __init__(self, evidence):
        self.evidence = evidence
        self.settings = [s for s in evidence.settings if s[0] not in EXTRA]

    def protocol(self):
        """Returns how the study was done, as a dict."""
        budget = Budget()
        finals = [row for row in self.evidence.rows if row["stage"] == "final"]
        return {
            "runs": f"{len(self.evidence.rows):,}",
            "finals": f"{len(finals):,}",
            "settings": len(self.settings),
            "tasks": len({task for task, _ in self.settings}),
            "grid": budget.grid,
            "trials": budget.trials,
            "search": len(budget.search),
            "final": len(budget.final),
            "first": budget.final[0],
            "last": budget.final[-1],
            "methods": len(METHODS),
            **RATES,
        }

    def compared(self, setting, method, measure=ACCURACY, reference=REFERENCE):
        """Returns the `Comparison` of two methods in a setting."""
        if method == "picked":
            method = self.evidence.picked(setting)
        if reference == "classic":
            reference = self.evidence.picked(setting, CLASSIC)
        return self.evidence.against(setting, method, measure, reference)

    def mean(self, task, optimizer, method, measure=ACCURACY):
        """Returns the mean of a measure, with its unit."""
        value = self.compared((task, optimizer), method, measure).mean
        return f"{100 * value:.1f} %" if is_percent(measure) else f"{value:.3f}"

    def difference(
        self, task, optimizer, method, measure=ACCURACY, reference=REFERENCE
    ):
        """Returns the difference of two methods with its interval.

        It is in points for a measure in percent, and otherwise in percent of the
        other method's mean.
        """
        found = self.compared((task, optimizer), method, measure, reference)
        unit = 100 if is_percent(measure) else 100 / found.base
        digits = 2 if is_percent(measure) else 1
        values = [found.difference, found.low, found.high]
        values = [signed(value * unit, digits) for value in values]
        return f"{values[0]} [{values[1]}, {values[2]}]{_remains(found)}"

    def marked(self, setting, method, measure):
        """Returns the difference to L2, half its interval, and marks if not a tie."""
        found = self.compared(setting, method, measure)
        unit = 100 if is_percent(measure) else 100 / found.base
        sign = "" if is_percent(measure) else " %"
        digits = 2 if is_percent(measure) else 0
        text = f"{signed(found.difference * unit, digits)}{sign}"
        text = f"{text} ± {found.error * unit:.{digits}f}"
        return f"{text}{MARKS[found.verdict()]}{_remains(found)}"

    def counts(self, method, measure=ACCURACY, corrected=False, reference=REFERENCE):
        """Returns the number of wins, ties and losses of a method, as a dict."""
        found = [
            self.compared(setting, method, measure, reference).verdict(corrected)
            for setting in self.settings
        ]
        counted = collections.Counter(found)
        return {verdict: counted[verdict] for verdict in MARKS}

    def settings_with(self, verdict, method="picked"):
        """Returns in how many settings one of the two measures has a verdict."""
        return sum(
            any(self.compared(s, method, m).verdict() == verdict for m in MEASURES)
            for s in self.settings
        )

    def worse_settings(self, method="picked", points=0.5):
        """Lists the settings where a method is worse than L2 by more than `points`."""
        return [
            " with ".join(named(setting))
            for setting in self.settings
            if 100 * self.compared(setting, method).difference < -points
        ]

    def holm(self, method="picked", measure=ACCURACY):
        """Returns how many differences remain with Holm's correction at 5 %."""
        found = sorted(
            self.compared(setting, method, measure).p for setting in self.settings
        )
        kept = 0
        while kept < len(found) and found[kept] * (len(found) - kept) <= 0.05:
            kept += 1
        return kept

    def widening(self):
        """Returns the range of factors by which the correction widens intervals."""
        found = [self.compared(s, "weissi") for s in self.settings]
        ratios = [c.corrected / c.error for c in found]
        return f"{min(ratios):.1f} to {max(ratios):.1f}"

    def median_correlation(self, one, two):
        """Returns the median over the settings of a rank correlation."""
        found = [self.evidence.correlation(s, one, two) for s in self.settings]
        return f"{np.median(found):.2f}"

    def bound_slack(self):
        """Returns the least factor by which dense networks stay below their bound."""
        slacks = []
        for setting in self.settings:
            if TASKS[setting[0]].network in CONVOLUTIONAL:
                continue
            for method in self.evidence.methods(setting):
                for row in self.evidence.finals(setting, method):
                    curves = row["curves"]
                    slack = np.array(curves["log_norm"]) - np.log(
                        np.maximum(curves["input_gradient"], 1e-300)
                    )
                    slacks.append(float(slack.min()))
        return f"{np.exp(min(slacks)):.1f}"

    def strength(self, task, optimizer, method):
        """Returns the strength that was chosen."""
        return f"{self.evidence.strength((task, optimizer), method):.2g}"

    def strength_ratios(self, method):
        """Returns the range of a method's strengths, in units of those of L2."""
        found = [
            self.evidence.strength(s, method) / self.evidence.strength(s, REFERENCE)
            for s in self.settings
        ]
        return f"{min(found):.2g} to {max(found):.2g}"

    def strengths_in_limits(self, method, optimizer, noise=False):
        """Returns the range of the chosen strengths, in units of the limit.

        It covers the tasks with wrong labels if `noise` is true, and otherwise the
        tasks with clean labels.
        """
        found = [
            self.evidence.strength(setting, method) / limit(setting[0])
            for setting in self.settings
            if setting[1] == optimizer and bool(TASKS[setting[0]].noise) == noise
        ]
        return f"{min(found):.2g} to {max(found):.2g}"

    def above_limit(self):
        """Returns how many strengths above the limit were tried, and collapsed."""
        tried = collapsed = 0
        for setting in self.settings:
            for method in FORMS:
                judged = self.evidence.searched(setting, method)
                highest = max(accuracy for accuracy, _ in judged.values())
                for strength, (accuracy, _) in judged.items():
                    if strength > limit(setting[0]):
                        tried += 1
                        collapsed += int(accuracy < highest / POOR)
        return {"tried": tried, "collapsed": collapsed}

    def limit_with_noise(self, task):
        """Returns the limit for a network that fits no wrong label, in limits."""
        return f"{limit_with_noise(task) / limit(task):.2f}"

    def cliff(self, setting, method):
        """Returns the last strength before the collapse, and the first after it."""
        judged = self.evidence.searched(setting, method)
        highest = max(accuracy for accuracy, _ in judged.values())
        poor = [s for s, (accuracy, _) in judged.items() if accuracy < highest / POOR]
        collapsed = min(s for s in poor if s > self.evidence.strength(setting, method))
        stands = max(s for s in judged if s < collapsed)
        return stands, collapsed

    def cliff_between(self, task, optimizer, method):
        """Returns the two strengths between which networks begin to collapse."""
        stands, collapsed = self.cliff((task, optimizer), method)
        return f"{stands:.2g} and {collapsed:.2g}"

    def lowest_collapse(self, method="weissi"):
        """Returns the smallest strength at which networks collapse, in limits."""
        found = [self.cliff(s, method)[1] / limit(s[0]) for s in self.settings]
        return f"{min(found):.2f}"


def _remains(found):
    return "" if found.verdict(corrected=True) == "tie" else REMAINS


def signed(value, digits):
    """Returns a number with its sign."""
    # Adding 0 takes the sign off a zero.
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def named(setting):
    """Returns a setting as a list of two words."""
    return [setting[0], NAMES[setting[1]]]
