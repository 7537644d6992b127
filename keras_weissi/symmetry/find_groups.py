"""Finds the scale groups of a model: what is tied, and what pins it."""

import collections

import keras
import numpy as np

from keras_weissi._utils.keras_private import nodes_of
from keras_weissi._utils.validation import check_model
from keras_weissi.model.graph import (
    Graph,
    entries_of,
    inner_function,
    mentioned,
    unwrapped,
)
from keras_weissi.model.homogeneity import Scaling, fixed, is_float, scaling_of
from keras_weissi.model.kernels import gammas, kernels
from keras_weissi.model.walk import layers_of
from keras_weissi.symmetry.groups import KernelEdge, ScaleGroup, ScaleGroups
from keras_weissi.symmetry.solvers import GROUND, components, on_cycles


def scale_groups(model: keras.Model) -> ScaleGroups:
    """Finds the groups of tensors that have to be scaled alike, and what pins them.

    If every tensor of a free group is multiplied by one factor, of any size above 0,
    and every kernel by the factor of its output over that of its input, the model
    computes what it did. Whatever is not known to be positively homogeneous pins the
    groups it touches, as do frozen layers and the inputs and outputs of the model.

    What can not be seen is the code of custom layers and `Lambda`s: if they use the
    weights of another layer, and not through an attribute or a variable of their
    function, that layer counts as free. Nor can other models be seen: if they share
    layers with this one, scaling it changes them.

    Args:
        model: A built Sequential or Functional `keras.Model`, nested ones included.

    Returns:
        `ScaleGroups`, which prints as two tables.

    Raises:
        ValueError: If the model is not built, or if it is a subclassed one, of which
            Keras does not know the calls inside.

    Example:

    >>> import keras
    >>> from keras_weissi import scale_groups
    >>> model = keras.Sequential([
    ...     keras.Input((4,), name="x"),
    ...     keras.layers.Dense(3, "relu", name="hidden"),
    ...     keras.layers.Dense(2, "softmax", name="classes"),
    ... ])
    >>> groups = scale_groups(model)
    >>> [group.layers for group in groups.free]
    [('hidden',)]
    >>> [pins for group in groups.pinned for pins in group.pins[:1]]
    [('x', 'an input of the model'), ('classes', 'softmax is not homogeneous')]
    """
    check_model(model)
    layers = layers_of(model)
    graph = Graph(model)
    if graph.root is None and isinstance(model, keras.Sequential) and not model.built:
        raise ValueError(
            "Invalid value for argument `model`. Expected a built model: start it with "
            "a keras.Input, or call `model.build(input_shape)` before. "
            f"Received: model={model.name!r}, built=False"
        )
    if graph.root is None:
        raise ValueError(
            "Invalid value for argument `model`. Expected a Sequential or Functional "
            "model: of any other, Keras does not know which layer feeds which. "
            f"Received: model={model.name!r} of class {type(model).__name__}"
        )
    return _Finder(graph, layers).found(model)


class _Finder:
    """Collects what is tied, pinned and joined by kernels, tensor by tensor."""

    def __init__(self, graph, layers):
        self._numbers = {}
        self._labels: list = []
        self._ties = []
        self._pins = []
        self._edges = []
        self._place = {id(layer): i for i, layer in enumerate(layers)}
        self._holders = _holders(layers)
        calls = collections.defaultdict(list)
        called = {id(graph.root)}
        prefixes: dict[int, str] = collections.defaultdict(str)
        for function in graph.functions:
            for node in nodes_of(function):
                inputs = self._numbered(function, node.input_tensors)
                outputs = self._numbered(function, node.output_tensors)
                layer = unwrapped(node.operation)
                inner = inner_function(layer)
                name = prefixes[id(function)] + node.operation.name
                self._pin_penalized(node, outputs)
                for output in outputs:
                    self._labels[output] = None if inner else name
                if inner is not None:
                    prefixes[id(inner)] = f"{name}/"
                    called.add(id(inner))
                    self._enter(node, inner, inputs, outputs)
                    continue
                for variable in mentioned(node):
                    self._holders[id(variable)].append(node.operation)
                if isinstance(layer, keras.layers.InputLayer):
                    if function is not graph.root:
                        self._labels[outputs[0]] = None
                else:
                    calls[id(layer)].append((layer, node, inputs, outputs))
        for calls_of_layer in calls.values():
            self._add_layer(calls_of_layer)
        for function in graph.functions:
            if function is graph.root:
                why = "an {} of the model"
            elif id(function) not in called:
                why = "an {} of a model that a layer calls as it likes"
            else:
                continue
            for tensors, kind in (
                (function.inputs, "input"),
                (function.outputs, "output"),
            ):
                for number in self._numbered(function, tensors):
                    label = self._labels[number] or function.name
                    self._pins.append((number, label, why.format(kind)))

    def found(self, model):
        """Returns the `ScaleGroups`."""
        everything = (*kernels(model, everything=True), *gammas(model))
        by_variable = {id(kernel.variable): kernel for kernel in everything}
        # In the order of the layers, as everywhere else.
        self._edges.sort(key=lambda e: self._place[id(by_variable[id(e[0])].layer)])
        group_of = self._group_of()
        count = max(group_of) + 1
        pins: list[dict] = [{} for _ in range(count)]
        for number, name, reason in self._pins:
            pins[group_of[number]][name, reason] = None
        self._pin_dead_ends(group_of, pins)
        labels: list[dict] = [{} for _ in range(count)]
        for number, label in enumerate(self._labels):
            if label is not None:
                labels[group_of[number]][label] = None
        groups = [
            ScaleGroup(index, tuple(labels[index]), tuple(pins[index]))
            for index in range(count)
        ]
        edges = [
            KernelEdge(
                by_variable[id(variable)],
                shifts,
                group_of[source],
                group_of[target],
                is_gamma,
            )
            for variable, shifts, source, target, is_gamma in self._edges
        ]
        return ScaleGroups(groups, edges)

    def _group_of(self):
        """Numbers the groups as they come up from kernel to kernel, then the others."""
        component = components(len(self._labels), self._ties, "weak").tolist()
        ends = [end for _, _, *pair, _ in self._edges for end in pair]
        in_order = dict.fromkeys(component[end] for end in ends)
        in_order.update(dict.fromkeys(component))
        group = {label: i for i, label in enumerate(in_order)}
        return [group[label] for label in component]

    def _numbered(self, function, tensors):
        # The same tensor may be part of two functions, with a different value in each.
        numbers = []
        for tensor in tensors:
            key = id(function), id(tensor)
            if key not in self._numbers:
                self._numbers[key] = self._new_tensor(None)
            numbers.append(self._numbers[key])
        return numbers

    def _new_tensor(self, label):
        self._labels.append(label)
        return len(self._labels) - 1

    def _pin(self, numbers, name, reason):
        self._pins += [(number, name, reason) for number in numbers]

    def _pin_penalized(self, node, outputs):
        """Pins outputs that go into the loss by themselves."""
        for layer in {node.operation, unwrapped(node.operation)}:
            if getattr(layer, "activity_regularizer", None) is not None:
                self._pin(outputs, layer.name, "it has an activity_regularizer")

    def _enter(self, node, inner, inputs, outputs):
        entries = entries_of(node, inner)
        inner_inputs = self._numbered(inner, inner.inputs)
        inner_outputs = self._numbered(inner, inner.outputs)
        reason = ""
        if entries is None or len(outputs) != len(inner_outputs):
            reason = "it is not clear which argument becomes which of its inputs"
        elif not all(is_float(x.dtype) for pair in entries for x in pair):
            reason = "it takes integers"
        if reason:
            for numbers in (inputs, outputs, inner_inputs, inner_outputs):
                self._pin(numbers, node.operation.name, reason)
            return
        self._ties += zip(inputs, inner_inputs, strict=True)
        self._ties += zip(outputs, inner_outputs, strict=True)

    def _add_layer(self, calls):
        layer = calls[0][0]
        scalings = [scaling_of(layer, node) for _, node, _, _ in calls]
        if any(scaling.kernels for scaling in scalings):
            # There is one set of weights for all calls.
            refusals = [s.fixed_outputs for s in scalings if not s.kernels]
            shared = self._sharer(layer, scalings)
            if shared is not None:
                refusals.append(f"it shares a weight with {shared}")
            if id(layer) not in self._place:
                refusals.append("it is in a keras.Function, which is no layer")
            if refusals:
                scalings = [fixed(refusals[0])] * len(calls)
            else:
                self._add_kernels(layer, scalings[0], calls)
        for scaling, (_, _, inputs, outputs) in zip(scalings, calls, strict=True):
            if scaling.fixed_inputs:
                self._pin(inputs, layer.name, scaling.fixed_inputs)
            if scaling.fixed_outputs:
                self._pin(outputs, layer.name, scaling.fixed_outputs)
            if scaling == Scaling():
                tied = [*inputs, *outputs]
                self._ties += [(tied[0], other) for other in tied[1:]]

    def _add_kernels(self, layer, scaling, calls):
        _, _, (source,), (target,) = calls[0]
        for _, _, (other_source,), (other_target,) in calls[1:]:
            self._ties += [(source, other_source), (target, other_target)]
        between = [
            self._new_tensor(f"inside {layer.name}") for _ in scaling.kernels[1:]
        ]
        ends = [source, *between, target]
        is_gamma = bool(scaling.fixed_inputs)
        for i, kernel in enumerate(scaling.kernels):
            is_last = i + 1 == len(scaling.kernels)
            shifts = scaling.shifts if is_last else ()
            self._edges.append((kernel, shifts, ends[i], ends[i + 1], is_gamma))

    def _sharer(self, layer, scalings):
        for scaling in scalings:
            for variable in (*scaling.kernels, *scaling.shifts):
                for holder in self._holders[id(variable)]:
                    if holder is not layer:
                        return holder.name
        return None

    def _pin_dead_ends(self, group_of, pins):
        """Pins the groups whose factor would be a matter of taste.

        What is computed and not used, by a second output of a nested model for one,
        has no kernel behind it that could take up the factor.
        """
        node = np.array([GROUND if pin else i + 1 for i, pin in enumerate(pins)])
        ends = [(group_of[s], group_of[t]) for _, _, s, t, _ in self._edges]
        sources, targets = node[np.array(ends, "int64").reshape(-1, 2)].T
        everything = np.full(len(ends), True)
        _, is_used = on_cycles(len(pins) + 1, sources, targets, everything)
        for index, pin in enumerate(pins):
            if node[index] != GROUND and not is_used[node[index]]:
                pin["the model", "it does not use what is computed here"] = None


def _holders(layers):
    """Lists the layers that hold a weight, but for those that just call other ones."""
    holders = collections.defaultdict(list)
    for layer in layers:
        if inner_function(layer) is None and unwrapped(layer) is layer:
            for variable in layer.weights:
                holders[id(variable)].append(layer)
    return holders
