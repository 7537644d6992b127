"""Rows of MNIST-1D: every seed has its own, generated and then kept in a file.

MNIST-1D (Greydanus & Kobak, 2024, arXiv 2011.14439): ten digits drawn as a line of 40
points, shifted, sheared and noisy. The package `mnist1d` makes as many as one likes.
"""

import concurrent.futures
import functools
import os
import tempfile

import numpy as np

TRAIN, VALIDATION, TEST = 4000, 2000, 10_000
NOISE = (0.0, 0.2, 0.4)  # the fractions of wrong labels
CLASSES, LENGTH = 10, 40
SEARCH = (0, 1, 2)  # seeds of the search
FINAL = tuple(range(100, 120))  # of the runs that see the test rows


def load(seeds, folder):
    """Loads the rows of some seeds, and makes those that no file has yet.

    Args:
        seeds: tuple of ints.
        folder: `pathlib.Path` of the files.

    Returns:
        Dict of arrays, whose first axis is that of the seeds: `x` of shape (seeds,
        rows, 40), float32; `y` of shape (fractions of wrong labels, seeds, rows),
        int32. The rows are those for training, for validation and for the test, in
        this order. Labels for the test are right.
    """
    folder.mkdir(parents=True, exist_ok=True)
    make = functools.partial(_load_one, folder=folder)
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(make, seeds))
    return {
        "x": np.stack([x for x, _ in found]),
        "y": np.stack([y for _, y in found], axis=1),
    }


def _load_one(seed, folder):
    path = folder / f"{seed}.npz"
    if not path.exists():
        x, y = generate(seed)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            np.savez(file, x=x, y=y)
        os.replace(file.name, path)
    with np.load(path) as file:
        return file["x"], file["y"]


def generate(seed, rows=TRAIN + VALIDATION + TEST):
    """Makes the rows of one seed.

    Returns:
        Pair of `x`, float32 of shape (rows, 40), and of `y`, int32 of shape (fractions
        of wrong labels, rows).
    """
    from mnist1d.data import get_dataset_args, make_dataset

    settings = get_dataset_args()
    settings.num_samples, settings.train_split = rows, 1.0
    settings.seed = 1000 + seed  # 42 makes the published rows
    made = make_dataset(settings)
    x, right = made["x"].astype("float32"), made["y"].astype("int32")
    rng = np.random.default_rng(seed)
    draw, shift = rng.random(rows), rng.integers(1, CLASSES, rows)
    may_be_wrong = np.arange(rows) < TRAIN + VALIDATION
    labels = [
        np.where((draw < noise) & may_be_wrong, (right + shift) % CLASSES, right)
        for noise in NOISE
    ]
    return x, np.stack(labels).astype("int32")
