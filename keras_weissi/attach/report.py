"""The report of `regularize` and `deregularize`."""

import dataclasses
import math

import keras

from keras_weissi._utils.tables import KernelTable, format_regularizer
from keras_weissi.model.eligibility import Reason
from keras_weissi.model.kernels import host_norm
from keras_weissi.model.selection import path_of
from keras_weissi.model.walk import unbuilt_layers


@dataclasses.dataclass(frozen=True)
class AttachmentRow:
    """One row of the report of `regularize` and `deregularize`.

    Attributes:
        name: str, the kernel's name.
        shape: tuple of ints.
        norm: float, the Frobenius norm. NaN for what is quantized or not built.
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


def report_of(model, decisions):
    """Makes the report, before the change: a norm that cannot be read raises."""
    rows = [
        AttachmentRow(
            decision.kernel.name,
            tuple(decision.kernel.variable.shape),
            host_norm(decision.kernel.variable),
            decision.regularizer,
            decision.is_change,
            note_of(decision),
        )
        for decision in decisions
    ]
    changed = sum(row.changed for row in rows)
    caption = f"{changed} of {len(rows)} kernels changed"
    reasons = [d.left_out.reason for d in decisions if d.left_out and not d.is_change]
    if normalized := reasons.count(Reason.NORMALIZED):
        caption += f"; include_normalized=True would change {normalized} more"
    note = "not built yet: call the model on data and then regularize again"
    rows += [
        AttachmentRow(path_of(layers), (), math.nan, None, False, note)
        for layers in unbuilt_layers(model)
    ]
    return KernelTable(rows, "name shape norm regularizer note", caption)


def note_of(decision):
    """Says what the report says of a decision."""
    kernel, notes = decision.kernel, []
    lost = [decision.lost] if decision.lost else []
    if decision.left_out is not None:
        notes.append(str(decision.left_out))
    if not decision.is_change:
        return "; ".join(notes + lost)
    if decision.regularizer is None:
        return "; ".join([*notes, "WEISSI removed", *lost])
    if decision.coefficient is not None:
        notes.append(f"coefficient {decision.coefficient:.4g}")
    if decision.was is not None:
        notes.append(f"was {format_regularizer(decision.was)}")
    if not kernel.variable.trainable:
        notes.append("frozen: not penalized until it is trainable")
    if decision.normalization == "?":
        notes.append("may be normalized: Keras does not show which layer comes next")
    elif decision.normalization is not None:
        notes.append(f"normalized by {decision.normalization}")
    return "; ".join(notes + lost)
