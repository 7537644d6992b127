"""Warnings that a kernel collapses, or that it will.

The log penalty pulls every kernel towards zero. A kernel collapses when nothing holds
it back: its norm falls to its floor, the `min_norm` of its regularizer.
"""

import keras

from keras_weissi.model.output_layer import find_output_layer
from keras_weissi.regularizers import WEISSI, largest_log_norm

# Networks have collapsed from this fraction of the limit upwards, see the table of
# cliffs in `benchmarks/results/RESULTS.md`.
_RISKY_PART = 0.5

_OUTPUT_ACTIVATIONS = {
    keras.losses.SparseCategoricalCrossentropy: keras.activations.softmax,
    keras.losses.sparse_categorical_crossentropy: keras.activations.softmax,
    keras.losses.CategoricalCrossentropy: keras.activations.softmax,
    keras.losses.categorical_crossentropy: keras.activations.softmax,
    keras.losses.BinaryCrossentropy: keras.activations.sigmoid,
    keras.losses.binary_crossentropy: keras.activations.sigmoid,
}


def last_kernel(model):
    """Finds the kernel that makes the logits of a classifier.

    Args:
        model: A built and compiled `keras.Model`.

    Returns:
        Pair of the kernel, a `keras.Variable`, and the number of classes. `None` unless
        the model is known to be a classifier with one output, trained with the mean
        cross-entropy.
    """
    loss = model.loss
    if isinstance(loss, (list, tuple, dict)) and len(loss) == 1:
        loss = next(iter(loss.values() if isinstance(loss, dict) else loss))
    expected, from_logits = _output_activation(loss)
    found = find_output_layer(model) if expected else None
    if found is None:
        return None
    layer, activations, classes = found
    nonlinear = [a for a in activations if a is not keras.activations.linear]
    kernel = getattr(layer, "kernel", None)
    classes = 2 if expected is keras.activations.sigmoid else classes
    is_expected = nonlinear == ([] if from_logits else [expected])
    if not (is_expected and isinstance(kernel, keras.Variable)):
        return None
    return (kernel, classes) if classes and classes > 1 else None


def _output_activation(loss):
    """Finds out what a mean cross-entropy takes.

    Returns:
        Pair of the activation that belongs to it, or `None` if it is no mean
        cross-entropy, and whether it takes logits, before that activation.
    """
    try:
        loss = keras.losses.get(loss) if isinstance(loss, str) else loss
    except ValueError:  # a short name, whose meaning depends on the data
        return None, False
    found = (a for k, a in _OUTPUT_ACTIVATIONS.items() if loss is k or type(loss) is k)
    activation = next(found, None)
    if activation is None or not isinstance(loss, keras.Loss):
        return activation, False
    # Not all versions of Keras keep all arguments as attributes.
    config = loss.get_config()
    is_mean = loss.reduction in ("mean", "sum_over_batch_size")
    is_last = config.get("axis", -1) == -1
    return activation if is_mean and is_last else None, config["from_logits"]


def coefficient_warning(model, kernels):
    """Finds the kernel whose `log_norm` is too large, or nearly too large.

    Args:
        model: A built and compiled `keras.Model`.
        kernels: List of its `Kernel`.

    Returns:
        str, a warning; `None` if there is no such kernel.
    """
    last = last_kernel(model)
    kernel = next((k for k in kernels if last and k.variable is last[0]), None)
    if last is None or kernel is None or not kernel.variable.trainable:
        return None
    classes, weissi = last[1], kernel.regularizer
    limit = largest_log_norm(classes)
    if not isinstance(weissi, WEISSI) or weissi.log_norm < _RISKY_PART * limit:
        return None
    consequence = (
        ""
        if weissi.log_norm > limit
        else "Networks have collapsed at such values, mostly with wrong labels. "
    )
    return (
        f"log_norm={weissi.log_norm:g} of kernel {kernel.name!r} is "
        f"{weissi.log_norm / limit:.0%} of `keras_weissi.largest_log_norm({classes})`, "
        f"{limit:.3g}, above which its norm must fall to min_norm={weissi.min_norm:g}. "
        f"{consequence}Start with a tenth, {limit / 10:.2g}. (`sample_weight`, "
        "`class_weight` and `loss_weights` scale the limit.)"
    )


def kernels_at_floor(kernels, norms):
    """Lists the trainable kernels whose norms have fallen to their `min_norm`.

    Args:
        kernels: List of `Kernel`.
        norms: List of their norms.

    Returns:
        List of pairs: a kernel's name and floor, and a part of a sentence about it.
    """
    return [
        (
            (kernel.name, kernel.regularizer.min_norm),
            f"{kernel.name!r} (norm {norm:.3g}, "
            f"min_norm={kernel.regularizer.min_norm:g})",
        )
        for kernel, norm in zip(kernels, norms, strict=True)
        if kernel.variable.trainable
        and isinstance(kernel.regularizer, WEISSI)
        and norm <= kernel.regularizer.min_norm
    ]
