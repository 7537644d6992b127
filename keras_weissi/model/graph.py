"""Which layer of a model feeds which, as far as it can be seen."""

import collections
import types

import keras

from keras_weissi._utils.keras_private import (
    functional_of,
    inputs_struct,
    mask_of,
    nodes_of,
)
from keras_weissi.model.homogeneity import (
    NORMALIZATIONS,
    is_homogeneous,
    is_of_keras,
    replaced_method,
)
from keras_weissi.model.operations import is_sum
from keras_weissi.model.trace import can_be_traced, trace_call, trace_model
from keras_weissi.model.walk import layers_of

_OUTSIDE = "outside of the model"
_HIDDEN = "a layer that Keras does not show"


class Graph:
    """The calls in a model and in all that it applies, and what uses their outputs.

    Functional and Sequential models show their calls; custom layers and subclassed
    models are traced (see `trace.py`).

    Args:
        model: A built `keras.Model`.
        opaque: dict from the ids of layers that are not to be seen through to str: why.

    Attributes:
        root: the `keras.Function` of the model, or `None` if it cannot be seen.
        functions: list of the functions of the model and of those inside it.
        traces: dict from the ids of functions to the `Trace`s that they are of.
        hidden: dict from the ids of calls to str: why they cannot be seen through.
    """

    def __init__(self, model, opaque=types.MappingProxyType({})):
        self.functions = []
        self.traces = {}
        self.hidden = {}
        self._opaque = opaque
        self._inside = {}
        self._inner = {}
        self._uses = collections.defaultdict(list)
        self._consumers = collections.defaultdict(list)
        self._callers = collections.defaultdict(list)
        self._calls = collections.defaultdict(list)
        self.root = inner_function(model)
        if self.root is None:
            traced = opaque.get(id(model)) or trace_model(model)
            self.root = self._noted(traced, model)
        seen: set[int] = set()
        if self.root is not None:
            self._add(self.root, seen)
        for layer in layers_of(model):
            function = inner_function(layer)
            if function is not None:
                self._add(function, seen)

    def inner(self, node):
        """Returns the `keras.Function` that a call applies, or `None`."""
        return self._inner[id(node)]

    def passages(self, node):
        """Pairs the tensors around a call with those inside the function it applies.

        Returns:
            Pair of lists of pairs, of the inputs and of the outputs; or `None` if the
            pairs are not clear.
        """
        inner = self._inner[id(node)]
        trace = self.traces.get(id(inner))
        if trace is not None:
            # Keras may or may not have noted the masks among the arguments.
            masks = {id(mask_of(x)) for x in node.input_tensors}
            tensors = [x for x in node.input_tensors if id(x) not in masks]
            if len(tensors) != len(trace.sources):
                return None
            entries = list(zip(tensors, trace.sources, strict=True))
        else:
            entries = entries_of(node, inner)
        if entries is None or len(node.output_tensors) != len(inner.outputs):
            return None
        return entries, list(zip(node.output_tensors, inner.outputs, strict=True))

    def normalization_of(self, kernel):
        """Finds the normalization that makes the scale of a kernel meaningless.

        Args:
            kernel: `keras_weissi.model.Kernel`.

        Returns:
            The name of a normalization layer if the activation is homogeneous and the
            output goes only to normalization layers; or that of the
            `SpectralNormalization` around the layer. `None` if neither is the case, and
            `"?"` if it cannot be seen where the output goes.
        """
        layer, parents = kernel.layer, kernel.parents
        if parents and isinstance(parents[-1], keras.layers.SpectralNormalization):
            return parents[-1].name
        uses = self._uses[id(kernel.variable)]
        calls = uses or self._calls_of(layer, parents)
        if not calls:
            around = [p for p in parents if inner_function(p) is None]
            visible = self.root is not None and around
            return None if visible and all(map(is_as_shipped, around)) else "?"
        if not uses:
            if replaced_method(layer) or any(self._inner[id(n)] for _, n in calls):
                return "?"
            if not is_homogeneous(getattr(layer, "activation", None)):
                return None
        consumers = [
            consumer
            for function, node in calls
            for tensor in node.output_tensors
            for consumer in self._consumers_of(function, tensor, set())
        ]
        normalizations = [c for c in consumers if isinstance(c, NORMALIZATIONS)]
        hidden = [c for c in consumers if c is _HIDDEN]
        if not consumers or len(normalizations) + len(hidden) < len(consumers):
            return None
        return "?" if hidden else normalizations[0].name

    def _calls_of(self, layer, parents):
        """Lists the calls of a layer, or of the `TimeDistributed` around it."""
        outer = next((p for p in parents if unwrapped(p) is layer), layer)
        return self._calls.get(id(outer), [])

    def _noted(self, traced, key):
        """Notes what came of tracing, and returns the function, or `None`."""
        if isinstance(traced, str):
            self.hidden[id(key)] = traced
            return None
        self.traces[id(traced.function)] = traced
        self._inside |= traced.inside
        return traced.function

    def _find_inner(self, node):
        operation = node.operation
        inner = inner_function(operation)
        if inner is not None or not can_be_traced(operation):
            return inner
        traced = (
            self._opaque.get(id(operation))
            or self._inside.get(id(node.output_tensors[0]))
            or trace_call(operation, node)
        )
        return self._noted(traced, node)

    def _add(self, function, seen):
        if id(function) in seen:
            return
        seen.add(id(function))
        self.functions.append(function)
        trace = self.traces.get(id(function))
        for node in nodes_of(function):
            self._calls[id(node.operation)].append((function, node))
            for tensor in node.input_tensors:
                self._consumers[id(function), id(tensor)].append(node)
            if trace is not None and not isinstance(node.operation, keras.Layer):
                for x in weights_among(node, trace):
                    self._uses[id(x)].append((function, node))
            self._inner[id(node)] = inner = self._find_inner(node)
            if inner is not None:
                self._callers[id(inner)].append((function, node))
                self._add(inner, seen)

    def _is_constant(self, function, node):
        """Whether a call is of a BatchNormalization that multiplies by constants.

        As far as scale goes, the tensor leaves the model there.
        """
        layer = unwrapped(node.operation)
        return isinstance(layer, keras.layers.BatchNormalization) and (
            not layer.trainable or self._in_inference(function, node)
        )

    def _in_inference(self, function, node):
        """Whether a call is made with `training=False`, or is in models that are."""
        if node.arguments.kwargs.get("training") is False:
            return id(function) not in self.traces  # which are made like that
        callers = [] if function is self.root else self._callers[id(function)]
        return bool(callers) and all(self._in_inference(*call) for call in callers)

    def _consumers_of(self, function, tensor, seen):
        """Lists the layers that take a tensor, or `_OUTSIDE` or `_HIDDEN`."""
        if (id(function), id(tensor)) in seen:
            return []
        seen.add((id(function), id(tensor)))
        found = []
        trace = self.traces.get(id(function))
        for node in self._consumers[id(function), id(tensor)]:
            inner = self._inner[id(node)]
            if inner is None:
                layer = unwrapped(node.operation)
                weights = trace.weights if trace else ()
                others = [x for x in node.input_tensors if id(x) not in weights]
                if trace and is_sum(layer) and len(others) == 1:
                    # Of a bias: what is normalized is the sum.
                    for output in node.output_tensors:
                        found += self._consumers_of(function, output, seen)
                else:
                    is_constant = self._is_constant(function, node)
                    found.append(_OUTSIDE if is_constant else layer)
            elif (passages := self.passages(node)) is None:
                found.append(_HIDDEN)
            else:
                for outer, entry in passages[0]:
                    if outer is tensor:
                        found += self._consumers_of(inner, entry, seen)
        for position, output in enumerate(function.outputs):
            if output is tensor:
                callers = self._callers[id(function)]
                if function is self.root:
                    found.append(_OUTSIDE)
                elif not callers:
                    found.append(_HIDDEN)
                for caller, node in callers:
                    outer = node.output_tensors[position]
                    found += self._consumers_of(caller, outer, seen)
        return [c if c is _OUTSIDE or is_as_shipped(c) else _HIDDEN for c in found]


def weights_among(node, trace):
    """Lists the weights among the arguments of a call inside a trace."""
    leaves = keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
    weights = [trace.weights.get(id(x), x) for x in leaves]
    return [x for x in weights if isinstance(x, keras.Variable)]


def is_as_shipped(thing):
    """Whether something is a layer or operation that does what Keras made it for."""
    is_operation = isinstance(thing, keras.Operation)
    return is_operation and is_of_keras(thing) and not replaced_method(thing)


def unwrapped(layer):
    """Returns the layer that a `TimeDistributed` applies, or the layer itself."""
    while type(layer) is keras.layers.TimeDistributed and not replaced_method(layer):
        layer = layer.layer
    return layer


def inner_function(layer):
    """Returns the `keras.Function` that a layer applies, or `None`.

    A class or a model that overrides `call` may use its layers in another way.
    """
    layer = unwrapped(layer)
    is_model = isinstance(layer, (keras.Function, keras.Sequential))
    if not is_model or replaced_method(layer):
        return None
    classes = type(layer).__mro__
    definer = next(c for c in classes if "call" in vars(c))
    if definer.__module__.split(".")[0] != "keras":
        return None
    return functional_of(layer) if isinstance(layer, keras.Sequential) else layer


def entries_of(node, function):
    """Pairs the tensors that a call passes to a function with the function's inputs.

    Returns:
        List of pairs, or `None` if the pairs are not clear: for example, with a mask
        among the arguments, or a dict in place of a list.
    """
    if len(node.input_tensors) != len(function.inputs):
        return None
    if len(function.inputs) > 1:
        structures = (node.arguments.args[:1], (inputs_struct(function),))
        try:
            keras.tree.assert_same_structure(
                *(keras.tree.lists_to_tuples(s) for s in structures)
            )
        except (TypeError, ValueError):
            return None
    return list(zip(node.input_tensors, function.inputs, strict=True))
