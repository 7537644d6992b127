"""All that this package takes from Keras and Keras does not publish.

Each function is one such thing, so that a new version of Keras can break it here alone,
and `tests/_utils/test_keras_private.py` says which.
"""


def sublayers(layer):
    """Lists the layers right inside a layer; Keras lists those of models alone."""
    return layer._flatten_layers(include_self=False, recursive=False)


def nodes_of(function):
    """Lists the calls inside a function, each after those whose output it takes."""
    by_depth = function._nodes_by_depth
    return [
        node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]
    ]


def inputs_struct(function):
    """Returns how the inputs of a function are arranged: in lists, dicts or alone."""
    return function._inputs_struct


def functional_of(sequential):
    """Returns the Functional model inside of a `Sequential`, `None` if unbuilt."""
    return sequential._functional if sequential.built else None


def trained_by(optimizer):
    """Lists the variables that a built optimizer trains, in the order of its own."""
    return optimizer._trainable_variables


def slots_by_name(optimizer, name):
    """Lists what an optimizer keeps under a name, one for each variable it trains.

    Keras shows the variables of an optimizer, but not which weight they belong to.
    """
    return getattr(optimizer, f"_{name}", None) or getattr(optimizer, name, None) or ()


def model_in_training(callback):
    """Returns the model of a callback, without bringing the state of training to it.

    On JAX, `callback.model` waits for the step that is being computed.
    """
    return callback._model


def regularizer_slots(attention):
    """Lists the attributes that an attention layer makes its inner layers from."""
    names = ("kernel_regularizer", "_kernel_regularizer")
    return [name for name in names if hasattr(attention, name)]


def regularizers_kept_by(layer):
    """Returns the attributes of a layer that hold regularizers, with their values.

    Not just those that are saved: LoRA and quantization copy them.
    """
    return {n: value for n, value in vars(layer).items() if n.endswith("regularizer")}
