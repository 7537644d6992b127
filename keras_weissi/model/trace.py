"""Sees inside custom layers and subclassed models: calls them on symbolic tensors.

Keras records what is applied to a `keras.KerasTensor`, also inside a `call`.
"""

import functools
import itertools
import warnings
from typing import Any, NamedTuple

import keras

from keras_weissi._utils.backend import storages_run
from keras_weissi._utils.keras_private import mask_of, set_mask
from keras_weissi.model.homogeneity import is_of_keras
from keras_weissi.model.reads import (
    Outermost,
    ReadingScope,
    described,
    in_mode,
    symbols_in,
)
from keras_weissi.model.scaling import is_declared
from keras_weissi.model.snapshot import state_kept
from keras_weissi.model.walk import layers_of

# Layers of Keras that are made of other layers and of functions of `keras.ops`.
_SEEN_THROUGH = (
    *("Attention", "GroupedQueryAttention", "Lambda", "MultiHeadAttention"),
    "ReversibleEmbedding",
)

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
    return _trace(layer, arguments, node.input_tensors, len(node.output_tensors))


def trace_model(model):
    """Records what a subclassed model does, for inputs as it was built for.

    Returns:
        `Trace`, or str: why it cannot be seen.
    """
    traced: Any = "it was not called on data"
    for arguments in inputs_of_model(model):
        sources = list(symbols_in(arguments).values())
        traced = _trace(model, arguments, sources)
        if isinstance(traced, Trace):
            break
    return traced


def inputs_of_model(model):
    """Yields arguments that a subclassed model may have been built for."""
    config = model.get_build_config() or {}
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
        yield keras.tree.map_shape_structure(
            lambda shape, rest=rest: keras.Input(batch_shape=shape, dtype=next(rest)),
            shapes,
        )


def _flat_shapes(shapes):
    found: list[Any] = []
    keras.tree.map_shape_structure(found.append, shapes)
    return found


def _trace(layer, arguments, sources, results=None):
    error = ""
    for size in _SIZES:
        try:
            with warnings.catch_warnings(), state_kept([layer]):
                warnings.simplefilter("ignore")
                recorder = _Recorder(size)
                for part in layers_of(layer)[1:]:
                    if can_be_traced(part):
                        recorder.see_through(part)
                trace, _ = recorder.record(layer, arguments, sources)
        except Exception as e:
            error = error or described(e)
            continue
        if results not in (None, len(trace.function.outputs)):
            return "it returns something else than tensors"
        return trace
    return error


class _Recorder:
    def __init__(self, size):
        self.size = size  # what unknown dimensions count as
        self.inside = {}

    def see_through(self, part):
        """Lets Keras find the shape of a layer's output by recording its `call`."""
        as_it_is = part.compute_output_spec

        def compute_output_spec(*args, **kwargs):
            # In the order in which Keras lists them.
            arguments = (args, kwargs)
            sources = [
                x
                for x in keras.tree.flatten(arguments)
                if isinstance(x, keras.KerasTensor)
            ]
            try:
                trace, outputs = self.record(part, arguments, sources)
            except Exception:
                return as_it_is(*args, **kwargs)
            specs = keras.tree.map_structure(_spec, outputs)
            for spec in keras.tree.flatten(specs):
                self.inside[id(spec)] = trace
            return specs

        vars(part)["compute_output_spec"] = compute_output_spec

    def record(self, layer, arguments, sources):
        """Calls a layer on symbols; returns the `Trace` and what the layer returns."""
        for with_symbols in (True, False):
            before = dict(vars(layer))
            try:
                return self._record(layer, arguments, sources, with_symbols)
            except Exception as e:
                error = e
            finally:
                vars(layer).update(before)
        raise error

    def _record(self, layer, arguments, sources, with_symbols):
        read: dict[int, keras.Variable] = {}
        symbols = symbols_in(arguments)
        clones = {key: _clone(x, self.size) for key, x in symbols.items()}
        for key, x in symbols.items():
            if (mask := mask_of(x)) is not None:
                set_mask(clones[key], clones[id(mask)])
        args, kwargs = keras.tree.map_structure(
            lambda x: clones.get(id(x), x), arguments
        )
        # With symbols for its weights, what is done to them is recorded too.
        weights = _replace_weights(layer) if with_symbols else []
        vars(layer)["add_loss"] = _refuse_loss
        outputs: Any = None

        def call(_):
            nonlocal outputs
            for training in (True, False):
                named = in_mode(layer, kwargs, training)
                run = functools.partial(layer.call, *args, **named)
                outputs = Outermost()(function=run, training=training)

        with ReadingScope(read):
            storages = storages_run(call, [])
            entries = [clones[id(x)] for x in sources]
            inputs = [*clones.values(), *(symbol for symbol, _ in weights)]
            tensors = [
                x
                for x in keras.tree.flatten(outputs)
                if isinstance(x, keras.KerasTensor)
            ]
            function = keras.Function(inputs, tensors)
        variables = {id(symbol): variable for symbol, variable in weights}
        trace = Trace(
            layer,
            (args, kwargs),
            function,
            entries,
            variables,
            list(read.values()),
            storages,
            self.inside,
        )
        return trace, outputs


def _clone(x, size):
    shape = [size if n is None else n for n in x.shape]
    return keras.Input(batch_shape=shape, dtype=x.dtype)


def _spec(x):
    return (
        keras.KerasTensor(x.shape, x.dtype) if isinstance(x, keras.KerasTensor) else x
    )


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
