"""How strong a log penalty can be before a network of a task collapses, by theory."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit

from evidence.tasks import TASKS, sizes
from keras_weissi import largest_log_norm


def limit(task):
    """Returns the largest coefficient of the log norm, an upper bound, for a task."""
    return largest_log_norm(sizes(task).classes)


def limit_with_noise(task):
    """Returns the limit for a network of a task that fits no wrong label."""
    return largest_pull(sizes(task).classes, TASKS[task].noise)


def largest_pull(classes, noise):
    """Returns how hard the cross-entropy can pull if no wrong label is fit.

    With logits `x` for the right class and 0 for all others, it is
    `max over x of x * (1 - noise - p(x))`, where `p(x)` is the probability of the
    right class.

    Args:
        classes: int.
        noise: float, the fraction of labels that are wrong.
    """

    def negative_pull(x):
        return -x * (1 - noise - expit(x - np.log(classes - 1)))

    return -minimize_scalar(negative_pull, bounds=(0, 50), method="bounded").fun
