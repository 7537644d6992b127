"""Which kernels are left out, and why."""

import keras

from keras_weissi._utils.tables import format_regularizer
from keras_weissi.model.kernels import is_embedding
from keras_weissi.regularizers import WEISSI


def why_left_out(
    kernel, normalization, include_normalized, replace=False, by_name=False
):
    """Tells why `regularize` leaves a kernel as it is.

    Args:
        kernel: `Kernel`.
        normalization: What `Graph.normalization_of` says of it.
        include_normalized: bool, as for `regularize`.
        replace: bool, as for `regularize`.
        by_name: bool. Whether the kernel is asked for by name.

    Returns:
        Pair of the reason and of whether it is one that holds by default and gives way
        to an argument that asks for the kernel; or `None` if it is not left out.
    """
    layer = kernel.layer
    if getattr(layer, "lora_enabled", False):
        reason = "LoRA is enabled: the kernel is frozen, its update is elsewhere"
        # Keras gives them what was on the kernel when LoRA was enabled.
        factors = [v for v in layer.weights if v.name.startswith("lora_")]
        if old := next((v.regularizer for v in factors if v.regularizer), None):
            reason += f", with {format_regularizer(old)}"
            if isinstance(old, WEISSI):
                reason += " (`deregularize` takes it off)"
        return reason, False
    mode = getattr(layer, "quantization_mode", None)
    if mode is not None or not keras.backend.is_float_dtype(kernel.variable.dtype):
        return f"quantized to {mode or kernel.variable.dtype}", False
    if is_embedding(kernel.variable) and not by_name:
        return "an embedding: name it in `layers` to take it", True
    old = kernel.regularizer
    if old is not None and not isinstance(old, WEISSI) and not replace:
        return f"has {format_regularizer(old)} already; replace=True replaces it", False
    if not include_normalized and normalization not in (None, "?"):
        return f"normalized by {normalization}", True
    return None
