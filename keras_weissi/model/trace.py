"""Sees inside custom layers and subclassed models: calls them on symbolic tensors.

Keras records what is applied to a `keras.KerasTensor`, also inside a `call`.
"""

import itertools
import warnings
from typing import Any, NamedTuple

import keras

from keras_weissi._utils.keras_private import mask_of, set_mask
from keras_weissi.model.homogeneity import is_of_keras, relations_of
from keras_weissi.model.reads import Outermost, ReadingScope, described, symbols_in
from keras_weissi.model.scaling import is_declared
from keras_weissi.model.snapshot import state_kept

# Layers of Keras that are made of other layers and of functions of `keras.ops`.
_SEEN_THROUGH = (
    *("Attention", "GroupedQueryAttention", "Lambda", "MultiHeadAttention"),
    "ReversibleEmbedding",
)


class Trace(NamedTuple):
    """What one call of a layer does inside.

    Attributes:
        function: `keras.Function` with the calls inside. Its first inputs stand for the
            tensors that the call takes.
        sources: int, how many tensors that are.
        weights: dict from the ids of further inputs to the `keras.Variable`s that they
            stand for.
        read: list of `keras.Variable`, whose values are used in another way.
    """

    function: keras.Function
    sources: int
    weights: dict[int, keras.Variable]
    read: list[keras.Variable]


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
        shapes = (), {name.removesuffix("_shape"): shape for name, shape in named}
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
    symbols = symbols_in(arguments)
    clones = {
        key: keras.Input(batch_shape=x.shape, dtype=x.dtype)
        for key, x in symbols.items()
    }
    for key, x in symbols.items():
        if (mask := mask_of(x)) is not None:
            set_mask(clones[key], clones[id(mask)])
    args, kwargs = keras.tree.map_structure(lambda x: clones.get(id(x), x), arguments)
    first = [clones[id(x)] for x in sources]
    others = [x for x in clones.values() if not any(x is y for y in first)]
    error = ""
    # With symbols for its weights, what is done to them is recorded too.
    for with_symbols in (True, False):
        read: dict[int, keras.Variable] = {}
        losses: list[Any] = []
        try:
            with (
                warnings.catch_warnings(),
                state_kept([layer]),
                ReadingScope(read),
            ):
                warnings.simplefilter("ignore")
                weights = _replace_weights(layer) if with_symbols else []
                vars(layer)["add_loss"] = losses.append
                for training in (True, False):
                    outputs = _called(layer, args, kwargs, training)
                if losses:
                    return "it adds to the loss"
                function = keras.Function(
                    [*first, *others, *(symbol for symbol, _ in weights)], outputs
                )
        except Exception as e:
            error = described(e)
            continue
        if results not in (None, len(outputs)):
            return "it returns something else than tensors"
        variables = {id(symbol): variable for symbol, variable in weights}
        return Trace(function, len(first), variables, list(read.values()))
    return error


def _called(layer, args, kwargs, training):
    outputs: list[Any] = []

    def apply():
        outputs[:] = keras.tree.flatten(layer.call(*args, **kwargs))

    Outermost()(function=apply, training=training)
    return [x for x in outputs if isinstance(x, keras.KerasTensor)]


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
