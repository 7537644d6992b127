"""Multiplies weights by factors, and what the optimizer remembers of them with them.

If a weight is multiplied by c, its gradient is divided by c, and so must be whatever
the optimizer keeps in proportion to the gradient.
"""

import math

import keras
import ml_dtypes
import numpy as np

from keras_weissi._utils.keras_private import slots_by_name, trained_by
from keras_weissi._utils.validation import invalid
from keras_weissi.model.homogeneity import is_of_keras
from keras_weissi.model.kernels import PIECE, host_pieces

# For each optimizer, the power of c by which its variables go. The names are those of
# the optimizer's attributes, without an underscore in front.
_ADAM = {"momentums": -1, "velocities": -2, "velocity_hats": -2}
_POWERS = {
    "Adadelta": {"accumulated_grads": -2, "accumulated_delta_vars": 0},
    "Adagrad": {"accumulators": -2},
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "Adamax": {"m": -1, "u": -1},
    "Lamb": _ADAM,
    "Lion": {"momentums": -1},
    "Nadam": _ADAM,
    # Its momentum is made of steps, from which the size of the gradient is gone.
    "RMSprop": {"velocities": -2, "average_gradients": -1, "momentums": 0},
    "SGD": {"momentums": -1},
}
_POWERS_IN_ANY = {"accumulated_gradients": -1, "model_variables_moving_average": 1}


def optimizer_of(model, optimizer):
    """Returns the optimizer whose state is to be carried, or `None`.

    Args:
        model: A `keras.Model`.
        optimizer: `True` for the one that the model is compiled with, if it is;
            `False` for none; or a `keras.optimizers.Optimizer`.

    Raises:
        ValueError: If it is something else, or trains another model.
    """
    if isinstance(optimizer, keras.optimizers.Optimizer):
        inner = _inner(optimizer)
        trained = {id(v) for v in trained_by(inner)}
        if inner.built and not any(id(v) in trained for v in model.trainable_variables):
            raise ValueError(
                "Invalid value for argument `optimizer`. Expected one that trains "
                f"model {model.name!r}. Received: {type(inner).__name__} with "
                f"{len(trained)} variables of another"
            )
        return optimizer
    if not isinstance(optimizer, bool):
        raise invalid("optimizer", "a bool or a keras.optimizers.Optimizer", optimizer)
    return getattr(model, "optimizer", None) if optimizer else None


def rescale(factors, optimizer=None):
    """Multiplies variables in place, all or none.

    If it is interrupted, or a device fails, what has been multiplied is divided again.

    Args:
        factors: List of `(variable, factor, dtype)`: a `keras.Variable`, a float above
            0, and the dtype that its layer computes in.
        optimizer: The `keras.optimizers.Optimizer` that trains them, or `None`.

    Raises:
        ValueError: If a value would leave the range of its dtype, or if it is not
            known how the state of the optimizer goes with the weights. Nothing has
            been changed then.
    """
    slots = state_of(optimizer)
    plan = []
    for variable, factor, dtype in factors:
        if factor == 1.0:
            continue
        changes = [(variable, factor, dtype)]
        for slot, power in slots.get(id(variable), ()):
            if power:
                changes.append((slot, _power(slot, factor, power), None))
        # Zeros stay as they are, also if the factor is out of their range.
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


def state_of(optimizer):
    """Lists what an optimizer keeps for each variable.

    Args:
        optimizer: A `keras.optimizers.Optimizer` or `None`.

    Returns:
        Dict from the id of a trainable variable to a list of pairs of an optimizer's
        variable and the power by which it goes with the factor of the weight.

    Raises:
        ValueError: If the optimizer is not known, or keeps something unknown.
    """
    if optimizer is None:
        return {}
    optimizer = _inner(optimizer)
    # By name, as Keras has other classes of these names for PyTorch.
    kind = type(optimizer)
    powers = _POWERS.get(kind.__name__)
    if powers is None or not is_of_keras(optimizer):
        raise ValueError(
            "Invalid value for argument `optimizer`. Expected one whose state can be "
            f"carried ({', '.join(sorted(_POWERS))}), or optimizer=False to leave its "
            f"state as it is. Received: {kind.__name__}"
        )
    if not optimizer.built:
        return {}
    state: dict[int, list] = {id(v): [] for v in trained_by(optimizer)}
    carried = set()
    for name, power in {**powers, **_POWERS_IN_ANY}.items():
        slots = slots_by_name(optimizer, name)
        if not slots:
            continue
        for variable, slot in zip(trained_by(optimizer), slots, strict=True):
            if slot is not None:
                state[id(variable)].append((slot, power))
                carried.add(id(slot))
    unknown = [
        v.path for v in optimizer.variables if len(v.shape) and id(v) not in carried
    ]
    if unknown:
        raise ValueError(
            "Invalid value for argument `optimizer`. Expected one that keeps nothing "
            f"but what this version of keras_weissi knows. Received: {kind.__name__}, "
            f"with {unknown[0]!r}"
        )
    return state


def _inner(optimizer):
    """Returns the optimizer that a `LossScaleOptimizer` is around."""
    loss_scaling = keras.optimizers.LossScaleOptimizer
    while isinstance(optimizer, loss_scaling) and is_of_keras(optimizer):
        optimizer = optimizer.inner_optimizer
    return optimizer


def _power(slot, factor, power):
    try:
        return factor**power
    except OverflowError:
        raise ValueError(
            f"Cannot multiply {slot.path!r} by a power of {factor:g}. Expected one "
            f"within the range of floats. Received: {factor:g} to the power {power}"
        ) from None


def _range_of(dtype):
    """Returns the least and the largest normal number."""
    info = ml_dtypes.finfo(dtype)
    return float(info.smallest_normal), float(info.max)


def _is_possible(variable, factor, dtype):
    """Whether there is anything to multiply; raises if the result is out of range.

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
        f"range of {names}. Received: {largest:g} as the largest, {result:g} after"
    )


def _multiply(variable, factor):
    is_half = variable.dtype in ("float16", "bfloat16")
    low, high = _range_of(variable.dtype)
    is_large = math.prod(variable.shape) > PIECE
    if is_large and not is_half and low <= factor <= high:
        # On the device: a large kernel gets by with one copy of itself.
        # As a tensor: PyTorch would round a number to Keras's default float type.
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
