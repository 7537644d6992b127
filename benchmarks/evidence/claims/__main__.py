"""Decides the claims of CLAIMS.md: tunes, trains, and writes the report.

    pip install '.[evidence]'
    python benchmarks/evidence/claims                  # all of it
    python benchmarks/evidence/claims --setting main   # some of it
    python benchmarks/evidence/claims --report         # only the report

What is in the table of runs is not repeated, so it can be stopped and started again.
"""

import argparse
import os
import pathlib
import sys

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[2])

from evidence.claims.settings import SETTINGS
from evidence.claims.study import AT_ONCE, QUICK, STAGES, Budget, Table, run_study

HERE = pathlib.Path(__file__).resolve().parent
RESULTS = HERE.parents[1] / "results" / "claims"
ROWS = pathlib.Path("mnist1d-rows")


def main():
    """Runs the study."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--setting", nargs="+", choices=list(SETTINGS), default=list(SETTINGS)
    )
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, help="the results")
    parser.add_argument(
        "--rows",
        type=pathlib.Path,
        default=ROWS,
        help="the generated rows",
    )
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help="networks")
    parser.add_argument("--quick", action="store_true", help="a few short runs")
    parser.add_argument("--report", action="store_true", help="only the report")
    arguments = parser.parse_args()
    budget = QUICK if arguments.quick else Budget()
    if not arguments.report:
        run_study(
            arguments.setting,
            arguments.out,
            budget,
            arguments.rows,
            tuple(arguments.stage),
            arguments.at_once,
        )
    if arguments.report or "final" in arguments.stage:
        from evidence.claims.pages import write_pages
        from evidence.claims.report import write_report

        rows = Table(arguments.out / "runs.csv").rows
        write_report(rows, arguments.out)
        if arguments.out == RESULTS:
            write_pages(rows)
        print((arguments.out / "VERDICT.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
