"""How large a coefficient of the log norm a network can hold out against."""

import math
import numbers

import keras

from keras_weissi.graph import output_layer

# Where networks have been seen to collapse, as a part of the largest coefficient: see
# `benchmarks/results/RESULTS.md`.
NEAR = 0.6

_MULTICLASS = (
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.CategoricalCrossentropy,
    keras.losses.sparse_categorical_crossentropy,
    keras.losses.categorical_crossentropy,
)
_BINARY = (keras.losses.BinaryCrossentropy, keras.losses.binary_crossentropy)


def largest_log_norm(classes):
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
        float: 0.278 for 2 classes, 1.10 for 10, 3.55 for 1,000. For a loss that is the
        mean over the rows; it grows with the weights of the rows and of the loss.

    Raises:
        ValueError: If `classes` is not an int of at least 2, or is past the range of
            floats.

    Example:

    >>> from keras_weissi import largest_log_norm
    >>> round(largest_log_norm(10), 2)
    1.1
    """
    from scipy.special import lambertw

    if not isinstance(classes, numbers.Integral) or not 2 <= int(classes) <= 10**308:
        raise ValueError(
            "Invalid value for argument `classes`. Expected an int of at least 2, and "
            f"within the range of floats. Received: classes={classes!r}"
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
