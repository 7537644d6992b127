"""How large a coefficient of the log norm a network can hold out against."""

import math
import numbers

import keras

from keras_weissi.graph import output_layer
from keras_weissi.regularizers import WEISSI

# From which part of the largest coefficient on networks have been seen to collapse, or
# to lose much: see `benchmarks/results/RESULTS.md`.
NEAR = 0.5

_MULTICLASS = (
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.CategoricalCrossentropy,
    keras.losses.sparse_categorical_crossentropy,
    keras.losses.categorical_crossentropy,
)
_BINARY = (keras.losses.BinaryCrossentropy, keras.losses.binary_crossentropy)


def largest_log_norm(classes: int) -> float:
    """Returns the largest `log_norm` that the last kernel of a classifier can bear.

    `largest_log_norm = max over x of x * (C - 1) / (C - 1 + exp(x)) = W((C - 1) / e)`,
    where `C` is the number of classes and `W` is Lambert's function. With more, no
    training that minimizes the cross-entropy comes to rest before the kernel `K` that
    makes the logits has collapsed to its `min_norm`, whatever the data, the width and
    the depth. For where it comes to rest, the cross-entropy pulls `K` outwards as hard
    as the penalty pulls it inwards: `-sum(K * dL/dK) = log_norm`. With logits `z` and
    probabilities `p`, and a bias that is at rest too, the left side is the mean of
    `z[label] - sum(p * z)` over the rows, of which none can be more than the above.

    It is a limit, not a good value. A network that does not fit all labels, because
    some are wrong, collapses from a smaller one on. Where a network is a plain chain of
    layers with homogeneous activations, as ReLU, the limit is that of every kernel.

    Args:
        classes: int, at least 2: the number of classes. 2 for outputs of a sigmoid.

    Returns:
        float: 0.278 for 2 classes, 1.10 for 10, 4.42 for 1,000. For a loss that is the
        mean over the rows; it grows with the weights of the rows and of the loss.

    Raises:
        ValueError: If `classes` is not an int of at least 2.

    Example:

    >>> from keras_weissi import largest_log_norm
    >>> [round(largest_log_norm(classes), 2) for classes in (2, 10, 1000)]
    [0.28, 1.1, 4.42]
    """
    from scipy.special import lambertw

    if not isinstance(classes, numbers.Integral) or classes < 2:
        raise ValueError(
            "Invalid value for argument `classes`. Expected an int of at least 2. "
            f"Received: classes={classes!r}"
        )
    return float(lambertw((int(classes) - 1) / math.e).real)


def last_kernel(model):
    """Finds the kernel that makes the logits of a classifier.

    Args:
        model: A built and compiled `keras.Model`.

    Returns:
        Pair of the kernel, a `keras.Variable`, and of the number of classes; or `None`
        if the model is not known to be a classifier that is trained with the mean
        cross-entropy of the outputs of one layer with a kernel.
    """
    loss = model.loss
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    known = next((k for k in (loss, type(loss)) if k in (*_MULTICLASS, *_BINARY)), None)
    reduction = getattr(loss, "reduction", "mean")
    if known is None or reduction not in ("mean", "sum_over_batch_size"):
        return None
    layer = output_layer(model)
    squash = "sigmoid" if known in _BINARY else "softmax"
    allowed = (keras.activations.linear, getattr(keras.activations, squash))
    if getattr(layer, "activation", None) not in allowed:
        return None
    kernel = getattr(layer, "kernel", None)
    classes = 2 if known in _BINARY else model.output_shape[-1]
    if not isinstance(kernel, keras.Variable) or not classes or classes < 2:
        return None
    return kernel, classes


def outlooks(model, kernels):
    """Lists what becomes of kernels whose coefficient is too large, or nearly so.

    Args:
        model: A built and compiled `keras.Model`.
        kernels: List of its `Kernel`.

    Returns:
        List of pairs of the name of a kernel and a warning.
    """
    last = last_kernel(model)
    found = []
    for kernel in kernels if last else ():
        variable, classes = last
        weissi = kernel.regularizer
        is_meant = kernel.variable is variable and variable.trainable
        if not is_meant or not isinstance(weissi, WEISSI):
            continue
        limit = largest_log_norm(classes)
        if weissi.log_norm < NEAR * limit:
            continue
        outlook = (
            "it is going to collapse, and with it the network"
            if weissi.log_norm > limit
            else "it may collapse, first of all if some labels are wrong"
        )
        message = (
            f"log_norm={weissi.log_norm:g} of kernel {kernel.name!r} is "
            f"{weissi.log_norm / limit:.0%} of {limit:.3g}, the most that it can hold "
            f"out against with the cross-entropy of {classes} classes: {outlook}. See "
            "`keras_weissi.largest_log_norm`."
        )
        found.append((kernel.name, message))
    return found
