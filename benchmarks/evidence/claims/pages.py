"""What pages of the documentation say of the study, between marks."""

import pathlib
import re

from evidence.claims.claims import interval
from evidence.claims.report import (
    SHOWN,
    Finals,
    claims_table,
    cliff_table,
    collapses,
    sentences,
    with_interval,
)
from evidence.claims.settings import METHODS, SETTINGS
from evidence.runs import write_at_once

ROOT = pathlib.Path(__file__).resolve().parents[3]
# In this order, each has to beat the recipe so far.
CANDIDATES = ("l2+epoch", "decay", "log", "log+epoch")
LABELS = {**{name: method.label for name, method in METHODS.items()}, **SHOWN}


def blocks(rows):
    """Returns what stands between the marks, by the page and the name of the mark.

    Args:
        rows: list of dicts, of the table of runs.
    """
    finals = Finals(rows)
    said = sentences(finals)
    chosen = [said[key] for key in ("First", "Other", "Worst")]
    return {
        ("README.md", "claims"): [*claims_table(finals), "", *chosen],
        ("docs/choose.md", "recipes"): list(recipes_table(finals)),
        ("docs/strength.md", "cliff"): [
            *cliff_table(rows),
            "",
            collapse_sentence(finals),
        ],
    }


def recipe(finals, setting):
    """Returns the method that is better than tuned L2 and collapses with no seed."""
    best = "l2"
    for method in CANDIDATES:
        if finals.has(setting, method) and not finals.collapsed(setting, method):
            low, _ = interval(finals.difference(setting, method, best))
            if low > 0:
                best = method
    return best


def recipes_table(finals):
    """Lists the recipe for each setting, and what the usual methods gained."""
    labels = " | ".join(SHOWN.values())
    yield f"| setting | recipe | gain | strength | rate | {labels} |"
    yield "| --- | --- | ---: | ---: | ---: | --- | --- | --- |"
    for name, setting in SETTINGS.items():
        method = recipe(finals, name)
        tuned = " | ".join(
            f"{finals.values(name, method, column).mean():.2g}"
            for column in ("strength", "rate")
        )
        gain = finals.difference(name, method).mean()
        own = "" if method == "l2" else f"{gain:+.1f}"
        gains = " | ".join(_gain(finals, name, other) for other in SHOWN)
        label = LABELS[method]
        yield f"| {setting.label} | **{label}** | {own} | {tuned} | {gains} |"


def _gain(finals, setting, method):
    gain = with_interval(finals.difference(setting, method))
    count = finals.collapsed(setting, method)
    return f"{gain}; {count} collapsed" if count else gain


def collapse_sentence(finals):
    """Says at which strengths of the log term alone tuned networks collapsed."""
    found = "; ".join(
        f"{strength:.2f} (*{SETTINGS[name].label}*, {SHOWN[method]})"
        for strength, name, method in collapses(finals)
        if method in SHOWN and "shift" not in SETTINGS[name].fields
    )
    return f"Tuned strengths at which networks collapsed, too: {found or 'none'}."


def filled(text, name, lines):
    """Returns the text of a page with other lines between the marks of a name.

    Raises:
        ValueError: If the page does not have the marks once.
    """
    block = re.compile(f"(<!-- {name} -->\n).*(<!-- end of {name} -->\n)", re.DOTALL)
    content = "".join(f"{line}\n" for line in lines)
    text, count = block.subn(lambda found: found[1] + content + found[2], text)
    if count != 1:
        raise ValueError(f"Expected the marks of {name!r} once. Received: {count}")
    return text


def write_pages(rows):
    """Writes what the pages say of the study.

    Args:
        rows: list of dicts, of the table of runs.
    """
    for (page, name), lines in blocks(rows).items():
        text = (ROOT / page).read_text(encoding="utf-8")
        write_at_once(ROOT / page, filled(text, name, lines))
