"""Multiplies weights and the state of their optimizer by factors: all or none."""

import math

import keras
import ml_dtypes
import numpy as np

from keras_weissi.model.kernels import PIECE, host_pieces
from keras_weissi.symmetry.optimizer_state import state_of


def multiply_all(factors, optimizer=None):
    """Multiplies variables in place, all or none.

    If it is interrupted, or a device fails, the changes are undone (up to rounding).

    Args:
        factors: List of `(variable, factor, dtype)`: a `keras.Variable`, a float above
            0, and the dtype that its layer computes in.
        optimizer: The `keras.optimizers.Optimizer` that trains them, or `None`.

    Raises:
        ValueError: If a value would leave the range of its dtype, or if it is not
            known how the state of the optimizer scales. Nothing is changed then.
    """
    state = state_of(optimizer)
    plan = []
    for variable, factor, dtype in factors:
        if factor == 1.0:
            continue
        changes = [(variable, factor, dtype)]
        for kept, power in state.get(id(variable), ()):
            if power:
                changes.append((kept, _power(kept, factor, power), None))
        # Zeros stay as they are, even if the factor is out of their range.
        plan += [(v, c) for v, c, dtype in changes if _is_possible(v, c, dtype)]
    done = []
    try:
        for variable, factor in plan:
            _multiply(variable, factor)
            done.append((variable, factor))
    except BaseException:
        for variable, factor in done:
            _multiply(variable, 1.0 / factor)
        raise


def _power(variable, factor, power):
    try:
        return factor**power
    except OverflowError:
        raise ValueError(
            f"Cannot multiply {variable.path!r} by a power of {factor:g}. Expected one "
            f"within the range of floats. Received: {factor:g} to the power {power}"
        ) from None


def _range_of(dtype):
    """Returns the smallest and the largest normal number."""
    info = ml_dtypes.finfo(dtype)
    return float(info.smallest_normal), float(info.max)


def _is_possible(variable, factor, dtype):
    """Returns whether any element is not 0. Raises if the result is out of range.

    Args:
        variable: A `keras.Variable`.
        factor: float.
        dtype: What the layer casts the variable to; `None` for the state of an
            optimizer, which may also become 0.
    """
    largest = np.max([np.abs(p).max(initial=0.0) for p in host_pieces(variable)])
    if largest == 0.0:
        return False
    result = float(largest) * factor
    ranges = [_range_of(name) for name in (variable.dtype, dtype) if name is not None]
    least = max(low for low, _ in ranges) if dtype is not None else 0.0
    most = min(high for _, high in ranges)
    if least <= result <= most:
        return True
    names = " and ".join(dict.fromkeys(n for n in (variable.dtype, dtype) if n))
    raise ValueError(
        f"Cannot multiply {variable.path!r} by {factor:g}. Expected values within the "
        f"range of {names}. Received: {largest:g}, which would become {result:g}"
    )


def _multiply(variable, factor):
    is_half = variable.dtype in ("float16", "bfloat16")
    low, high = _range_of(variable.dtype)
    is_large = math.prod(variable.shape) > PIECE
    if is_large and not is_half and low <= factor <= high:
        # On the device, so that a large kernel needs one copy only. As a tensor, as
        # PyTorch would round a number to Keras's default float type.
        factor = keras.ops.convert_to_tensor(factor, variable.dtype)
        variable.assign(keras.ops.multiply(variable.value, factor))
        return
    pieces = [p.astype("float64") * factor for p in host_pieces(variable)]
    if is_half:
        pieces = [keras.ops.cast(piece, variable.dtype) for piece in pieces]
        variable.assign(keras.ops.concatenate(pieces) if pieces[1:] else pieces[0])
    else:
        pieces = [piece.astype(variable.dtype) for piece in pieces]
        variable.assign(np.concatenate(pieces) if pieces[1:] else pieces[0])
