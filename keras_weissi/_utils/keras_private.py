"""The only module that uses non-public Keras API.

Each function is one such use, with a test that fails when a new version of Keras
changes it.
"""

import contextlib
import copy
import inspect
import random

import keras
from keras.src.backend.common import global_state, masking
from keras.src.ops.node import Node


def sublayers(layer):
    """Lists the layers directly inside a layer; Keras shows only those of models."""
    return layer._flatten_layers(include_self=False, recursive=False)


def made_trainable(layer):
    """Lists the weights of a layer itself that are trained unless it is frozen."""
    return layer._trainable_variables


@contextlib.contextmanager
def leaving_no_traces():
    """Layers made inside take no numbers for names and no random seeds.

    Nor does Keras keep those of their weights that have no value yet.
    """
    names = ("object_name_uids", "uninitialized_variables", "name_scope_stack")
    before = [copy.copy(global_state.get_global_attribute(name)) for name in names]
    generator = global_state.get_global_attribute("global_seed_generator")
    seeds = random.getstate()
    try:
        yield
    finally:
        random.setstate(seeds)
        for name, value in zip(names, before, strict=True):
            global_state.set_global_attribute(name, value)
        global_state.set_global_attribute("global_seed_generator", generator)


def tracking_of(layer):
    """Returns what keeps track of the parts of a layer, as objects with a state."""
    tracker = layer._tracker
    return [tracker, *tracker.stored_ids.values()]


def refuse_parts(layer):
    """Lets a layer raise an error if it gets weights or layers."""
    layer._tracker.locked = True


@contextlib.contextmanager
def recording_with_non_symbols():
    """Records two kinds of calls on symbols that Keras refuses to record.

    Layers may return `None` besides tensors, for example in place of a cache. And on
    JAX, an array may be multiplied by a symbol, which JAX takes for an array if it can.
    """
    as_array = keras.KerasTensor.__jax_array__
    init = Node.__init__

    def init_with_tensors(self, *args, outputs=None, **kwargs):
        outputs = [x for x in keras.tree.flatten(outputs) if x is not None]
        init(self, *args, outputs=outputs, **kwargs)

    try:
        Node.__init__ = init_with_tensors
        del keras.KerasTensor.__jax_array__
        yield
    finally:
        Node.__init__ = init
        keras.KerasTensor.__jax_array__ = as_array


@contextlib.contextmanager
def holding(values):
    """Lets variables hold other values, for code that does not ask Keras for them.

    On JAX, whose variables hold plain arrays.

    Args:
        values: List of pairs of a `keras.Variable` and a tensor.
    """
    if keras.backend.backend() != "jax":
        values = []
    before = [(variable, variable._value) for variable, _ in values]
    try:
        for variable, value in values:
            variable._value = value
        yield
    finally:
        for variable, value in before:
            variable._value = value


def nodes_of(function):
    """Lists the calls inside a function, each after those whose output it takes."""
    by_depth = function._nodes_by_depth
    return [
        node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]
    ]


def inputs_struct(function):
    """Returns how the inputs of a function are arranged: in lists, dicts or alone."""
    return function._inputs_struct


def mask_of(tensor):
    """Returns the mask that Keras has attached to a tensor, or `None`."""
    return masking.get_keras_mask(tensor)


def set_mask(tensor, mask):
    """Attaches a mask to a tensor."""
    masking.set_keras_mask(tensor, mask)


def functional_of(sequential):
    """Returns the Functional model inside of a `Sequential`, `None` if unbuilt."""
    return sequential._functional if sequential.built else None


def trained_by(optimizer):
    """Lists the variables that a built optimizer trains, in its own order."""
    return optimizer._trainable_variables


def state_by_name(optimizer, name):
    """Lists what an optimizer keeps under a name, one for each variable it trains.

    Public API lists the variables of an optimizer, but not which weight each is for.
    """
    return getattr(optimizer, f"_{name}", None) or getattr(optimizer, name, None) or ()


def model_in_training(callback):
    """Returns the model of a callback without updating its variables.

    On JAX, `callback.model` waits for the step that is being computed.
    """
    return callback._model


def make_step(model, kind):
    """Makes the compiled step of a model that has none, `"train"` or `"test"`.

    While anything holds the old step, JAX takes what that has traced for the new one
    too, as both compile the same method. So it has to forget it.
    """
    getattr(model, f"make_{kind}_function")()
    step = getattr(model, f"{kind}_function")
    if keras.backend.backend() == "jax" and inspect.isfunction(step):
        for value in inspect.getclosurevars(step).nonlocals.values():
            if hasattr(value, "clear_cache"):
                value.clear_cache()


def leave_fit(progress_bar):
    """Lets a `ProgbarLogger` that has been in a `fit` draw the bar of `evaluate`."""
    progress_bar._called_in_fit = False


def regularizer_attributes(attention):
    """Lists the attributes of an attention layer that hold its kernel regularizer."""
    names = ("kernel_regularizer", "_kernel_regularizer")
    return [name for name in names if hasattr(attention, name)]


def regularizers_kept_by(layer):
    """Returns the attributes of a layer that hold regularizers, with their values.

    Includes the unsaved copies that LoRA and quantization make.
    """
    return {n: value for n, value in vars(layer).items() if n.endswith("regularizer")}
