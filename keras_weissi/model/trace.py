"""Sees inside custom layers and subclassed models: calls them on symbolic tensors.

Keras records what is applied to a `keras.KerasTensor`, also inside a `call`.
"""

import collections
import functools
import inspect
import itertools
import warnings
from typing import Any, NamedTuple

import keras

from keras_weissi._utils.keras_private import (
    inputs_struct,
    leaving_no_traces,
    mask_of,
    recording_with_non_symbols,
    set_mask,
)
from keras_weissi._utils.run_code import storages_run
from keras_weissi.model.homogeneity import is_of_keras
from keras_weissi.model.reads import (
    Outermost,
    ReadingScope,
    described,
    in_mode,
    symbols_in,
)
from keras_weissi.model.scaling import is_declared
from keras_weissi.model.snapshot import UnbuiltError, state_kept
from keras_weissi.model.walk import layers_of

# Layers of Keras that are made of other layers and of functions of `keras.ops`.
_SEEN_THROUGH = (
    *("Attention", "GroupedQueryAttention", "Lambda", "MultiHeadAttention"),
    *("LayerScale", "ReversibleEmbedding"),
)

# What `fit` calls of a model, besides `call`.
_STEPS = ("train_step", "test_step", "compute_loss")
# What unknown dimensions count as, tried in turn.
_SIZES = (None, 12, 1)


class Trace(NamedTuple):
    """What one call of a layer does inside.

    Attributes:
        layer: the `keras.Layer` that is called.
        arguments: pair of the list and the dict that it is called with.
        function: `keras.Function` with the calls inside.
        sources: list of those of its inputs that stand for the tensors that the call
            takes, in their order.
        weights: dict from the ids of other inputs to the `keras.Variable`s that they
            stand for.
        read: list of `keras.Variable`, whose values are used in another way.
        storages: set of what else is used that the backend knows, see `storage_of`.
        inside: dict from the ids of tensors to the `Trace` of the call that returns
            them, for custom layers inside.
    """

    layer: keras.Layer
    arguments: tuple[Any, Any]
    function: keras.Function
    sources: list[keras.KerasTensor]
    weights: dict[int, keras.Variable]
    read: list[keras.Variable]
    storages: set[int]
    inside: dict[int, "Trace"]


def can_be_traced(layer):
    """Whether it is the code of a user, or a layer of Keras that is made of others."""
    is_layer = isinstance(layer, keras.Layer) and not is_declared(layer)
    return is_layer and (
        not is_of_keras(layer) or type(layer).__name__ in _SEEN_THROUGH
    )


def has_own_code(layer):
    """Whether a layer that is seen through may do otherwise than it shows."""
    return not is_of_keras(layer) or type(layer) is keras.layers.Lambda


def trace_call(layer, node):
    """Records what one call of a layer does inside.

    It leaves no trace itself: what the code of the layer changes is put back.

    Args:
        layer: The `keras.Layer`, built.
        node: The call, as Keras records it.

    Returns:
        `Trace`, or str: why it cannot be seen.
    """
    arguments = (node.arguments.args, node.arguments.kwargs)
    return _trace(layer, arguments, len(node.output_tensors))


def trace_model(model):
    """Records what a subclassed model does, for inputs as it was built for.

    Returns:
        `Trace`, or str: why it cannot be seen.
    """
    own = [name for name in _STEPS if not is_of_keras_method(model, name)]
    if own:
        # It may use layers in another way than `call`.
        return f"its `{own[0]}` is its own"
    traced: Any = "it was not called on data"
    try:
        for arguments in inputs_of_model(model):
            if left := _left_out(model, arguments):
                return f"its `call` also takes {left[0]!r}"
            traced = _trace(model, arguments)
            if isinstance(traced, Trace):
                break
    except Exception as e:  # by a configuration of the user's own
        return described(e)
    return traced


def is_of_keras_method(model, name):
    """Whether a method of a model is that of Keras."""
    return getattr(type(model), name).__module__.split(".")[0] == "keras"


def _left_out(model, arguments):
    """Lists the arguments of `call` that a model was not built with."""
    args, kwargs = arguments
    parameters = inspect.signature(model.call).parameters.values()
    named = [
        p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    given = {*named[: len(args)], *kwargs, "training", "mask"}
    return [name for name in named if name not in given]


def inputs_of_model(model):
    """Yields arguments that a subclassed model may have been built for."""
    config = model.get_build_config() or {}
    if isinstance(model, keras.Function):  # with a `call` of its own
        yield (inputs_struct(model),), {}
        return
    if "shapes_dict" in config:
        named = config["shapes_dict"].items()
        shapes: Any = (), {name.removesuffix("_shape"): shape for name, shape in named}
    elif "input_shape" in config:
        shapes = (config["input_shape"],), {}
    else:
        return
    count = len(_flat_shapes(shapes))
    dtypes = (model.compute_dtype, "int32")
    for chosen in itertools.islice(itertools.product(dtypes, repeat=count), 16):
        rest = iter(chosen)
        with leaving_no_traces():
            arguments = keras.tree.map_shape_structure(
                lambda shape, rest=rest: keras.Input(
                    batch_shape=shape, dtype=next(rest)
                ),
                shapes,
            )
        yield arguments


def _flat_shapes(shapes):
    found: list[Any] = []
    keras.tree.map_shape_structure(found.append, shapes)
    return found


def _trace(layer, arguments, results=None):
    error = ""
    for size in _SIZES:
        try:
            with (
                warnings.catch_warnings(),
                state_kept([layer]),
                recording_with_non_symbols(),
            ):
                warnings.simplefilter("ignore")
                trace = _Recorder(size).trace(layer, arguments)
        except UnbuiltError as e:  # so would any other try
            return described(e)
        except Exception as e:
            error = error or described(e)
            continue
        if results not in (None, len(trace.function.outputs)):
            return "it returns something else than tensors"
        return trace
    return error


class _Recorder:
    """Lets layers record their `call` when Keras asks for the shape of the output."""

    def __init__(self, size):
        self.size = size  # what unknown dimensions count as
        # The traces, by the ids of what the calls return.
        self.inside: dict[int, Trace] = {}
        self.alive: list[Any] = []  # what is returned, so that no id is used again
        self.read: dict = collections.defaultdict(dict)  # variables, by layer
        self.storages: set[int] = set()

    def trace(self, layer, arguments):
        """Returns the `Trace` of a layer."""
        parts = [x for x in layers_of(layer) if x is layer or can_be_traced(x)]
        try:
            for part in parts:
                self._see_through(part, is_all=part is layer)
            return self._traced(layer, arguments)
        finally:
            for part in parts:
                vars(part).pop("compute_output_spec", None)

    def _traced(self, layer, arguments):
        (args, kwargs), _ = self._cloned(arguments)
        outputs: list[Any] = []

        def call(_):
            for training in (True, False):
                named = in_mode(layer, kwargs, training)
                run = functools.partial(layer, *args, **named)
                outputs[:] = keras.tree.flatten(
                    Outermost()(function=run, training=training)
                )

        self.storages |= storages_run(call, [])
        return next(self.inside[id(x)] for x in outputs if id(x) in self.inside)

    def _see_through(self, part, is_all):
        as_it_is = part.compute_output_spec

        def compute_output_spec(*args, **kwargs):
            before = dict(vars(part))
            # With symbols for its weights, what is done to them is recorded too.
            for with_symbols in (True, False):
                try:
                    return self._record(part, (args, kwargs), with_symbols)
                except Exception:
                    if is_all and not with_symbols:
                        raise
                finally:
                    vars(part).pop("add_loss", None)
                    vars(part).update(before)
            return as_it_is(*args, **kwargs)

        vars(part)["compute_output_spec"] = compute_output_spec

    def _record(self, layer, arguments, with_symbols):
        """Calls a layer on symbols, and returns what Keras takes for its outputs."""
        (args, kwargs), clones = self._cloned(arguments)
        weights = _replace_weights(layer) if with_symbols else []
        vars(layer)["add_loss"] = _refuse_loss
        with ReadingScope(self.read[id(layer)]):
            outputs = layer.call(*args, **kwargs)
            inputs = [*clones.values(), *(symbol for symbol, _ in weights)]
            tensors = list(filter(_is_symbolic, keras.tree.flatten(outputs)))
            function = keras.Function(inputs, tensors)
        given = list(filter(_is_symbolic, keras.tree.flatten(arguments)))
        masks = {id(mask_of(x)) for x in given}  # Keras has added these
        trace = Trace(
            layer,
            (args, kwargs),
            function,
            [clones[id(x)] for x in given if id(x) not in masks],
            {id(symbol): variable for symbol, variable in weights},
            list(self.read[id(layer)].values()),
            self.storages,
            self.inside,
        )
        specs = keras.tree.map_structure(_spec, outputs)
        self.alive.append(specs)
        self.inside |= {id(spec): trace for spec in keras.tree.flatten(specs)}
        return specs

    def _cloned(self, arguments):
        """Returns the arguments with other symbols, and these by the ids of the old."""
        symbols = symbols_in(arguments)
        clones = {key: _clone(x, self.size) for key, x in symbols.items()}
        for key, x in symbols.items():
            if (mask := mask_of(x)) is not None:
                set_mask(clones[key], clones[id(mask)])
        cloned = keras.tree.map_structure(lambda x: clones.get(id(x), x), arguments)
        return cloned, clones


def _is_symbolic(x):
    return isinstance(x, keras.KerasTensor)


def _clone(x, size):
    shape = [size if n is None else n for n in x.shape]
    return keras.Input(batch_shape=shape, dtype=x.dtype)


def _spec(x):
    return keras.KerasTensor(x.shape, x.dtype) if _is_symbolic(x) else x


def _refuse_loss(loss):
    raise RuntimeError("it adds to the loss")


def _replace_weights(layer):
    """Puts symbols in the place of the weights of a layer, until it is put back.

    Returns:
        List of pairs of a symbol and a `keras.Variable`.
    """
    replaced = []
    for name, value in list(vars(layer).items()):
        if isinstance(value, keras.Variable) and value.trainable:
            symbol = keras.Input(batch_shape=value.shape, dtype=value.dtype)
            replaced.append((symbol, value))
            vars(layer)[name] = symbol
    return replaced
