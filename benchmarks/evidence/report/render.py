"""The report of the evidence: everything in it is made from the raw results alone."""

import os
import pathlib
import re

from evidence.report.figures import draw_all
from evidence.report.statistics import Evidence
from evidence.report.tables import Tables
from evidence.runs import gather, write

TEMPLATES = pathlib.Path(__file__).parent / "templates"
RESULTS = pathlib.Path(__file__).parents[2] / "results"
README = pathlib.Path(__file__).parents[3] / "README.md"
SECTION = re.compile(r"(<!-- evidence -->\n).*?(<!-- end of evidence -->)", re.DOTALL)


def texts(rows, readme):
    """Renders the text of the report.

    Args:
        rows: List of dicts, of all runs of a whole comparison.
        readme: str, the README, in which the section of the evidence is replaced.

    Returns:
        Dict from the names of files to their texts.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    tables = Tables(Evidence(rows))
    results = environment.get_template("RESULTS.md.jinja").render(t=tables)
    section = environment.get_template("README.md.jinja").render(t=tables)
    if not SECTION.search(readme):
        raise ValueError("Expected the README to have a section of the evidence.")
    return {
        "TABLES.md": tables.single(),
        "RESULTS.md": results,
        "README.md": SECTION.sub(lambda m: m[1] + section + m[2], readme),
    }


def report(folder):
    """Gathers the runs and writes `runs.csv`, tables, figures and what they say.

    `RESULTS.md`, and the section of the README, are only written for the results of the
    whole comparison, in their own place.

    Args:
        folder: `pathlib.Path`, of the results.
    """
    rows = gather(folder)
    if not rows:
        raise SystemExit(f"there are no results in {folder}: run the benchmark before")
    write(rows, folder / "runs.csv")
    evidence = Evidence(rows)
    draw_all(evidence, folder / "figures")
    if folder.resolve() == RESULTS:
        for name, text in texts(rows, README.read_text(encoding="utf-8")).items():
            _replace(README if name == "README.md" else folder / name, text)
    else:
        _replace(folder / "TABLES.md", Tables(evidence).single())
    print(f"In {folder}: runs.csv, TABLES.md and figures, of {len(rows)} runs")


def _replace(path, text):
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
