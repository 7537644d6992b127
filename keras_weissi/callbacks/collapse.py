"""How large a coefficient of the log norm a network can bear, and what has fallen."""

import keras

from keras_weissi.model.graph import output_layer
from keras_weissi.regularizers import WEISSI, largest_log_norm

# The part of the largest coefficient above which networks have been seen to collapse,
# see the table of cliffs in `benchmarks/results/RESULTS.md`.
NEAR = 0.5

# By the names that `compile` takes, of the classes and of the functions.
_SQUASHED_BY = {
    "SparseCategoricalCrossentropy": keras.activations.softmax,
    "sparse_categorical_crossentropy": keras.activations.softmax,
    "CategoricalCrossentropy": keras.activations.softmax,
    "categorical_crossentropy": keras.activations.softmax,
    "BinaryCrossentropy": keras.activations.sigmoid,
    "binary_crossentropy": keras.activations.sigmoid,
}


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
    if isinstance(loss, (list, tuple, dict)) and len(loss) == 1:
        loss = next(iter(loss.values() if isinstance(loss, dict) else loss))
    squash = _squash_of(loss)
    found = output_layer(model) if squash else None
    if found is None:
        return None
    layer, activations = found
    passed = [a for a in activations if a is not keras.activations.linear]
    expected = [] if getattr(loss, "from_logits", False) else [squash]
    kernel = getattr(layer, "kernel", None)
    classes = 2 if squash is keras.activations.sigmoid else model.output_shape[-1]
    if passed != expected or not isinstance(kernel, keras.Variable):
        return None
    return (kernel, classes) if classes and classes > 1 else None


def _squash_of(loss):
    """Returns what makes probabilities for a mean cross-entropy; `None` for others."""
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", None)
    if isinstance(loss, keras.Loss):
        is_mean = loss.reduction in ("mean", "sum_over_batch_size")
        is_last = getattr(loss, "axis", -1) == -1
        name = type(loss).__name__ if is_mean and is_last else None
    squash = _SQUASHED_BY.get(name) if isinstance(name, str) else None
    # A user's own may have the same name.
    is_of_keras = isinstance(loss, str) or getattr(keras.losses, str(name), None) in (
        loss,
        type(loss),
    )
    return squash if is_of_keras else None


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
            f"it cannot come to rest above its min_norm={weissi.min_norm:g}"
            if weissi.log_norm > limit
            else "networks have collapsed from there on, first of all if labels are "
            "wrong"
        )
        message = (
            f"log_norm={weissi.log_norm:g} of kernel {kernel.name!r} is "
            f"{weissi.log_norm / limit:.0%} of {limit:.3g}, the most that it can hold "
            f"out against with the cross-entropy of {classes} classes, unless rows or "
            f"losses are weighted: {outlook}. A tenth, {limit / 10:.2g}, is a good "
            "start, see `keras_weissi.largest_log_norm`."
        )
        found.append((kernel.name, message))
    return found


def at_floor(kernels, norms):
    """Lists the kernels in training that have fallen to their `min_norm`.

    Args:
        kernels: List of `Kernel`.
        norms: List of their norms.

    Returns:
        List of pairs of the name of a kernel and a clause that says so.
    """
    return [
        (
            kernel.name,
            f"that of {kernel.name!r} is {norm:.3g}, not above "
            f"min_norm={kernel.regularizer.min_norm:g}",
        )
        for kernel, norm in zip(kernels, norms, strict=True)
        if kernel.variable.trainable
        and isinstance(kernel.regularizer, WEISSI)
        and norm <= kernel.regularizer.min_norm
    ]
