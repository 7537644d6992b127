"""The tables of the report, as Markdown."""

from evidence.report.limits import limit, limit_with_noise
from evidence.report.numbers import FMN, MEASURES, NAMES, named, signed
from evidence.report.statistics import BALANCED_L2, DISTANCE, REFERENCE, is_percent

OTHERS = {
    "fmn": "FMN",
    "pgd_0.05": "PGD 0.05, %",
    "pgd_0.1": "PGD 0.1, %",
    "pgd_scaled_0.1": "PGD 0.1, logits rescaled, %",
    "noise_0.2": "noise 0.2, %",
    "calibration_error": "calibration error, %",
}


class Tables:
    """Tables for the text of the report.

    Args:
        numbers: `evidence.report.numbers.Numbers`.
    """

    def __init__(self, numbers):
        self.numbers = numbers
        self.evidence = numbers.evidence

    def all_methods(self):
        """Returns the tables of each setting with all methods."""
        settings = self.evidence.settings
        parts = [self._one_measure(s, m) for s in settings for m in MEASURES]
        parts += [self._other_measures(setting) for setting in settings]
        return "\n".join(parts)

    def by_setting(self):
        """Returns what WEISSI, and L2 with the balancer, change in every setting."""
        numbers, rows = self.numbers, []
        for setting in numbers.settings:
            base = self.evidence.against(setting, REFERENCE).mean
            rows.append(
                [
                    *named(setting),
                    f"{100 * base:.1f}",
                    *(numbers.marked(setting, "picked", m) for m in MEASURES),
                    self.evidence.picked(setting),
                    *(numbers.marked(setting, BALANCED_L2, m) for m in MEASURES),
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
        """Returns the best method of every setting, and its difference to L2."""
        rows = []
        for setting in self.numbers.settings:
            row = [*named(setting)]
            for measure in MEASURES:
                best = self.evidence.best(setting, measure)
                difference = "–"
                if best != REFERENCE:
                    difference = self.numbers.difference(*setting, best, measure)
                row += [best, difference]
            rows.append(row)
        header = ["task", "optimizer", "best accuracy", "against L2"]
        header += ["best perturbation", "against L2"]
        return _table(header, rows, "lllrlr")

    def wins_and_losses(self):
        """Returns how often each method wins, ties and loses against L2."""
        numbers, rows = self.numbers, []
        methods = self.evidence.methods(numbers.settings[0])
        for method in [*(m for m in methods if m != REFERENCE), "picked"]:
            row = ["**WEISSI, form by validation**" if method == "picked" else method]
            for measure in (*MEASURES, FMN):
                for corrected in (False, True):
                    counts = numbers.counts(method, measure, corrected)
                    row.append(" / ".join(map(str, counts.values())))
            worst = min(
                numbers.compared(s, method).difference for s in numbers.settings
            )
            rows.append([*row, f"{100 * worst:+.1f}"])
        header = ["method"]
        for measure in ("accuracy", "DeepFool", "FMN"):
            header += [measure, f"{measure}, corrected"]
        return _table([*header, "worst accuracy, points"], rows, "lrrrrrrr")

    def cliff(self):
        """Returns where the log penalty is chosen, and where networks collapse."""
        rows = []
        for setting in self.numbers.settings:
            unit = limit(setting[0])
            row = [*named(setting), f"{unit:.3f}"]
            row.append(f"{limit_with_noise(setting[0]) / unit:.2f}")
            for method in ("weissi", "weissi-balanced"):
                stands, collapsed = self.numbers.cliff(setting, method)
                row.append(f"{self.evidence.strength(setting, method) / unit:.3f}")
                row.append(f"{stands / unit:.2f}–{collapsed / unit:.2f}")
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

    def correlations(self):
        """Returns rank correlations of norms, gradients and attacks."""
        rows = []
        pairs = [("log_norm", "input_gradient"), ("log_norm", DISTANCE)]
        pairs += [("pgd_0.1", "pgd_scaled_0.1"), ("pgd_0.1", DISTANCE)]
        pairs += [(FMN, DISTANCE)]
        for setting in self.numbers.settings:
            found = [self.evidence.correlation(setting, *pair) for pair in pairs]
            rows.append([*named(setting), *(f"{value:+.2f}" for value in found)])
        header = ["task", "optimizer", "Σ log ‖W‖, gradient", "Σ log ‖W‖, DeepFool"]
        header += ["PGD, PGD rescaled", "PGD, DeepFool", "FMN, DeepFool"]
        return _table(header, rows, "llrrrrr")

    def _one_measure(self, setting, measure):
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
                values = [signed(value * unit, digits) for value in values]
                row += [f"{values[0]} [{values[1]}, {values[2]}]", f"{found.p:.2g}"]
            rows.append(row)
        seeds = len(self.evidence.finals(setting, best))
        title = f"**{setting[0]}, {setting[1]}: {MEASURES[measure]}**"
        title += f", {seeds} seeds\n\n"
        header = ["method", "strength", "mean", "against L2", "p"]
        return title + _table(header, rows, "lrrrr") + "\n"

    def _other_measures(self, setting):
        task, optimizer = setting
        rows = [
            [method, *(self.numbers.mean(*setting, method, m) for m in OTHERS)]
            for method in self.evidence.methods(setting)
        ]
        rows = [[cell.removesuffix(" %") for cell in row] for row in rows]
        title = f"**{task}, {optimizer}: other measures**\n\n"
        return title + _table(["method", *OTHERS.values()], rows, "l" + "r" * 6) + "\n"


def _table(header, rows, align):
    lines = [header, [{"l": "---", "r": "---:"}[a] for a in align], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
