"""Does it help? Trains with every method, tuned alike, and tests what comes out.

For each task and optimizer, every method gets the same number of trials: strengths on a
grid of powers of 4, widened while the best is at an edge and refined while it is not.
Each is tried with a few seeds and judged on the validation rows: of those whose
accuracy is not below the highest by more than its standard error, the best has the
least loss. It is then trained with new seeds, which also draw new splits, and only
these runs see the test rows: accuracy, calibration, and attacks.

    pip install '.[evidence]'
    python benchmarks/evidence.py                        # all that needs no download
    python benchmarks/evidence.py --task digits-noise20 --optimizer sgd
    python benchmarks/evidence.py --task cifar10         # if you are online
    python benchmarks/evidence.py --report               # tables and figures

Runs are resumed: each leaves a file when it is done, and what has one is not run again.
"""

import argparse
import concurrent.futures
import dataclasses
import multiprocessing
import os
import pathlib

from evidence.runs import Results
from evidence.search import QUICK, Budget, trials

ATTACKED = 200  # test rows
BINS = 15  # of the calibration error


def parse_arguments(arguments=None):
    """Reads the command line; a bad value ends the program with one line."""
    from evidence.tasks import TASKS
    from evidence.training import METHODS, RATES

    parser = argparse.ArgumentParser(
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
        "--out",
        type=pathlib.Path,
        default=pathlib.Path(__file__).parents[1] / "results",
        help="folder for the results",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="few steps and seeds, to try it out, in a folder `quick` of its own",
    )
    parser.add_argument(
        "--report", action="store_true", help="tables and figures of what is there"
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


def study(task, optimizer, method, out, budget, report=lambda: None):
    """Searches the strength of one method for a task and trains the final networks.

    Args:
        task: str, a key of `evidence.tasks.TASKS`.
        optimizer: `"sgd"` or `"adam"`.
        method: str, a key of `evidence.training.METHODS`.
        out: `pathlib.Path`, the folder of the results.
        budget: `Budget`.
        report: Function that is called after each run. Defaults to nothing.
    """
    from evidence.tasks import TASKS, load
    from evidence.training import METHODS, Trainer

    results = Results(out)
    task = TASKS[task]
    epochs = max(1, round(task.epochs * budget.epochs))
    task = dataclasses.replace(task, epochs=epochs)
    trainers = []

    def run(strength, stage, seed):
        key = {
            "task": task.name,
            "optimizer": optimizer,
            "method": method,
            "strength": float(strength),
            "stage": stage,
            "seed": seed,
        }
        result = results.get(key)
        if result is None:
            split = load(task, seed)
            if not trainers:
                trainers.append(Trainer(task, method, optimizer, split))
            weights, curves = trainers[0].train(split, strength, seed)
            result = {**evaluate(trainers[0], weights, split, stage), "curves": curves}
            result = results.put(key, result)
        report()
        return result

    def judge(strength):
        done = [run(strength, "search", seed) for seed in budget.search]
        return tuple(
            sum(result[key] for result in done) / len(done)
            for key in ("validation_accuracy", "validation_loss")
        )

    rows = len(load(task, 0).y_validation) * len(budget.search)
    start = METHODS[method].start
    chosen, _ = trials(start, judge, rows, budget.grid, budget.trials)
    for seed in budget.final:
        run(chosen, "final", seed)


def evaluate(trainer, weights, split, stage):
    """Returns what is known of a trained network.

    Args:
        trainer: `evidence.training.Trainer`.
        weights: list of arrays.
        split: `evidence.tasks.Split`.
        stage: `"search"`, or `"final"`, which alone sees the test rows.

    Returns:
        Dict of floats. Losses that are not finite count as 1e9.
    """
    import numpy as np

    from evidence.attacks import robustness

    def measured(x, y):
        logits = trainer.logits(weights, x).astype("float64")
        logits = np.nan_to_num(logits, nan=0.0, posinf=1e9, neginf=-1e9)
        logits -= logits.max(axis=1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        loss = float(-log_p[np.arange(len(y)), y].mean())
        return log_p, float((log_p.argmax(axis=1) == y).mean()), min(loss, 1e9)

    _, accuracy, loss = measured(split.x_validation, split.y_validation)
    result = {"validation_accuracy": accuracy, "validation_loss": loss}
    if stage == "final":
        log_p, accuracy, loss = measured(split.x_test, split.y_test)
        result |= {"test_accuracy": accuracy, "test_loss": loss}
        result["calibration_error"] = calibration_error(np.exp(log_p), split.y_test)
        rows = slice(0, ATTACKED)
        strides = [
            layer.strides[0]
            for layer in trainer.model.layers
            if hasattr(layer, "strides")
        ]
        result |= robustness(weights, strides, split.x_test[rows], split.y_test[rows])
    return result


def calibration_error(probabilities, labels):
    """Returns the expected calibration error: how far confidence is from accuracy.

    Args:
        probabilities: array of shape `(rows, classes)`.
        labels: int array of shape `(rows,)`.
    """
    import numpy as np

    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    places = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(places, right - confidence, BINS)
    return float(np.abs(gaps).sum() / len(labels))


def _study_in_process(arguments, queue):
    study(*arguments, report=lambda: queue.put(1))


def main():
    """Runs the benchmark."""
    arguments = parse_arguments()
    if arguments.report:
        from evidence.report.render import report

        report(arguments.out)
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from evidence.tasks import TASKS
    from evidence.training import METHODS

    budget = QUICK if arguments.quick else Budget()
    studies = [
        (task, optimizer, method, arguments.out, budget)
        for task in arguments.task
        for optimizer in arguments.optimizer
        for method in arguments.method
        if method in (TASKS[task].methods or METHODS)
    ]
    runs = sum(
        (budget.trials if METHODS[method].start else 1) * len(budget.search)
        + len(budget.final)
        for _, _, method, _, _ in studies
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
        bar = progress.add_task("runs", total=runs)
        waiting = {pool.submit(_study_in_process, s, queue): s for s in studies}
        while waiting:
            done, _ = concurrent.futures.wait(
                waiting, 1, concurrent.futures.FIRST_COMPLETED
            )
            while not queue.empty():
                queue.get()
                progress.advance(bar)
            for future in done:
                task, optimizer, method, *_ = waiting.pop(future)
                future.result()
                progress.console.print(f"{task}, {optimizer}: {method} is done")
    quick = " --quick" if arguments.quick else ""
    print(f"In {arguments.out}: runs. For tables and figures:{quick} --report")
