"""The tables of the evidence, as Markdown, and the numbers in its text."""

import collections
import statistics

import numpy as np
from evidence_search import Budget
from evidence_statistics import (
    ACCURACY,
    CLASSIC,
    DISTANCE,
    FORMS,
    REFERENCE,
    is_percent,
    limit,
    limit_with_noise,
    sizes,
)
from evidence_tasks import TASKS
from evidence_training import METHODS, RATES

MEASURES = {
    ACCURACY: "test accuracy, %",
    DISTANCE: "median smallest perturbation (DeepFool)",
}
OTHERS = {
    "fmn": "FMN",
    "pgd_0.05": "PGD 0.05, %",
    "pgd_0.1": "PGD 0.1, %",
    "pgd_scaled_0.1": "PGD 0.1, logits rescaled, %",
    "noise_0.2": "noise 0.2, %",
    "calibration_error": "calibration error, %",
}
BALANCED_L2 = "l2-balanced"
NAMES = {"sgd": "SGD", "adam": "Adam"}
MARKS = {"win": " ▲", "tie": "", "loss": " ▼"}
POOR = 1.5  # what the highest accuracy is divided by
EXTRA = ("width-64", "width-512")  # not tasks of their own


class Tables:
    """Tables, and numbers for the text, of the evidence.

    Args:
        evidence: `evidence_statistics.Evidence`.

    Attributes:
        evidence: the same.
        settings: list of pairs of a task and an optimizer, those of the comparison.
    """

    def __init__(self, evidence):
        self.evidence = evidence
        self.settings = [s for s in evidence.settings if s[0] not in EXTRA]

    def single(self):
        """Returns the tables of each setting with all methods."""
        parts = [self._single(s, m) for s in self.evidence.settings for m in MEASURES]
        parts += [self._others(setting) for setting in self.evidence.settings]
        return "\n".join(parts)

    def main(self):
        """Returns what WEISSI, and balancing with L2, change in every setting."""
        rows = []
        for setting in self.settings:
            form = self.evidence.picked(setting)
            base = self.evidence.against(setting, REFERENCE).mean
            rows.append(
                [
                    *_named(setting),
                    f"{100 * base:.1f}",
                    *(self.marked(setting, form, m) for m in MEASURES),
                    form,
                    *(self.marked(setting, BALANCED_L2, m) for m in MEASURES),
                ]
            )
        header = [
            "task",
            "optimizer",
            "L2, %",
            "WEISSI: accuracy",
            "perturbation",
            "its form",
            "L2 + balancer: accuracy",
            "perturbation",
        ]
        return _table(header, rows, "llrrrlrr")

    def best(self):
        """Returns which method is the best in every setting, and next to L2."""
        rows = []
        for setting in self.settings:
            row = [*_named(setting)]
            for measure in MEASURES:
                best = self.evidence.best(setting, measure)
                verdict = "–"
                if best != REFERENCE:
                    verdict = self.against(*setting, best, measure)
                row += [best, verdict]
            rows.append(row)
        header = ["task", "optimizer", "best accuracy", "against L2"]
        header += ["best perturbation", "against L2"]
        return _table(header, rows, "lllrlr")

    def methods(self):
        """Returns how often each method wins, ties and loses against L2."""
        rows = []
        methods = [m for m in self.evidence.methods(self.settings[0]) if m != REFERENCE]
        for method in [*methods, "picked"]:
            row = ["**WEISSI, form by validation**" if method == "picked" else method]
            for measure in MEASURES:
                counts = self.counts(method, measure)
                row.append(f"{counts['win']} / {counts['tie']} / {counts['loss']}")
            worst = min(
                self._compared(setting, method).difference for setting in self.settings
            )
            rows.append([*row, f"{100 * worst:+.1f}"])
        header = ["method", "accuracy: wins / ties / losses", "perturbation"]
        return _table([*header, "worst accuracy, points"], rows, "lrrr")

    def cliff(self):
        """Returns where the log penalty is chosen, stands and collapses."""
        rows = []
        for setting in self.settings:
            task, _ = setting
            noise, classes = TASKS[task].noise, sizes(task).classes
            row = [*_named(setting), f"{limit(task):.3f}"]
            row.append(f"{limit_with_noise(classes, noise) / limit(task):.2f}")
            for method in ("weissi", "weissi-balanced"):
                chosen = self.evidence.strength(setting, method) / limit(task)
                stands, collapsed = self._edge(setting, method)
                row.append(f"{chosen:.3f}")
                row.append(f"{stands:.2f}–{collapsed:.2f}")
            rows.append(row)
        header = ["task", "optimizer", "limit", "if no wrong label is fit"]
        header += ["weissi: chosen", "cliff", "balanced: chosen", "cliff"]
        return _table(header, rows, "llrrrrrr")

    def widths(self):
        """Returns which strengths were chosen at which width."""
        tasks = {64: "width-64", 256: "digits-noise20", 512: "width-512"}
        rows = []
        for optimizer in NAMES:
            for method in (REFERENCE, "weissi"):
                found = [
                    self.evidence.strength((task, optimizer), method)
                    for task in tasks.values()
                ]
                row = [NAMES[optimizer], method, *(f"{s:.3g}" for s in found)]
                rows.append([*row, f"{max(found) / min(found):.1f}"])
        header = ["optimizer", "method", *map(str, tasks), "largest / smallest"]
        return _table(header, rows, "llrrrr")

    def theory(self):
        """Returns what the product of the norms says of the gradient and of attacks."""
        rows = []
        for setting in self.settings:
            curves = ("log_norm", "input_gradient")
            pairs = [curves, ("log_norm", DISTANCE), ("pgd_0.1", "pgd_scaled_0.1")]
            pairs += [("pgd_0.1", DISTANCE), ("fmn", DISTANCE)]
            row = [
                f"{self.evidence.correlation(setting, *pair):+.2f}" for pair in pairs
            ]
            rows.append([*_named(setting), *row])
        header = ["task", "optimizer", "Σ log ‖W‖, gradient", "Σ log ‖W‖, DeepFool"]
        header += ["PGD, PGD rescaled", "PGD, DeepFool", "FMN, DeepFool"]
        return _table(header, rows, "llrrrrr")

    def mean(self, task, optimizer, method, measure=ACCURACY):
        """Returns the mean of a measure, with its unit."""
        value = self.evidence.against((task, optimizer), method, measure).mean
        return f"{100 * value:.1f} %" if is_percent(measure) else f"{value:.3f}"

    def strength(self, task, optimizer, method):
        """Returns the strength that was chosen."""
        return f"{self.evidence.strength((task, optimizer), method):.2g}"

    def share(self, task, optimizer, method):
        """Returns the strength that was chosen, as a part of the limit."""
        return f"{self.evidence.strength((task, optimizer), method) / limit(task):.2f}"

    def against(self, task, optimizer, method, measure=ACCURACY, reference=REFERENCE):
        """Returns the difference of two methods with its interval.

        It is in points for what is in percent, and else in percent of the other's.
        """
        setting = task, optimizer
        found = self.evidence.against(setting, method, measure, reference)
        unit = 100 if is_percent(measure) else 100 / found.base
        digits = 2 if is_percent(measure) else 1
        values = [f"{v * unit:+.{digits}f}" for v in (found.low, found.high)]
        return f"{found.difference * unit:+.{digits}f} [{values[0]}, {values[1]}]"

    def marked(self, setting, method, measure):
        """Returns the difference to L2, half its interval, and a mark if it is none."""
        found = self._compared(setting, method, measure)
        unit = 100 if is_percent(measure) else 100 / found.base
        sign = "" if is_percent(measure) else " %"
        digits = 2 if is_percent(measure) else 0
        text = f"{found.difference * unit:+.{digits}f}{sign}"
        return f"{text} ± {found.error * unit:.{digits}f}{MARKS[found.verdict()]}"

    def counts(self, method, measure=ACCURACY, corrected=False, reference=REFERENCE):
        """Returns a dict with the number of wins, ties and losses of a method.

        Args:
            method: str; `"picked"` for the form of WEISSI that validation chose.
            measure: str.
            corrected: bool, whether splits are not taken to be independent.
            reference: str; `"classic"` for the method of Keras that validation chose.
        """
        found = [
            self._compared(setting, method, measure, reference).verdict(corrected)
            for setting in self.settings
        ]
        counted = collections.Counter(found)
        return {verdict: counted[verdict] for verdict in MARKS}

    def either(self, verdict, method="picked"):
        """Returns in how many settings a verdict holds in one of the two measures."""
        return sum(
            any(self._compared(s, method, m).verdict() == verdict for m in MEASURES)
            for s in self.settings
        )

    def worse(self, method="picked", points=0.5):
        """Lists the settings where a method is worse than L2 by more than `points`."""
        return [
            " with ".join(_named(setting))
            for setting in self.settings
            if 100 * self._compared(setting, method).difference < -points
        ]

    def holm(self, method="picked", measure=ACCURACY):
        """Returns how many differences stay with Holm's correction at 5 %."""
        found = sorted(
            self._compared(setting, method, measure).p for setting in self.settings
        )
        kept = 0
        while kept < len(found) and found[kept] * (len(found) - kept) <= 0.05:
            kept += 1
        return kept

    def above_limit(self):
        """Returns how many strengths above the limit were tried, and how many fell."""
        tried = fell = 0
        for setting in self.settings:
            for method in FORMS:
                judged = self.evidence.searched(setting, method)
                highest = max(accuracy for accuracy, _ in judged.values())
                for strength, (accuracy, _) in judged.items():
                    if strength > limit(setting[0]):
                        tried += 1
                        fell += int(accuracy < highest / POOR)
        return {"tried": tried, "fell": fell}

    def bound(self):
        """Returns in how many of the measurements the gradient kept to its bound."""
        kept = total = 0
        least = np.inf
        for setting in self.settings:
            for method in self.evidence.methods(setting):
                for row in self.evidence.finals(setting, method):
                    curves = row["curves"]
                    slack = np.array(curves["log_norm"]) - np.log(
                        np.maximum(curves["input_gradient"], 1e-300)
                    )
                    kept += int((slack >= 0).sum())
                    total += len(slack)
                    least = min(least, slack.min())
        return {
            "kept": f"{kept:,}",
            "total": f"{total:,}",
            "factor": f"{np.exp(least):.1f}",
        }

    def numbers(self):
        """Returns what the protocol was, as a dict."""
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

    def limit_with_noise(self, task):
        """Returns the limit of a network that fits no wrong label, in limits."""
        found = limit_with_noise(sizes(task).classes, TASKS[task].noise)
        return f"{found / limit(task):.2f}"

    def ranks(self, one, two):
        """Returns the median over the settings of a rank correlation."""
        found = [self.evidence.correlation(s, one, two) for s in self.settings]
        return f"{statistics.median(found):.2f}"

    def _compared(self, setting, method, measure=ACCURACY, reference=REFERENCE):
        if method == "picked":
            method = self.evidence.picked(setting)
        if reference == "classic":
            reference = self.evidence.picked(setting, CLASSIC)
        return self.evidence.against(setting, method, measure, reference)

    def _edge(self, setting, method):
        """Returns the strengths, in limits, between which validation gets poor."""
        judged = self.evidence.searched(setting, method)
        highest = max(accuracy for accuracy, _ in judged.values())
        poor = [s for s, (accuracy, _) in judged.items() if accuracy < highest / POOR]
        collapsed = min(s for s in poor if s > self.evidence.strength(setting, method))
        stands = max(s for s in judged if s < collapsed)
        unit = limit(setting[0])
        return stands / unit, collapsed / unit

    def _single(self, setting, measure):
        percent = is_percent(measure)
        unit, digits = (100, 2) if percent else (1, 3)
        best = self.evidence.best(setting, measure)
        rows = []
        for method in self.evidence.methods(setting):
            found = self.evidence.against(setting, method, measure)
            mean = f"{found.mean * unit:.{digits}f} ± {found.half * unit:.{digits}f}"
            row = [method, f"{self.evidence.strength(setting, method):.3g}"]
            row.append(f"**{mean}**" if method == best else mean)
            if method == REFERENCE:
                row += ["", ""]
            else:
                values = [found.difference, found.low, found.high]
                values = [f"{v * unit:+.{digits}f}" for v in values]
                row += [f"{values[0]} [{values[1]}, {values[2]}]", f"{found.p:.2g}"]
            rows.append(row)
        title = f"**{setting[0]}, {setting[1]}: {MEASURES[measure]}**\n\n"
        header = ["method", "strength", "mean", "against L2", "p"]
        return title + _table(header, rows, "lrrrr") + "\n"

    def _others(self, setting):
        rows = []
        for method in self.evidence.methods(setting):
            row = [method]
            for measure in OTHERS:
                found = self.evidence.against(setting, method, measure)
                row.append(
                    f"{100 * found.mean:.1f}"
                    if is_percent(measure)
                    else f"{found.mean:.3f}"
                )
            rows.append(row)
        title = f"**{setting[0]}, {setting[1]}: other measures**\n\n"
        return title + _table(["method", *OTHERS.values()], rows, "l" + "r" * 6) + "\n"


def _named(setting):
    return [setting[0], NAMES[setting[1]]]


def _table(header, rows, align):
    lines = [header, [{"l": "---", "r": "---:"}[a] for a in align], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
