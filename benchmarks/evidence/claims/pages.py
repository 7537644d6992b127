"""What the README and the page on how to choose say of the study, between marks."""

import dataclasses
import pathlib
import re

from evidence.claims.report import Finals, claims_table, sentences, with_interval
from evidence.claims.settings import METHODS, SETTINGS
from evidence.runs import write_at_once

ROOT = pathlib.Path(__file__).resolve().parents[3]


@dataclasses.dataclass(frozen=True)
class Advice:
    """What is recommended for a kind of model.

    Attributes:
        model: str, the kind of model.
        recipe: str, what to do.
        settings: tuple of str, where the recipe was measured.
        method: str, the recipe there, as the study names it.
        other: str, a method whose numbers tell why not something else.
    """

    model: str
    recipe: str
    settings: tuple[str, ...]
    method: str
    other: str


L2_BALANCED = "L2, balanced each epoch"
ADVICE = [
    Advice(
        "a chain of 3 to 8 layers, SGD",
        L2_BALANCED,
        ("main", "depth-8"),
        "l2+epoch",
        "log+epoch",
    ),
    Advice("2 layers", "L2", ("depth-2",), "l2", "l2+epoch"),
    Advice("16 layers, no normalization", "L2", ("depth-16",), "l2", "log+epoch"),
    Advice("convolutions", L2_BALANCED, ("cnn", "cnn-bn"), "l2+epoch", "log+epoch"),
    Advice("projection shortcuts", "L2", ("residual",), "l2", "l2+epoch"),
    Advice("dense layers, Adam", "AdamW", ("adam",), "decay", "l2+epoch"),
    Advice(
        "a transformer, Adam", L2_BALANCED, ("transformer",), "l2+epoch", "log+epoch"
    ),
    Advice("few rows", "WEISSI", ("rows-500",), "log", "l2+epoch"),
    Advice(
        "many wrong labels",
        L2_BALANCED,
        ("noise-20", "noise-40"),
        "l2+epoch",
        "log+epoch",
    ),
    Advice(
        "layers of very different scale at the start",
        L2_BALANCED,
        ("shift-4", "shift-16"),
        "l2+epoch",
        "log+epoch",
    ),
    Advice(
        "a trained network with a new last layer",
        "L2",
        ("fine-tuning",),
        "l2",
        "l2+epoch",
    ),
]


def blocks(finals):
    """Returns what stands between the marks, by the page and the name of the mark."""
    best = [line for line in sentences(finals) if line.startswith("- **What to do")]
    worst = [line for line in sentences(finals) if line.startswith("- **Largest loss")]
    return {
        ("README.md", "claims"): [*claims_table(finals), "", *best, *worst],
        ("docs/choose.md", "recipes"): recipes_table(finals),
    }


def recipes_table(finals):
    """Lists recipes with what they gained over a tuned L2, and another method."""
    yield "| your model | recipe | points over a tuned L2 | instead |"
    yield "| --- | --- | --- | --- |"
    for advice in ADVICE:
        own = "–"
        if advice.method != "l2":
            own = "; ".join(
                with_interval(finals.difference(setting, advice.method))
                + (f" ({SETTINGS[setting].label})" if len(advice.settings) > 1 else "")
                for setting in advice.settings
            )
        other = "; ".join(
            f"{finals.difference(setting, advice.other).mean():+.1f}"
            for setting in advice.settings
        )
        instead = f"{METHODS[advice.other].label}: {other}"
        yield f"| {advice.model} | {advice.recipe} | {own} | {instead} |"


def filled(text, name, lines):
    """Returns the text of a page with other lines between the marks of a name."""
    block = re.compile(f"(<!-- {name} -->\n).*(<!-- end of {name} -->\n)", re.DOTALL)
    content = "".join(f"{line}\n" for line in lines)
    return block.sub(lambda found: found[1] + content + found[2], text)


def write_pages(rows):
    """Writes what the pages say of the study.

    Args:
        rows: list of dicts, of the table of runs.
    """
    for (page, name), lines in blocks(Finals(rows)).items():
        text = (ROOT / page).read_text(encoding="utf-8")
        write_at_once(ROOT / page, filled(text, name, lines))
