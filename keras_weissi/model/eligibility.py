"""Which kernels are left out, and why."""

import dataclasses
import enum
from typing import Any

import keras

from keras_weissi._utils.tables import format_regularizer
from keras_weissi.regularizers import WEISSI


class Reason(enum.Enum):
    """Reasons to leave a kernel out, as templates of what is said of it."""

    NOT_IN_LAYERS = "not among `layers`"
    NOT_IN_REGULARIZER = "not in `regularizer`"
    LORA = "LoRA is enabled: the kernel is frozen{}"
    QUANTIZED = "quantized to {}"
    EMBEDDING = "an embedding: select it with `layers`"
    UNNAMED = "not named kernel: select it with `layers`"
    HAS_ANOTHER = "has {} already; replace=True replaces it"
    NORMALIZED = "normalized by {}"
    SHARES_AN_ARGUMENT = "left out with {}"
    OTHERS_TAKE_IT = "kernels without a penalty can absorb its scale"
    NOT_NEEDED = "not needed: the penalty is invariant without it"
    OFFSET = "scaled by all the factors before it"


# What is said of kernels after their number.
IN_SHORT = {
    Reason.NOT_IN_LAYERS: "not among `layers`",
    Reason.NOT_IN_REGULARIZER: "not in `regularizer`",
    Reason.LORA: "with LoRA",
    Reason.QUANTIZED: "quantized",
    Reason.EMBEDDING: "embedding{s}",
    Reason.UNNAMED: "not named kernel",
    Reason.HAS_ANOTHER: "with another regularizer",
    Reason.NORMALIZED: "normalized",
    Reason.SHARES_AN_ARGUMENT: "beside such a kernel",
    Reason.OTHERS_TAKE_IT: "whose scale others can absorb",
    Reason.NOT_NEEDED: "not needed",
    Reason.OFFSET: "scaled by all factors before",
}

_BY_DEFAULT = {
    Reason.EMBEDDING,
    Reason.UNNAMED,
    Reason.NORMALIZED,
    Reason.OTHERS_TAKE_IT,
    Reason.NOT_NEEDED,
    Reason.OFFSET,
}


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """Why a kernel is left out."""

    reason: Reason
    detail: Any = ""  # fills in the template of the reason

    @property
    def by_default(self) -> bool:
        """Whether it is the default, so that it needs no warning."""
        return self.reason in _BY_DEFAULT

    def __str__(self) -> str:
        return self.reason.value.format(self.detail)


def why_left_out(
    kernel, normalization, include_normalized, replace=False, explicit=False
):
    """Tells why `regularize` leaves a kernel as it is.

    Args:
        kernel: `Kernel`.
        normalization: What `Graph.normalization_of` says of it.
        include_normalized: bool, as for `regularize`.
        replace: bool, as for `regularize`.
        explicit: bool. Whether the call selects kernels: by `layers`, or by a dict.

    Returns:
        `LeftOut`, or `None` if it is not left out.
    """
    layer = kernel.layer
    if getattr(layer, "lora_enabled", False):
        # Keras gives them what was on the kernel when LoRA was enabled.
        factors = [v for v in layer.weights if v.name.startswith("lora_")]
        old = next((v.regularizer for v in factors if v.regularizer), None)
        on_factors = f"; {format_regularizer(old)} acts on its update" if old else ""
        if isinstance(old, WEISSI):
            on_factors += " (`deregularize` removes it)"
        return LeftOut(Reason.LORA, on_factors)
    mode = getattr(layer, "quantization_mode", None)
    if mode is not None or not keras.backend.is_float_dtype(kernel.variable.dtype):
        return LeftOut(Reason.QUANTIZED, mode or kernel.variable.dtype)
    if kernel.kind == "embedding" and not explicit:
        return LeftOut(Reason.EMBEDDING)
    is_ours = isinstance(kernel.regularizer, WEISSI)
    if kernel.kind == "matrix" and not explicit and not is_ours:
        return LeftOut(Reason.UNNAMED)
    old = kernel.regularizer
    if old is not None and not isinstance(old, WEISSI) and not replace:
        return LeftOut(Reason.HAS_ANOTHER, format_regularizer(old))
    if not include_normalized and normalization not in (None, "?"):
        return LeftOut(Reason.NORMALIZED, normalization)
    return None
