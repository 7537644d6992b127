"""Which variables the code of a user reads, found by running it.

Such code may reach the weights of another layer through any closure, container or
attribute. Where it reads them it asks Keras for their values, or uses what the backend
keeps them in: both are noted.
"""

import inspect
import re
import textwrap
import warnings
from typing import NamedTuple

import keras

from keras_weissi._utils.keras_private import mask_of, set_mask, sublayers
from keras_weissi._utils.run_code import (
    can_trace,
    storage_of,
    storages_run,
    storages_traced,
)
from keras_weissi.model.homogeneity import is_homogeneous, is_of_keras
from keras_weissi.model.snapshot import UnbuiltError, state_kept, used_by

# What unknown dimensions count as, tried in turn. The code may divide them, or need
# them to be large, or small. Without values, large ones cost nothing.
_TRACED_SIZES = (840, 2, 64, 1)
_RUN_SIZES = (2, 1, 64, 84)
_LARGEST_BATCH = 12  # of what is run
_BOLD = re.compile("\x1b\\[[0-9]*m")  # what makes letters bold
# Attributes of a layer that its `call` does not call; the last is a list of weights.
_NOT_CALLED = (
    *("_initializer", "_regularizer", "_constraint", "build", "quantize"),
    "torch_params",
)
# The most frequent kinds of attributes, which hold nothing.
_PLAIN_KINDS = (str, int, float, bool, type(None))


class Reads(NamedTuple):
    """What a call reads."""

    reader: str  # the name of what reads it
    owner: keras.Operation | None  # what may read its own weights and stay free
    variables: list[keras.Variable]
    error: str  # why that is not all, or ""


def reads_of(layer, node, weights):
    """Lists the weights that a call may read, other than by the class of the layer.

    The code of Keras is known. Any other code that takes part is run: functions and
    layers that are attributes or arguments of the call, or the layer itself. What it
    changes is put back.

    Args:
        layer: The `keras.Operation` that is called, without a `TimeDistributed`.
        node: The call, as Keras records it.
        weights: List of `keras.Variable`: all weights of the model.

    Returns:
        List of `Reads`.
    """
    found, skipped = [], set()
    activation = getattr(layer, "activation", None)
    if is_of_keras(layer) and any(_foreign(activation, set())):
        # An activation runs alone: reading its own layer's kernel also pins it.
        skipped.add(id(activation))
        if not is_homogeneous(activation):
            name = f"the activation of {layer.name}"
            read = _run(activation, node.output_tensors[:1], {}, weights)
            found.append(Reads(name, None, *read))
    operation = node.operation
    arguments = (node.arguments.args, node.arguments.kwargs)
    variables, code = _foreign((operation, arguments), skipped)
    # On PyTorch, an argument such as `transpose(layer.kernel)` is a view of a weight.
    variables += stored_in(storages_among(arguments), weights)
    error = ""
    if code:
        read, error = _run(operation, *arguments, weights)
        variables += read
    return [*found, Reads(operation.name, layer, variables, error)]


def _is_tensor(x):
    is_symbolic = isinstance(x, (keras.KerasTensor, keras.Variable))
    return keras.ops.is_tensor(x) and not is_symbolic


def storages_among(structure):
    """Returns the storages of the tensors in a structure that are not symbolic."""
    return {storage_of(x) for x in keras.tree.flatten(structure) if _is_tensor(x)}


def stored_in(storages, weights):
    """Lists the weights that the backend keeps in some storages."""
    if not storages:
        return []
    return [v for v in weights if storage_of(v.value) in storages]


def _foreign(thing, seen):
    """Finds what is not Keras's in a thing of Keras.

    Returns:
        Pair of lists: variables, and what may run code of others.
    """
    variables: list[keras.Variable] = []
    code: list = []
    if id(thing) in seen:
        return variables, code
    seen.add(id(thing))
    inside: list = []
    if isinstance(thing, (list, tuple, set)):
        inside = list(thing)
    elif isinstance(thing, dict):
        inside = list(thing.values())
    elif isinstance(thing, keras.Variable):
        variables.append(thing)
    elif inspect.ismethod(thing):
        inside = [thing.__self__, thing.__func__]
    elif inspect.isfunction(thing):
        # `__module__` would be another's if it is decorated with `functools.wraps`.
        if thing.__globals__.get("__name__", "").split(".")[0] != "keras":
            code.append(thing)
        else:
            inside = used_by(thing) if thing.__closure__ else []
    elif not is_of_keras(thing):
        if callable(thing) and not inspect.isclass(thing):
            code.append(thing)
    elif isinstance(thing, keras.Layer):
        inside = [
            *(
                value
                for name, value in vars(thing).items()
                if type(value) not in _PLAIN_KINDS
                and not (name.startswith("_") or name.endswith(_NOT_CALLED))
            ),
            *sublayers(thing),
        ]
    elif isinstance(thing, keras.Operation) or callable(thing):
        inside = list(getattr(thing, "__dict__", {}).values())
    for part in inside:
        for all_of, some in zip((variables, code), _foreign(part, seen), strict=True):
            all_of += some
    return variables, code


class ReadingScope(keras.StatelessScope):
    """Notes which variables are read, by their ids, also in scopes made inside it."""

    def __init__(self, read):
        super().__init__()
        self.read = read

    def __enter__(self):
        """Lets all scopes note what is read."""
        self._original = original = keras.StatelessScope.get_current_value

        def get_current_value(scope, variable):
            self.read[id(variable)] = variable
            return original(scope, variable)

        keras.StatelessScope.get_current_value = get_current_value
        return super().__enter__()

    def __exit__(self, *args, **kwargs):
        """Puts back what scopes do."""
        keras.StatelessScope.get_current_value = self._original
        return super().__exit__(*args, **kwargs)


class Outermost(keras.Layer):
    """Tells all layers inside whether they are training, as a model does."""

    def __init__(self):
        super().__init__(name="outermost")
        self.built = True

    def call(self, function=None, training=None):
        """Calls the function."""
        return function()


def _run(function, args, kwargs, weights):
    """Runs a function without values or, if that fails, on ones.

    Returns:
        Pair of a list of the variables that it reads, and of the error that it raises,
        or "".
    """
    read: dict[int, keras.Variable] = {}
    tries = [(size, 1, True) for size in _TRACED_SIZES if can_trace()]
    # Ones may be out of range for an index.
    tries += [(size, integer, False) for size in _RUN_SIZES for integer in (1, 0)]
    errors = []
    for size, integer, is_traced in tries:
        try:
            for training in (False, True):
                with warnings.catch_warnings(), state_kept([function, args, kwargs]):
                    warnings.simplefilter("ignore")
                    storages = _run_once(
                        function, args, kwargs, training, size, integer, is_traced, read
                    )
                read.update((id(v), v) for v in stored_in(storages, weights))
        except UnbuiltError as e:  # so would any other try
            return list(read.values()), described(e)
        except Exception as e:
            if not is_traced:  # what fails without values may do with them
                errors.append(described(e))
        else:
            return list(read.values()), ""
    return list(read.values()), errors[0]


def described(error):
    """Says in one line what was raised inside a call of Keras."""
    # Where Keras adds to what is raised, the message is the third line.
    lines = [line for line in _BOLD.sub("", str(error)).splitlines() if line]
    said = [line for line in lines if not line.startswith("Exception enc")]
    first = textwrap.shorten((said or [""])[0], 100, placeholder=" …")
    return f"{type(error).__name__}: {first}"


def _run_once(function, args, kwargs, training, size, integer, is_traced, read):
    """Runs a function, notes what is read, and returns the storages that it uses."""
    symbols = symbols_in((args, kwargs))
    outermost = Outermost()

    def apply(values):
        known = dict(zip(symbols, values, strict=True))
        for key, x in symbols.items():
            if (mask := mask_of(x)) is not None:
                set_mask(known[key], known[id(mask)])
        given, named = keras.tree.map_structure(
            lambda x: known.get(id(x), x), (args, kwargs)
        )
        outermost(function=lambda: function(*given, **named), training=training)

    shapes = [_known_shape(x, size, is_traced) for x in symbols.values()]
    dtypes = [x.dtype for x in symbols.values()]
    if is_traced:
        with ReadingScope(read):
            return storages_traced(apply, list(zip(shapes, dtypes, strict=True)))
    values = [
        keras.ops.full(
            shape, integer if keras.backend.is_int_dtype(dtype) else 1, dtype
        )
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    with ReadingScope(read):
        return storages_run(apply, values)


def in_mode(layer, kwargs, training):
    """Adds whether it is training to the arguments of a call, as a model does."""
    if "training" in inspect.signature(layer.call).parameters:
        return {**kwargs, "training": training}
    return kwargs


def symbols_in(structure):
    """Collects the symbolic tensors in a structure, and their masks, by their ids."""
    found: dict[int, keras.KerasTensor] = {}
    waiting = keras.tree.flatten(structure)
    for x in waiting:
        if isinstance(x, keras.KerasTensor) and id(x) not in found:
            found[id(x)] = x
            waiting.append(mask_of(x))
    return found


def _known_shape(x, size, is_traced):
    shape = [size if n is None else n for n in x.shape]
    if shape and x.shape[0] is None and not is_traced:
        shape[0] = min(size, _LARGEST_BATCH)
    return shape
