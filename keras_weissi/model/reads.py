"""Which variables the code of a user reads, found by running it once on ones.

Such code may reach the weights of another layer through any closure, container or
attribute. Where it reads them it asks Keras for their values, so that is what counts.
"""

import inspect
import itertools
import re
import warnings
from typing import NamedTuple

import keras

from keras_weissi._utils.backend import random_state_kept, trace, without_compiling
from keras_weissi._utils.keras_private import copy_mask
from keras_weissi.model.homogeneity import is_homogeneous, is_of_keras
from keras_weissi.model.walk import layers_of

# Tried in turn: what unknown dimensions count as, and the values of integers. Ones may
# be out of range for an index, and small images too small for a convolution.
_TRIES = tuple(itertools.product((2, 1, 64), (1, 0)))
_PLAIN = re.compile("\x1b\\[[0-9]*m")  # what makes letters bold
# Attributes of a layer that its `call` does not call; the last is a list of weights.
_NOT_CALLED = ("_initializer", "_regularizer", "_constraint", "torch_params")


class Reads(NamedTuple):
    """What a call reads."""

    reader: str  # the name of what reads it
    owner: keras.Operation | None  # what may read its own weights and stay free
    variables: list[keras.Variable]
    error: str  # why that is not all, or ""


def reads_of(layer, node):
    """Lists what a call reads that cannot be seen from the class of the layer.

    The code of Keras is known. Any other code that takes part is run on ones: functions
    and layers that are attributes or arguments of the call, or the layer itself. No
    variable changes.

    Args:
        layer: The `keras.Operation` that is called, without a `TimeDistributed`.
        node: The call, as Keras records it.

    Returns:
        List of `Reads`.
    """
    found, skipped = [], set()
    activation = getattr(layer, "activation", None)
    if is_of_keras(layer) and list(_foreign(activation, set())):
        # Alone, as it must not read the kernel of its own layer either.
        skipped.add(id(activation))
        if not is_homogeneous(activation):
            name = f"the activation of {layer.name}"
            read = _run(activation, node.output_tensors[:1], {})
            found.append(Reads(name, None, *read))
    operation = node.operation
    arguments = (node.arguments.args, node.arguments.kwargs)
    foreign = list(_foreign((operation, arguments), skipped))
    variables = [x for x in foreign if isinstance(x, keras.Variable)]
    error = ""
    if len(variables) < len(foreign):
        read, error = _run(operation, *arguments)
        variables += read
    return [*found, Reads(operation.name, layer, variables, error)]


def _foreign(thing, seen):
    """Yields the variables in a thing of Keras, and what may run code of others."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    inside: list = []
    if isinstance(thing, (list, tuple, set)):
        inside = list(thing)
    elif isinstance(thing, dict):
        inside = [v for k, v in thing.items() if not str(k).endswith(_NOT_CALLED)]
    elif isinstance(thing, keras.Variable):
        yield thing
    elif inspect.isfunction(thing):
        # `__module__` would be another's if it is decorated with `functools.wraps`.
        if thing.__globals__.get("__name__", "").split(".")[0] != "keras":
            yield thing
    elif not is_of_keras(thing):
        if callable(thing):
            yield thing
    elif isinstance(thing, keras.Operation):
        inside = [vars(thing)]
    for part in inside:
        yield from _foreign(part, seen)


class _Scope(keras.StatelessScope):
    def __init__(self, read):
        super().__init__()
        self.read = read

    def get_current_value(self, variable):
        self.read[id(variable)] = variable
        return super().get_current_value(variable)


def _run(function, args, kwargs):
    """Runs a function on ones.

    Returns:
        Pair of a list of the variables that it reads, and of the error that it raises,
        or "".
    """
    read: dict[int, keras.Variable] = {}
    modes: list[dict] = [{}]
    if "training" not in kwargs and _takes_training(function):
        modes = [{"training": False}, {"training": True}]
    errors = []
    with random_state_kept(), warnings.catch_warnings(), _NothingIsBuilt(function):
        warnings.simplefilter("ignore")
        for size, integer in _TRIES:
            try:
                for mode in modes:
                    _run_once(function, args, {**kwargs, **mode}, size, integer, read)
            except Exception as e:
                # Where Keras adds to what is raised, the message is the third line.
                lines = [line for line in _PLAIN.sub("", str(e)).splitlines() if line]
                said = [line for line in lines if not line.startswith("Exception enc")]
                errors.append(f"{type(e).__name__}: {(said or [''])[0]}")
            else:
                return list(read.values()), ""
    return list(read.values()), errors[0]


def _run_once(function, args, kwargs, size, integer, read):
    ones: dict = {}  # by the id of what they stand for
    for x in keras.tree.flatten((args, kwargs)):
        if isinstance(x, keras.KerasTensor):
            _ones_like(x, size, integer, ones)

    def apply(values):
        known = dict(zip(ones, values, strict=True))
        given, named = keras.tree.map_structure(
            lambda x: known.get(id(x), x), (args, kwargs)
        )
        function(*given, **named)

    values = list(ones.values())
    with _Scope(read):
        try:
            trace(
                apply, values
            )  # which takes all branches, but not all code can be traced
        except Exception:
            pass
    # What is compiled already would not ask for values again.
    with _Scope(read), without_compiling():
        apply(values)


def _ones_like(x, size, integer, known):
    if id(x) not in known:
        shape = [size if n is None else n for n in x.shape]
        if shape and x.shape[0] is None:
            shape[0] = min(size, 2)
        is_integer = keras.backend.is_int_dtype(x.dtype)
        value = keras.ops.full(shape, integer if is_integer else 1, x.dtype)
        known[id(x)] = value
        copy_mask(x, value, lambda mask: _ones_like(mask, size, integer, known))
    return known[id(x)]


def _takes_training(function):
    call = function.call if isinstance(function, keras.Operation) else function
    try:
        return "training" in inspect.signature(call).parameters
    except (TypeError, ValueError):
        return False


class _NothingIsBuilt:
    """Keeps layers that are not built from being built: they would get weights."""

    def __init__(self, function):
        layers = layers_of(function) if isinstance(function, keras.Layer) else []
        self._methods = [(x, x.build) for x in layers if not x.built]

    def __enter__(self):
        for layer, _ in self._methods:
            object.__setattr__(layer, "build", _refuse_to_build)

    def __exit__(self, *error):
        for layer, build in self._methods:
            object.__setattr__(layer, "build", build)


def _refuse_to_build(*args, **kwargs):
    raise RuntimeError("it holds a layer that is not built")
