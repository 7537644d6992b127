"""Writes the report: `runs.csv`, tables, figures, and the texts that cite them."""

import pathlib

import jinja2

from evidence.report.figures import draw_all
from evidence.report.numbers import Numbers
from evidence.report.statistics import Evidence
from evidence.report.tables import Tables
from evidence.runs import gather, write_at_once, write_table

TEMPLATES = pathlib.Path(__file__).parent / "templates"
ROOT = pathlib.Path(__file__).resolve().parents[3]
RESULTS = ROOT / "benchmarks" / "results"


def texts(evidence):
    """Renders the texts of the report.

    Args:
        evidence: `evidence.report.statistics.Evidence`, of the whole comparison.

    Returns:
        Dict from the names of files to their texts.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    numbers = Numbers(evidence)
    tables = Tables(numbers)
    given = {"numbers": numbers, "tables": tables}
    return {
        "TABLES.md": tables.all_methods(),
        "RESULTS.md": environment.get_template("RESULTS.md.jinja").render(given),
    }


def write_report(folder):
    """Gathers the runs and writes `runs.csv`, the tables, the figures and the texts.

    `RESULTS.md` describes the whole comparison. It is only written for the folder of
    that, `benchmarks/results`.

    Args:
        folder: `pathlib.Path`, of the results.
    """
    rows = gather(folder)
    evidence = Evidence(rows)
    if not evidence.settings:
        raise SystemExit(f"there are no final runs of l2 in {folder} to compare with")
    write_table(rows, folder / "runs.csv")
    draw_all(evidence, folder / "figures")
    if folder.resolve() == RESULTS:
        for name, text in texts(evidence).items():
            write_at_once(folder / name, text)
    else:
        tables = Tables(Numbers(evidence))
        write_at_once(folder / "TABLES.md", tables.all_methods())
    print(f"In {folder}: runs.csv, TABLES.md and figures, of {len(rows)} runs")
