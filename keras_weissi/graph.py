"""The graph of layers inside a model, as far as Keras shows it.

Functional and Sequential models know which layer feeds which; a subclassed model does
not, and neither does the inside of a custom layer.
"""

import collections

import keras

_NORMALIZATIONS = tuple(
    getattr(keras.layers, name)
    for name in (
        "BatchNormalization",
        "LayerNormalization",
        "GroupNormalization",
        "UnitNormalization",
        "RMSNormalization",  # since Keras 3.9
    )
    if hasattr(keras.layers, name)
)
# With one of these, a layer that scales its kernel and bias scales its output.
_HOMOGENEOUS_ACTIVATIONS = ("linear", "relu", "leaky_relu")


_OUTSIDE = "outside of the model"
_HIDDEN = "a layer that Keras does not show"


class Graph:
    """Which layers consume the output of which, through nested models as well.

    Args:
        layers: List of a built `keras.Model` and all layers inside it.
    """

    def __init__(self, layers):
        self._root = _function_of(layers[0])
        self._consumers = collections.defaultdict(list)
        self._callers = collections.defaultdict(list)
        self._calls = collections.defaultdict(list)
        seen = set()
        for layer in layers:
            function = _function_of(layer)
            if function is not None:
                self._add(function, seen)

    def normalization_of(self, layer, parents):
        """Finds the normalization that makes the scale of a kernel meaningless.

        Args:
            layer: The `keras.Layer` that owns the kernel.
            parents: The layers around it, outermost first, without the model.

        Returns:
            The name of a normalization layer if the layer's output goes to nothing but
            normalization layers, `None` if it does not, and `"?"` if Keras does not
            show where it goes.
        """
        spectral = keras.layers.SpectralNormalization
        if parents and isinstance(parents[-1], spectral):
            return parents[-1].name
        if parents and isinstance(parents[-1], keras.layers.TimeDistributed):
            outer = parents[-1]
        else:
            outer = layer
        if outer not in self:
            around = [p for p in parents if _function_of(p) is None]
            visible = self._root is not None and around
            return None if visible and all(map(is_of_keras, around)) else "?"
        if not _is_homogeneous(getattr(layer, "activation", None)):
            return None
        consumers = [
            consumer
            for function, node in self._calls[id(outer)]
            for tensor in node.output_tensors
            for consumer in self._consumers_of(function, tensor, set())
        ]
        normalizations = [c for c in consumers if isinstance(c, _NORMALIZATIONS)]
        hidden = [c for c in consumers if c is _HIDDEN]
        if not consumers or len(normalizations) + len(hidden) < len(consumers):
            return None
        return "?" if hidden else normalizations[0].name

    def __contains__(self, layer):
        return id(layer) in self._calls

    def _add(self, function, seen):
        if id(function) in seen:
            return
        seen.add(id(function))
        for node in _nodes(function):
            self._calls[id(node.operation)].append((function, node))
            for tensor in node.input_tensors:
                self._consumers[id(function), id(tensor)].append(node)
            inner = _function_of(node.operation)
            if inner is not None:
                self._callers[id(inner)].append((function, node))
                self._add(inner, seen)

    def _consumers_of(self, function, tensor, seen):
        """Lists the layers that take a tensor, or `_OUTSIDE` or `_HIDDEN`."""
        if (id(function), id(tensor)) in seen:
            return []
        seen.add((id(function), id(tensor)))
        found = []
        for node in self._consumers[id(function), id(tensor)]:
            inner = _function_of(node.operation)
            if inner is None:
                found.append(_unwrapped(node.operation))
            elif len(node.input_tensors) != len(inner.inputs):
                found.append(_HIDDEN)  # a mask among the arguments, for one
            else:
                for outer, entry in zip(node.input_tensors, inner.inputs, strict=True):
                    if outer is tensor:
                        found += self._consumers_of(inner, entry, seen)
        for position, output in enumerate(function.outputs):
            if output is tensor:
                callers = self._callers[id(function)]
                if function is self._root:
                    found.append(_OUTSIDE)
                elif not callers:
                    found.append(_HIDDEN)
                for caller, node in callers:
                    outer = node.output_tensors[position]
                    found += self._consumers_of(caller, outer, seen)
        shown = (str, keras.Operation)
        return [
            c if isinstance(c, shown) and (c is _OUTSIDE or is_of_keras(c)) else _HIDDEN
            for c in found
        ]


def is_of_keras(layer):
    """Whether the class of a layer is one that ships with Keras."""
    return type(layer).__module__.split(".")[0] == "keras"


def _unwrapped(layer):
    while isinstance(layer, keras.layers.TimeDistributed):
        layer = layer.layer
    return layer


def _is_homogeneous(activation):
    if activation is None or isinstance(activation, keras.layers.LeakyReLU):
        return True
    if isinstance(activation, keras.layers.ReLU):
        return activation.max_value is None and not activation.threshold
    return getattr(activation, "__name__", "") in _HOMOGENEOUS_ACTIVATIONS


# The two private touches: Keras publishes neither the calls that make up a graph, nor
# the Functional model inside a Sequential one.


def _nodes(function):
    by_depth = function._nodes_by_depth
    return [
        node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]
    ]


def _function_of(layer):
    layer = _unwrapped(layer)
    if isinstance(layer, keras.Sequential):
        return layer._functional if layer.built else None
    return layer if isinstance(layer, keras.Function) else None
