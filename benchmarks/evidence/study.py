"""One study: a method is tuned for a task and an optimizer, then trained and tested.

Every method gets the same number of trials (`evidence.search`), each with a few seeds
and judged on the validation rows. The chosen strength is trained with new seeds, which
also draw new splits. Only these final runs see the test rows: accuracy, calibration,
and attacks.
"""

import dataclasses

import numpy as np

from evidence.runs import Runs
from evidence.search import trials
from evidence.tasks import TASKS, load
from evidence.training import METHODS, Trainer

ATTACKED = 200  # test rows that are attacked
BINS = 15  # of the calibration error


def run_study(task, optimizer, method, out, budget, on_run=lambda: None):
    """Searches the strength of one method for a task and trains the final networks.

    Args:
        task: str, a key of `evidence.tasks.TASKS`.
        optimizer: `"sgd"` or `"adam"`.
        method: str, a key of `evidence.training.METHODS`.
        out: `pathlib.Path`, the folder of the results.
        budget: `evidence.search.Budget`.
        on_run: Function that is called after each run. Defaults to doing nothing.
    """
    runs = Runs(out)
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
        result = runs.get(key)
        if result is None:
            split = load(task, seed)
            if not trainers:
                trainers.append(Trainer(task, method, optimizer, split))
            weights, curves = trainers[0].train(split, strength, seed)
            result = {**evaluate(trainers[0], weights, split, stage), "curves": curves}
            result = runs.put(key, result)
        on_run()
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
    """Measures a trained network.

    Args:
        trainer: `evidence.training.Trainer`.
        weights: list of arrays.
        split: `evidence.tasks.Split`.
        stage: `"search"`, or `"final"`, which alone sees the test rows.

    Returns:
        Dict of floats. A loss that is not finite becomes 1e9.
    """
    x, y = split.x_validation, split.y_validation
    _, accuracy, loss = _predict(trainer, weights, x, y)
    result = {"validation_accuracy": accuracy, "validation_loss": loss}
    if stage == "search":
        return result

    # PyTorch and foolbox, which no other part of the package needs.
    from evidence.attacks import robustness

    log_p, accuracy, loss = _predict(trainer, weights, split.x_test, split.y_test)
    result |= {"test_accuracy": accuracy, "test_loss": loss}
    result["calibration_error"] = calibration_error(np.exp(log_p), split.y_test)
    strides = [
        layer.strides[0] for layer in trainer.model.layers if hasattr(layer, "strides")
    ]
    rows = slice(0, ATTACKED)
    result |= robustness(weights, strides, split.x_test[rows], split.y_test[rows])
    return result


def calibration_error(probabilities, labels):
    """Returns the expected calibration error: how far confidence is from accuracy.

    Args:
        probabilities: array of shape `(rows, classes)`.
        labels: int array of shape `(rows,)`.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    places = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(places, right - confidence, BINS)
    return float(np.abs(gaps).sum() / len(labels))


def _predict(trainer, weights, x, y):
    logits = trainer.logits(weights, x).astype("float64")
    logits = np.nan_to_num(logits, nan=0.0, posinf=1e9, neginf=-1e9)
    logits -= logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    loss = float(-log_p[np.arange(len(y)), y].mean())
    return log_p, float((log_p.argmax(axis=1) == y).mean()), min(loss, 1e9)
