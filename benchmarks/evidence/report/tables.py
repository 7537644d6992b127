"""The tables of the evidence, as Markdown."""

from evidence.report.numbers import (
    BALANCED_L2,
    FMN,
    MEASURES,
    NAMES,
    Numbers,
    named,
    signed,
)
from evidence.report.statistics import (
    DISTANCE,
    REFERENCE,
    is_percent,
    limit,
    limit_with_noise,
    sizes,
)
from evidence.tasks import TASKS

OTHERS = {
    "fmn": "FMN",
    "pgd_0.05": "PGD 0.05, %",
    "pgd_0.1": "PGD 0.1, %",
    "pgd_scaled_0.1": "PGD 0.1, logits rescaled, %",
    "noise_0.2": "noise 0.2, %",
    "calibration_error": "calibration error, %",
}


class Tables(Numbers):
    """The tables of the evidence, and the numbers in its text, see `Numbers`."""

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
                    *named(setting),
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
            row = [*named(setting)]
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
            for measure in (*MEASURES, FMN):
                counts = self.counts(method, measure)
                row.append(f"{counts['win']} / {counts['tie']} / {counts['loss']}")
            worst = min(
                self.compared(setting, method).difference for setting in self.settings
            )
            rows.append([*row, f"{100 * worst:+.1f}"])
        header = ["method", "accuracy: wins / ties / losses", "DeepFool", "FMN"]
        return _table([*header, "worst accuracy, points"], rows, "lrrrr")

    def cliff(self):
        """Returns where the log penalty is chosen, stands and collapses."""
        rows = []
        for setting in self.settings:
            task, _ = setting
            noise, classes = TASKS[task].noise, sizes(task).classes
            row = [*named(setting), f"{limit(task):.3f}"]
            row.append(f"{limit_with_noise(classes, noise) / limit(task):.2f}")
            for method in ("weissi", "weissi-balanced"):
                chosen = self.evidence.strength(setting, method) / limit(task)
                edge = [s / limit(task) for s in self.edges(setting, method)]
                row.append(f"{chosen:.3f}")
                row.append(f"{edge[0]:.2f}–{edge[1]:.2f}")
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
            rows.append([*named(setting), *row])
        header = ["task", "optimizer", "Σ log ‖W‖, gradient", "Σ log ‖W‖, DeepFool"]
        header += ["PGD, PGD rescaled", "PGD, DeepFool", "FMN, DeepFool"]
        return _table(header, rows, "llrrrrr")

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
                values = [signed(value * unit, digits) for value in values]
                row += [f"{values[0]} [{values[1]}, {values[2]}]", f"{found.p:.2g}"]
            rows.append(row)
        seeds = len(self.evidence.finals(setting, best))
        title = f"**{setting[0]}, {setting[1]}: {MEASURES[measure]}**"
        title += f", {seeds} seeds\n\n"
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


def _table(header, rows, align):
    lines = [header, [{"l": "---", "r": "---:"}[a] for a in align], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
