"""Puts a regularizer on the kernels of an existing model.

Setting `layer.kernel_regularizer` on a built layer does nothing. Setting only the
variable's regularizer works until the model is saved. So both are set (and the
arguments of an attention layer around it), and the compiled training step is rebuilt.
"""

import dataclasses

import keras

from keras_weissi._utils.keras_private import regularizers_kept_by
from keras_weissi._utils.tables import KernelTable, format_regularizer
from keras_weissi._utils.user_warnings import listed, warn
from keras_weissi._utils.validation import check_bool
from keras_weissi.attach.decisions import (
    Decision,
    check_calls,
    decide,
    decide_invariant,
)
from keras_weissi.attach.saved_config import set_all
from keras_weissi.model.eligibility import Reason
from keras_weissi.model.kernels import host_norm, kernels_of_built
from keras_weissi.model.selection import Layers, Regularizers
from keras_weissi.model.walk import layers_of
from keras_weissi.regularizers import WEISSI


@dataclasses.dataclass(frozen=True)
class AttachmentRow:
    """One row of the report of `regularize` and `deregularize`.

    Attributes:
        name: str, the kernel's name.
        shape: tuple of ints.
        norm: float, the Frobenius norm.
        regularizer: what acts on the kernel now, or `None`.
        changed: bool, whether this call set it, or removed one.
        note: str, why the kernel was left as it was, or what else to know.
    """

    name: str
    shape: tuple[int, ...]
    norm: float
    regularizer: keras.regularizers.Regularizer | None
    changed: bool
    note: str


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
    kernels; and kernels with LoRA enabled. The report gives the reason for each, and a
    warning lists those that the call asked for. A normalization layer that is named
    gets the regularizer on its gamma, the weight that scales its output.

    A name is the path of a layer or nested model, such as `"backbone/block"`, or the
    name of a kernel in the report; otherwise, of the only layer of this name at any
    depth.

    Args:
        model: A built `keras.Model`, the one that is compiled and fitted.
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
        `KernelTable` of `AttachmentRow`: every kernel of the model, in order. It prints
        as a table.

    Raises:
        ValueError: If the model is not built, a name matches no kernel or several
            layers, or an argument is invalid. The model stays as it was.

    Example:

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
    kernels_of_built(model, everything=True)  # raises if there are none
    how = decide_invariant if invariant else decide
    decisions = how(model, regularizer, layers, include_normalized, replace)
    check_calls(decisions)
    # Warn before the model is changed, in case warnings are errors.
    _warn(decisions)
    report = _report(decisions)
    changes = [
        (owner, name, decision.regularizer)
        for decision in decisions
        if decision.is_change
        for owner, name in ((decision.kernel.variable, "regularizer"), *decision.places)
    ]
    _apply(model, changes)
    return report


def deregularize(model: keras.Model) -> KernelTable[AttachmentRow]:
    """Removes every `WEISSI` from a model, in place.

    Args:
        model: A built `keras.Model`.

    Returns:
        `KernelTable` of `AttachmentRow`, as from `regularize`.

    Raises:
        ValueError: If the model is not built.

    Example:

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
        for kernel in kernels_of_built(model, everything=True)
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
    report = _report(decisions)
    _apply(model, changes)
    return report


def _apply(model, changes):
    """Sets the regularizers, and rebuilds the compiled training steps."""
    set_all(changes)
    for layer in layers_of(model):
        if isinstance(layer, keras.Model):
            # Not set to None, as `compile` does: this may run inside `fit`.
            if layer.train_function is not None:
                layer.make_train_function(force=True)
            if layer.test_function is not None:
                layer.make_test_function(force=True)


def _warn(decisions):
    """Warns of what was asked for and refused, and of what will not be saved."""
    refused = [d for d in decisions if d.is_refused]
    lost = [d for d in decisions if d.regularizer and d.lost_by and d.is_change]
    count = len(decisions)
    warnings = []
    if refused:
        what = f"regularize skipped {len(refused)} of {count} kernels"
        warnings.append((what, refused))
    rest = [decision for decision in decisions if not decision.is_refused]
    reasons = [decision.left_out and decision.left_out.reason for decision in rest]
    is_consequence = not refused or Reason.OTHERS_TAKE_IT in reasons
    if is_consequence and not any(d.is_change and d.regularizer for d in rest):
        what = f"regularize put a regularizer on 0 of {count} kernels"
        warnings.append((what, rest))
    if lost:
        what = f"The regularizer of {len(lost)} of {count} kernels may not be saved"
        warnings.append((what, lost))
    for what, concerned in warnings:
        shown = listed([f"{d.kernel.name!r} ({_note(d)})" for d in concerned])
        warn(f"{what}: {shown}. The report that `regularize` returns lists them all.")


def _report(decisions):
    """Makes the report, before the change: a norm that cannot be read raises."""
    rows = [
        AttachmentRow(
            decision.kernel.name,
            tuple(decision.kernel.variable.shape),
            host_norm(decision.kernel.variable),
            decision.regularizer,
            decision.is_change,
            _note(decision),
        )
        for decision in decisions
    ]
    changed = sum(decision.is_change for decision in decisions)
    caption = f"{changed} of {len(rows)} kernels changed"
    reasons = [d.left_out.reason for d in decisions if d.left_out and not d.is_change]
    if normalized := reasons.count(Reason.NORMALIZED):
        caption += f"; include_normalized=True would change {normalized} more"
    return KernelTable(rows, "name shape norm regularizer note", caption)


def _note(decision):
    """Says what the report says of a decision."""
    kernel, notes = decision.kernel, []
    if decision.left_out is not None:
        notes.append(str(decision.left_out))
    if not decision.is_change:
        return "; ".join(notes)
    if decision.regularizer is None:
        return "; ".join([*notes, "WEISSI removed"])
    if decision.coefficient is not None:
        notes.append(f"coefficient {decision.coefficient:.4g}")
    if kernel.regularizer is not None:
        notes.append(f"was {format_regularizer(kernel.regularizer)}")
    if not kernel.variable.trainable:
        notes.append("frozen: not penalized until it is trainable")
    if decision.normalization == "?":
        notes.append("may be normalized: Keras does not show which layer comes next")
    elif decision.normalization is not None:
        notes.append(f"normalized by {decision.normalization}")
    if decision.lost_by is not None and not decision.places:
        notes.append("not saved: the layer has no argument for it")
    elif decision.lost_by is not None:
        notes.append(f"not saved unless {type(decision.lost_by).__name__} saves it")
    return "; ".join(notes)
