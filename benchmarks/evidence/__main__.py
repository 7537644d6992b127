"""Does it help? Trains with every method, tuned alike, and tests the results.

    pip install '.[evidence]'
    python benchmarks/evidence                           # all that needs no download
    python benchmarks/evidence --task digits-noise20 --optimizer sgd
    python benchmarks/evidence --task cifar10            # downloads the data
    python benchmarks/evidence --report                  # tables, figures and text

Each run leaves a file when it is done, and a run that has one is not repeated. So the
command can be stopped and started again.
"""

import argparse
import concurrent.futures
import functools
import multiprocessing
import os
import pathlib
import sys

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

if not __package__:  # Python was given this folder, and cannot see it as a package yet
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from evidence.report.render import RESULTS, write_report
from evidence.search import QUICK, Budget
from evidence.study import run_study
from evidence.tasks import TASKS
from evidence.training import METHODS, RATES


def parse_arguments(arguments=None):
    """Reads the command line. A bad value ends the program with one line."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks/evidence",
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    offline = [name for name, task in TASKS.items() if not task.online]
    parser.add_argument("--task", nargs="+", choices=list(TASKS), default=offline)
    parser.add_argument(
        "--optimizer", nargs="+", choices=list(RATES), default=list(RATES)
    )
    parser.add_argument(
        "--method", nargs="+", choices=list(METHODS), default=list(METHODS)
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument(
        "--out", type=pathlib.Path, default=RESULTS, help="folder for the results"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="few steps and seeds, to try it out, in a folder `quick` of its own",
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="write tables, figures and text from the runs that are done",
    )
    parsed = parser.parse_args(arguments)
    if parsed.quick:
        parsed.out = parsed.out / "quick"
    if parsed.jobs < 1:
        parser.error("argument --jobs: expected an int of at least 1")
    for name in parsed.task:
        compared = TASKS[name].methods or METHODS
        if not set(parsed.method) & set(compared):
            parser.error(f"argument --method: {name} compares {', '.join(compared)}")
    return parsed


def run_all(arguments):
    """Runs all studies that were asked for, in several processes.

    Args:
        arguments: What `parse_arguments` returns.
    """
    budget = QUICK if arguments.quick else Budget()
    studies = [
        (task, optimizer, method)
        for task in arguments.task
        for optimizer in arguments.optimizer
        for method in arguments.method
        if method in (TASKS[task].methods or METHODS)
    ]
    runs = sum(
        (budget.trials if METHODS[method].start else 1) * len(budget.search)
        + len(budget.final)
        for _, _, method in studies
    )
    context = multiprocessing.get_context("spawn")
    with (
        context.Manager() as manager,
        concurrent.futures.ProcessPoolExecutor(arguments.jobs, context) as pool,
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        ) as progress,
    ):
        queue = manager.Queue()
        count = functools.partial(queue.put, 1)
        bar = progress.add_task("runs", total=runs)
        waiting = {
            pool.submit(run_study, *study, arguments.out, budget, count): study
            for study in studies
        }
        while waiting:
            done, _ = concurrent.futures.wait(
                waiting, 1, concurrent.futures.FIRST_COMPLETED
            )
            while not queue.empty():
                queue.get()
                progress.advance(bar)
            for future in done:
                task, optimizer, method = waiting.pop(future)
                future.result()
                progress.console.print(f"{task}, {optimizer}: {method} is done")
    quick = " --quick" if arguments.quick else ""
    print(f"The runs are in {arguments.out}. For tables and figures:{quick} --report")


def main():
    """Runs the studies, or writes the report."""
    arguments = parse_arguments()
    if arguments.report:
        write_report(arguments.out)
    else:
        run_all(arguments)


if __name__ == "__main__":
    main()
