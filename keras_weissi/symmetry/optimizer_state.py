"""What each optimizer keeps for a weight, and how it scales with the weight.

If a weight is multiplied by c, its gradient is divided by c, so each variable of the
optimizer must be multiplied by the power of c by which it scales.
"""

import keras

from keras_weissi._utils.keras_private import state_by_name, trained_by
from keras_weissi._utils.validation import invalid
from keras_weissi.model.homogeneity import is_of_keras

# For each optimizer, the power of c that its variables are multiplied by. The names are
# those of the optimizer's attributes, without a leading underscore.
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
    # Its momentum sums steps, which do not depend on the size of the gradient.
    "RMSprop": {"velocities": -2, "average_gradients": -1, "momentums": 0},
    "SGD": {"momentums": -1},
}
_POWERS_IN_ANY = {"accumulated_gradients": -1, "model_variables_moving_average": 1}


def optimizer_of(model, optimizer):
    """Returns the optimizer whose state is to be rescaled, or `None`.

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
                f"model {model.name!r}. Received: {type(inner).__name__}, "
                f"which trains {len(trained)} variables of another model"
            )
        return optimizer
    if not isinstance(optimizer, bool):
        raise invalid("optimizer", "a bool or a keras.optimizers.Optimizer", optimizer)
    return getattr(model, "optimizer", None) if optimizer else None


def state_of(optimizer):
    """Lists what an optimizer keeps for each variable.

    Args:
        optimizer: A `keras.optimizers.Optimizer` or `None`.

    Returns:
        Dict from the id of a trainable variable to a list of pairs: a variable of the
        optimizer, and the power of the weight's factor that it is multiplied by.

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
            f"rescaled ({', '.join(sorted(_POWERS))}), or optimizer=False to leave its "
            f"state as it is. Received: {kind.__name__}"
        )
    if not optimizer.built:
        return {}
    state: dict[int, list] = {id(v): [] for v in trained_by(optimizer)}
    carried = set()
    for name, power in {**powers, **_POWERS_IN_ANY}.items():
        kept_by_name = state_by_name(optimizer, name)
        if not kept_by_name:
            continue
        for variable, kept in zip(trained_by(optimizer), kept_by_name, strict=True):
            if kept is not None:
                state[id(variable)].append((kept, power))
                carried.add(id(kept))
    unknown = [
        v.path for v in optimizer.variables if len(v.shape) and id(v) not in carried
    ]
    if unknown:
        raise ValueError(
            "Invalid value for argument `optimizer`. Expected an optimizer whose "
            "state variables are all known to this version of keras_weissi. Received: "
            f"{kind.__name__}, with {unknown[0]!r}"
        )
    return state


def _inner(optimizer):
    """Returns the optimizer inside a `LossScaleOptimizer`."""
    loss_scaling = keras.optimizers.LossScaleOptimizer
    while isinstance(optimizer, loss_scaling) and is_of_keras(optimizer):
        optimizer = optimizer.inner_optimizer
    return optimizer
