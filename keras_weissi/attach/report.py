"""The report of `regularize` and `deregularize`."""

import collections
import dataclasses
import math

import keras

from keras_weissi._utils.tables import KernelTable, format_regularizer
from keras_weissi.model.eligibility import IN_SHORT, Reason
from keras_weissi.model.kernels import host_norm
from keras_weissi.model.selection import path_of
from keras_weissi.model.walk import unbuilt_layers
from keras_weissi.regularizers import WEISSI
from keras_weissi.symmetry.scale_report import advice


@dataclasses.dataclass(frozen=True)
class AttachmentRow:
    """One row of the report of `regularize` and `deregularize`.

    Attributes:
        name: str, the kernel's name.
        shape: tuple of ints.
        norm: float, the Frobenius norm. NaN for what is quantized or not built.
        regularizer: what acts on the kernel now, or `None`.
        changed: bool, whether this call set it, or removed one.
        scale: str, `"shifts"` if scale can be moved to or from the kernel without
            changing the model; otherwise what it is pinned by, normalized by or
            hidden in.
        note: str, why the kernel was left as it was, if `scale` does not say it, or
            what else to know.
    """

    name: str
    shape: tuple[int, ...]
    norm: float
    regularizer: keras.regularizers.Regularizer | None
    changed: bool
    scale: str
    note: str


def report_of(model, decisions, scales, caller):
    """Makes the report, before the change: a norm that cannot be read raises.

    Args:
        model: The `keras.Model`.
        decisions: list of `Decision`.
        scales: `ScaleReport` of the model.
        caller: str, `"regularize"` or `"deregularize"`.
    """
    rows = []
    norms = {}
    for decision in decisions:
        variable = decision.kernel.variable
        norms[id(variable)] = norm = host_norm(variable)
        scale = str(scales.status_of(decision.kernel))
        rows.append(
            AttachmentRow(
                decision.kernel.name,
                tuple(variable.shape),
                norm,
                decision.regularizer,
                decision.is_change,
                scale,
                note_of(decision, scale),
            )
        )
    what_to_do = _advice(decisions)
    if caller == "regularize":
        count = _counted(decisions, has_advice=bool(what_to_do))
    else:
        changed = sum(decision.is_change for decision in decisions)
        count = f"WEISSI was removed from {changed} of {len(decisions)} kernels"
    caption = f"{count}. {scales.sentence(norms)}".rstrip()
    if what_to_do:
        caption += f"\n{what_to_do}"
    note = "not built yet: call the model on data and then regularize again"
    rows += [
        AttachmentRow(path_of(layers), (), math.nan, None, False, "", note)
        for layers in unbuilt_layers(model)
    ]
    return KernelTable(rows, "name shape norm regularizer scale note", caption)


def _counted(decisions, has_advice):
    """Says how many kernels got the penalty, and why the others did not."""
    rest = [d for d in decisions if not d.is_put]
    text = f"{len(decisions) - len(rest)} of {len(decisions)} kernels got the penalty"
    reasons = collections.Counter(d.left_out.reason for d in rest).most_common()
    if reasons:
        shown = [
            f"{count} {IN_SHORT[reason].format(s='s' * (count > 1))}"
            for reason, count in reasons[:3]
        ]
        if more := sum(count for _, count in reasons[3:]):
            shown.append(f"{more} for other reasons")
        text += f"; left out: {', '.join(shown)}"
    count = dict(reasons).get(Reason.NORMALIZED)
    if count and not has_advice:
        text += f". include_normalized=True would change {count} more"
    return text


def _advice(decisions):
    """Returns the `advice` on a model where nearly all is normalized."""
    put = [d for d in decisions if d.is_put]
    if not all(isinstance(d.regularizer, WEISSI) for d in put):
        return ""
    normalized = [
        d.kernel
        for d in decisions
        if d.left_out and d.left_out.reason is Reason.NORMALIZED
    ]
    return advice([d.kernel for d in put], normalized)


def note_of(decision, scale=""):
    """Says what there is to say of a decision, and `scale` does not."""
    kernel, notes = decision.kernel, []
    lost = [decision.lost] if decision.lost else []
    if decision.left_out is not None and str(decision.left_out) != scale:
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
    return "; ".join(notes + lost)
