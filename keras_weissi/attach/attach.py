"""Puts a regularizer on the kernels of an existing model.

Setting `layer.kernel_regularizer` on a built layer does nothing. Setting only the
variable's regularizer works until the model is saved. So both are set (and the
arguments of an attention layer around it), and the compiled training step is rebuilt.
"""

import keras

from keras_weissi._utils.keras_private import make_step, regularizers_kept_by
from keras_weissi._utils.tables import KernelTable
from keras_weissi._utils.user_warnings import listed, warn
from keras_weissi._utils.validation import check_bool
from keras_weissi.attach.decisions import (
    Decision,
    check_calls,
    decide,
    decide_invariant,
    with_losses,
)
from keras_weissi.attach.report import AttachmentRow, note_of, report_of
from keras_weissi.attach.saved_config import set_all
from keras_weissi.model.eligibility import Reason
from keras_weissi.model.kernels import kernels_of_built
from keras_weissi.model.selection import Layers, Regularizers
from keras_weissi.model.walk import layers_of, models_sharing_layers
from keras_weissi.regularizers import WEISSI
from keras_weissi.symmetry.scale_report import ScaleReport


def regularize(
    model: keras.Model,
    regularizer: Regularizers,
    *,
    layers: Layers | None = None,
    include_normalized: bool = False,
    replace: bool = False,
    invariant: bool = False,
) -> KernelTable[AttachmentRow]:
    """Puts a regularizer on the kernels of a built model, in place.

    No weight is copied, no layer rebuilt, and the state of the optimizer stays. After
    a `fit` the change takes effect with the next one, without compiling again. It is
    kept by `save` and `clone_model`, as if set in the constructor, except in layers
    that a custom layer or a subclassed model makes (see the notes in the report).

    It leaves out kernels directly before a normalization layer, whose scale is
    normalized away; embeddings; kernels that have another regularizer; quantized
    kernels; kernels with LoRA enabled; and matrices of custom layers that are not
    called "kernel" or "..._kernel", unless they are selected. The report gives the
    reason for each, and a warning lists those that the call asked for. Another lists
    those that would have another regularizer once the model is saved and loaded; to
    find them, it runs the constructors of custom layers again. A normalization layer
    that is named gets the regularizer on its gamma, the weight that scales its output.

    The report also says whether scale can be shifted to or from a kernel, and how many
    kernels got the regularizer. To find out, it runs code of custom layers, see
    `scale_groups`.

    A name is the path of a layer or nested model, such as `"backbone/block"`, or the
    name of a kernel in the report; otherwise, of the only layer of this name at any
    depth.

    Args:
        model: A built `keras.Model`. It may be a part of the one that is fitted, which
            takes up the change too.
        regularizer: A `keras.regularizers.Regularizer`, or the name of one of Keras's
            own; or a dict of them by name; or a function from the layer that owns a
            kernel to a regularizer, or to `None` to leave the kernel as it is.
        layers: The layers to regularize: one or a list of names, layers or classes, or
            a function from a layer to a bool. Defaults to `None`: all but embeddings.
        include_normalized: bool. Whether to include kernels directly before a
            normalization layer. Defaults to `False`.
        replace: bool. Whether to replace regularizers other than `WEISSI`. A `WEISSI`
            is always replaced by another. Defaults to `False`.
        invariant: bool. Whether to multiply each `log_norm` by the coefficient that
            makes the whole penalty invariant, see `invariant_coefficients`. Gammas get
            one where needed. A `WEISSI` on a kernel without one is removed. Needs a
            `WEISSI` as `regularizer`, and `layers=None`. Defaults to `False`.

    Returns:
        `KernelTable` of `AttachmentRow`: every kernel of the model, in order, then the
        layers that are not built yet. It prints as a table.

    Raises:
        ValueError: If the model is not built (or, if it only has a `train_step`, one of
            its layers is not), a name matches no kernel or several
            layers, or an argument is invalid. The model stays as it was.

    Examples:
        >>> import keras
        >>> from keras_weissi import WEISSI, regularize
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> report = regularize(model, WEISSI(0.01))
        >>> [row.changed for row in report], len(model.losses)
        ([True], 1)
    """
    check_bool(include_normalized, "include_normalized")
    check_bool(replace, "replace")
    check_bool(invariant, "invariant")
    kernels_of_built(model)  # raises if there are none
    how = decide_invariant if invariant else decide
    scales = ScaleReport(model)
    decisions = how(model, scales, regularizer, layers, include_normalized, replace)
    check_calls(decisions)
    changes = [
        (owner, name, decision.regularizer)
        for decision in decisions
        if decision.is_change
        for owner, name in ((decision.kernel.variable, "regularizer"), *decision.places)
    ]
    return _carry_out(model, decisions, changes, scales)


def deregularize(model: keras.Model) -> KernelTable[AttachmentRow]:
    """Removes every `WEISSI` from a model, in place.

    Args:
        model: A built `keras.Model`.

    Returns:
        `KernelTable` of `AttachmentRow`, as from `regularize`.

    Raises:
        ValueError: If the model is not built.

    Examples:
        >>> import keras
        >>> from keras_weissi import WEISSI, deregularize
        >>> dense = keras.layers.Dense(2, kernel_regularizer=WEISSI(0.01))
        >>> model = keras.Sequential([keras.Input((4,)), dense])
        >>> report = deregularize(model)
        >>> len(model.losses), dense.kernel_regularizer
        (0, None)
    """
    decisions = [
        Decision(kernel, None, is_change=True)
        if isinstance(kernel.regularizer, WEISSI)
        else Decision(kernel, kernel.regularizer)
        for kernel in kernels_of_built(model)
    ]
    changes = [
        (owner, name, None)
        for layer in layers_of(model)
        for owner, name, value in (
            *((v, "regularizer", v.regularizer) for v in layer.weights),
            *((layer, *item) for item in regularizers_kept_by(layer).items()),
        )
        if isinstance(value, WEISSI)
    ]
    return _carry_out(model, decisions, changes, ScaleReport(model), "deregularize")


def _carry_out(model, decisions, changes, scales, caller="regularize"):
    """Sets the regularizers, warns, reports, and makes compiled steps again, or none.

    Whether they are saved is known only once they are set. A warning may be an error.
    """
    models = models_sharing_layers(model)
    steps = [
        (other, kind)
        for other in models
        for kind in ("train", "test")
        if getattr(other, f"{kind}_function", None) is not None
    ]
    with set_all(changes):
        decisions = with_losses(decisions, model)
        _warn(decisions, caller)
        for other in models:
            for name in _forget_traces(other):
                warn(
                    f"{caller} changes nothing in `{name}` of model {other.name!r}, "
                    "which was traced before: a penalty that it computes stays as it "
                    "was. Take the decorator off if only `fit` calls it, as `fit` "
                    f"compiles it anyway. Or call {caller} before the first step."
                )
        report = report_of(model, decisions, scales, caller)
        with set_all([(other, f"{kind}_function", None) for other, kind in steps]):
            for other, kind in steps:
                make_step(other, kind)
    return report


# No penalty is computed in a `call`, and Keras's own steps are made again.
_NOT_CONCERNED = ("call", "train_function", "test_function", "predict_function")


def _forget_traces(model):
    """Lets the methods of a model that the user compiled forget what they have traced.

    Returns:
        List of str, the names of those that cannot.
    """
    own: dict = {}
    for kind in reversed(type(model).__mro__):
        own.update(vars(kind))
    kept = []
    for name, value in {**own, **vars(model)}.items():
        is_part = isinstance(value, (type, keras.Layer))
        if not callable(value) or is_part or name in _NOT_CONCERNED:
            continue
        if hasattr(value, "get_concrete_function"):  # by `tf.function`
            # A step that the user's code compiled keeps its trace.
            if getattr(model, name).experimental_get_tracing_count():
                kept.append(name)
        elif hasattr(value, "lower"):  # by `jax.jit` or `jax.pmap`
            if hasattr(value, "clear_cache"):
                value.clear_cache()
            else:
                kept.append(name)
    return kept


def _warn(decisions, caller):
    """Warns of what was asked for and refused, and of what will not be saved."""
    refused = [d for d in decisions if d.is_refused]
    lost = [d for d in decisions if d.lost]
    count = len(decisions)
    warnings: list[tuple] = []
    if refused:
        what = f"{caller} skipped {len(refused)} of {count} kernels"
        warnings.append((what, refused, lambda d: d.left_out))
    rest = [decision for decision in decisions if not decision.is_refused]
    reasons = [decision.left_out and decision.left_out.reason for decision in rest]
    is_consequence = not refused or Reason.OTHERS_TAKE_IT in reasons
    is_none_put = not any(d.is_put for d in rest)
    if caller == "regularize" and is_consequence and is_none_put:
        what = f"regularize put a regularizer on 0 of {count} kernels"
        warnings.append((what, rest, note_of))
    if lost:
        what = f"{len(lost)} of {count} kernels may have another regularizer, or none, "
        what += f"once the model is saved and loaded (then call `{caller}` again)"
        warnings.append((what, lost, lambda d: d.lost))
    for what, concerned, why in warnings:
        shown = listed([f"{d.kernel.name!r} ({why(d)})" for d in concerned])
        warn(f"{what}: {shown}. The report that `{caller}` returns lists them all.")
