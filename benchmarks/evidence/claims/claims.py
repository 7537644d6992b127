"""The claims, as they were written down before the final runs, and how each is decided.

`CLAIMS.md` is made from this file.
"""

import dataclasses

import numpy as np
from scipy import stats

LEVEL = 0.05


@dataclasses.dataclass(frozen=True)
class Claim:
    """That one method is more accurate than another.

    Attributes:
        text: str, one sentence.
        setting: str, a key of `SETTINGS`.
        method: str, the method that is claimed to be better.
        than: str, the other.
        size: float, the expected difference of test accuracies, in points.
    """

    text: str
    setting: str
    method: str
    than: str
    size: float


CLAIMS = (
    Claim("The balancer helps WEISSI.", "main", "log+epoch", "log", 3.0),
    Claim("The balancer helps L2.", "main", "l2+epoch", "l2", 1.0),
    Claim("The balancer helps L2 with Adam too.", "adam", "l2+epoch", "l2", 0.5),
    Claim("WEISSI with the balancer beats L2.", "main", "log+epoch", "l2", 1.0),
    Claim(
        "WEISSI with the balancer beats L2 in a deep network.",
        "depth-8",
        "log+epoch",
        "l2",
        2.0,
    ),
    Claim(
        "WEISSI with the balancer beats L2 if labels are wrong.",
        "noise-40",
        "log+epoch",
        "l2",
        0.5,
    ),
    Claim(
        "One balancing at the start mends a start that is far from balance.",
        "shift-16",
        "l2+start",
        "l2",
        10.0,
    ),
    Claim(
        "Balancing each epoch makes up for a start that is out of balance.",
        "shift-4",
        "l2+epoch",
        "l2",
        1.0,
    ),
)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of a claim.

    Attributes:
        claim: `Claim`.
        difference: float, the mean difference of test accuracies, in points.
        low, high: floats, the interval that holds for all claims at once with 95 %.
        p: float, of the one-sided test, after Holm's correction.
        holds: bool.
    """

    claim: Claim
    difference: float
    low: float
    high: float
    p: float
    holds: bool


def decide(differences):
    """Decides all claims.

    One-sided t tests of the paired differences, with Holm's correction. The intervals
    are Bonferroni's.

    Args:
        differences: list of arrays, one per claim: the differences of test accuracies
            in points, one per seed.

    Returns:
        List of `Verdict`.
    """
    count = len(CLAIMS)
    raw = np.array(
        [stats.ttest_1samp(d, 0, alternative="greater").pvalue for d in differences]
    )
    order = np.argsort(raw)
    adjusted = np.empty(count)
    adjusted[order] = np.minimum(
        np.maximum.accumulate(raw[order] * (count - np.arange(count))), 1.0
    )
    verdicts = []
    for claim, d, p in zip(CLAIMS, differences, adjusted, strict=True):
        low, high = interval(d, LEVEL / count)
        verdicts.append(
            Verdict(claim, float(np.mean(d)), low, high, float(p), bool(p < LEVEL))
        )
    return verdicts


def interval(values, level=LEVEL):
    """Returns the interval of a mean, by Student's distribution."""
    values = np.asarray(values, float)
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found = stats.t.interval(
        1 - level, len(values) - 1, values.mean(), stats.sem(values)
    )
    return float(found[0]), float(found[1])


def as_markdown(settings, methods):
    """Returns the text of `CLAIMS.md`."""
    rows = [
        f"| {n} | {c.text} | {settings[c.setting].label} | {methods[c.method].label} | "
        f"{methods[c.than].label} | {c.size:g} |"
        for n, c in enumerate(CLAIMS, 1)
    ]
    return "\n".join([*_HEAD, *rows, "", *_REST]) + "\n"


_HEAD = (
    "# What is claimed",
    "",
    "Written before the runs that decide, and made from `claims/claims.py`. A short",
    "trial of the program, with 2 layers and 600 steps, had shown test accuracies of",
    "two seeds; no claim is about 2 layers. Each claim is that one method is more",
    "accurate than another on the test rows of MNIST-1D, both tuned alike. The size is",
    "what pilots on other rows let expect, in points.",
    "",
    "| | claim | setting | method | than | size |",
    "| ---: | --- | --- | --- | --- | ---: |",
)
_REST = (
    "**The test**: the mean of the differences over twenty new seeds, each with rows",
    "of its own, is above 0: a one-sided t test of the pairs, at 5 % for all claims",
    "together by Holm's correction. A claim that does not pass is not upheld, however",
    "large its difference. The intervals in the report hold for all claims at once",
    "(Bonferroni).",
    "",
    "**Tuning**: rate and strength together, 44 pairs for every method, each with",
    "three seeds that the final runs do not use, by the accuracy on validation rows,",
    "whose labels are as wrong as those for training.",
)
