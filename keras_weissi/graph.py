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


class Graph:
    """Which layers consume the output of which, through nested models as well.

    Args:
        model: A built `keras.Model`.
    """

    def __init__(self, model):
        self._root = _function_of(model)
        self._consumers = collections.defaultdict(list)
        self._callers = collections.defaultdict(list)
        self._calls = collections.defaultdict(list)
        if self._root is not None:
            self._add(self._root, set())

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
            visible = self._root is not None and around and _is_of_keras(around[0])
            return None if visible else "?"
        activation = getattr(layer, "activation", None)
        if activation is not None:
            name = getattr(activation, "__name__", "")
            if name not in _HOMOGENEOUS_ACTIVATIONS:
                return None
        consumers = [
            consumer
            for function, node in self._calls[id(outer)]
            for tensor in node.output_tensors
            for consumer in self._consumers_of(function, tensor)
        ]
        if consumers and all(isinstance(c, _NORMALIZATIONS) for c in consumers):
            return consumers[0].name
        return None

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

    def _consumers_of(self, function, tensor):
        """Lists the layers that take a tensor; `None` stands for the outside."""
        found = []
        for node in self._consumers[id(function), id(tensor)]:
            inner = _function_of(node.operation)
            if inner is None:
                found.append(node.operation)
                continue
            for outer, entry in zip(node.input_tensors, inner.inputs, strict=True):
                if outer is tensor:
                    found += self._consumers_of(inner, entry)
        for position, output in enumerate(function.outputs):
            if output is tensor:
                if function is self._root:
                    found.append(None)
                for caller, node in self._callers[id(function)]:
                    found += self._consumers_of(caller, node.output_tensors[position])
        return found


# The two private touches: Keras publishes neither the calls that make up a graph, nor
# the Functional model inside a Sequential one.


def _nodes(function):
    by_depth = function._nodes_by_depth
    return [
        node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]
    ]


def _function_of(layer):
    if isinstance(layer, keras.Sequential):
        return layer._functional if layer.built else None
    return layer if isinstance(layer, keras.Function) else None


def _is_of_keras(layer):
    return type(layer).__module__.split(".")[0] == "keras"
