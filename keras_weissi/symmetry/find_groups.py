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
    unwrapped,
)
from keras_weissi.model.homogeneity import Scaling, fixed, is_float, scaling_of
from keras_weissi.model.kernels import kernels_and_gammas
from keras_weissi.model.reads import reads_of
from keras_weissi.model.walk import layers_of
from keras_weissi.symmetry.groups import KernelEdge, ScaleGroup, ScaleGroups
from keras_weissi.symmetry.relations import Call, Edge, Relations
from keras_weissi.symmetry.solvers import GROUND, components, on_cycles


def scale_groups(model: keras.Model) -> ScaleGroups:
    """Finds the groups of tensors that must be scaled together, and what pins them.

    If every tensor of a free group is multiplied by one factor, of any size above 0,
    and every kernel by the factor of its output over that of its input, the model
    still computes the same. Layers not known to be homogeneous pin the groups they
    touch (fix their factor at 1), as do frozen layers, and the model's inputs and
    outputs.

    What the code of custom layers, `Lambda`s and activations uses is found by running
    it, without values or on ones; what it changes is put back, as far as Python objects
    and Keras go. Not seen are weights that it uses for other inputs only or in other
    threads, and other models: if they share layers with this one, scaling it changes
    them.

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
    graph = Graph(model)
    if graph.root is None:
        is_unbuilt = isinstance(model, keras.Sequential) and not model.built
        expected = (
            "a built model: start it with a keras.Input, or call `model.build` first"
            if is_unbuilt
            else "a Sequential or Functional model: of any other, Keras does not know "
            "which layer feeds which"
        )
        raise ValueError(
            f"Invalid value for argument `model`. Expected {expected}. Received: model="
            f"{model.name!r} of class {type(model).__name__}, built={model.built}"
        )
    return _groups_of(model, _collect_relations(model, graph))


def _collect_relations(model, graph):
    relations = Relations()
    calls, entered = _collect_calls(relations, graph)
    layers = layers_of(model)
    holders = _holders(layers, calls)
    owned = {id(layer) for layer in layers}
    by_layer = collections.defaultdict(list)
    for call in calls:
        by_layer[id(call.layer)].append(call)
    for calls_of_layer in by_layer.values():
        _collect_layer(relations, calls_of_layer, holders, owned)
    _pin_ends(relations, graph, entered)
    return relations


def _collect_calls(relations, graph):
    """Numbers all tensors and ties those of nested models to those around them.

    Returns:
        Pair of a list of `Call`, those of layers, and of a set of the ids of the
        functions that are called.
    """
    calls, entered = [], {id(graph.root)}
    prefixes: dict[int, str] = collections.defaultdict(str)
    for function in graph.functions:
        for node in nodes_of(function):
            call = Call(
                unwrapped(node.operation),
                node,
                relations.numbers_of(function, node.input_tensors),
                relations.numbers_of(function, node.output_tensors),
            )
            name = prefixes[id(function)] + node.operation.name
            inner = inner_function(call.layer)
            is_input = isinstance(call.layer, keras.layers.InputLayer)
            is_shown = inner is None and (not is_input or function is graph.root)
            for output in call.outputs:
                relations.labels[output] = name if is_shown else None
            _pin_penalized(relations, call)
            if inner is not None:
                prefixes[id(inner)] = f"{name}/"
                entered.add(id(inner))
                _enter(relations, call, inner)
            elif not is_input:
                calls.append(call)
    return calls, entered


def _pin_penalized(relations, call):
    """Pins outputs that go into the loss by themselves."""
    for layer in {call.node.operation, call.layer}:
        if getattr(layer, "activity_regularizer", None) is not None:
            relations.pin(call.outputs, layer.name, "it has an activity_regularizer")


def _enter(relations, call, inner):
    """Ties the tensors around a nested model to those inside."""
    entries = entries_of(call.node, inner)
    inner_inputs = relations.numbers_of(inner, inner.inputs)
    inner_outputs = relations.numbers_of(inner, inner.outputs)
    reason = ""
    if entries is None or len(call.outputs) != len(inner_outputs):
        reason = "its arguments cannot be matched to its inputs"
    elif not all(is_float(x.dtype) for pair in entries for x in pair):
        reason = "it takes integers"
    if reason:
        for tensors in (call.inputs, call.outputs, inner_inputs, inner_outputs):
            relations.pin(tensors, call.node.operation.name, reason)
        return
    relations.ties += zip(call.inputs, inner_inputs, strict=True)
    relations.ties += zip(call.outputs, inner_outputs, strict=True)


def _holders(layers, calls):
    """Lists for each weight, by its id, the layers that hold or use it.

    Returns:
        Dict from ids to lists of pairs: a layer, and why no other may scale the weight.
    """
    holders = collections.defaultdict(list)
    for layer in layers:
        # Those that just call other layers hold nothing of their own.
        if inner_function(layer) is None and unwrapped(layer) is layer:
            for variable in layer.weights:
                reason = f"it shares a weight with {layer.name}"
                holders[id(variable)].append((layer, reason))
    everything = [variable for layer in layers[:1] for variable in layer.weights]
    for call in calls:
        for reads in reads_of(call.layer, call.node, everything):
            reason = f"it shares a weight with {reads.reader}"
            variables = reads.variables
            if reads.error:
                reason = f"{reads.reader} may use it: it cannot be run ({reads.error})"
                variables = [*variables, *everything]
            for variable in variables:
                holders[id(variable)].append((reads.owner, reason))
    return holders


def _collect_layer(relations, calls, holders, owned):
    """Adds what a layer ties, pins and joins by its kernels, over all its calls."""
    layer = calls[0].layer
    scalings = [scaling_of(layer, call.node) for call in calls]
    if any(scaling.kernels for scaling in scalings):
        reason = _why_pinned(layer, scalings, holders, owned)
        if reason:
            scalings = [fixed(reason)] * len(calls)
        else:
            _collect_kernels(relations, scalings[0], calls)
    for scaling, call in zip(scalings, calls, strict=True):
        if scaling.fixed_inputs:
            relations.pin(call.inputs, layer.name, scaling.fixed_inputs)
        if scaling.fixed_outputs:
            relations.pin(call.outputs, layer.name, scaling.fixed_outputs)
        if scaling == Scaling():
            tied = [*call.inputs, *call.outputs]
            relations.ties += [(tied[0], other) for other in tied[1:]]


def _why_pinned(layer, scalings, holders, owned):
    """Tells why the kernels of a layer cannot be scaled; "" if they can.

    All calls use the same weights, so that one call that fixes them fixes all.
    """
    for scaling in scalings:
        if not scaling.kernels:
            return scaling.fixed_outputs
    for scaling in scalings:
        for variable in (*scaling.kernels, *scaling.shifts):
            for holder, reason in holders[id(variable)]:
                if holder is not layer:
                    return reason
    if id(layer) not in owned:
        return "it is in a bare keras.Function"
    return ""


def _collect_kernels(relations, scaling, calls):
    (source,), (target,) = calls[0].inputs, calls[0].outputs
    for call in calls[1:]:
        relations.ties += [(source, call.inputs[0]), (target, call.outputs[0])]
    label = f"inside {calls[0].layer.name}"
    between = [relations.new_tensor(label) for _ in scaling.kernels[1:]]
    ends = [source, *between, target]
    for i, kernel in enumerate(scaling.kernels):
        shifts = scaling.shifts if kernel is scaling.kernels[-1] else ()
        relations.edges.append(Edge(kernel, shifts, ends[i], ends[i + 1]))


def _pin_ends(relations, graph, entered):
    """Pins the inputs and outputs of the model, and of models called out of sight."""
    for function in graph.functions:
        if function is graph.root:
            where = "of the model"
        elif id(function) not in entered:
            where = "of a model called inside another layer"
        else:
            continue
        for kind, tensors in (("input", function.inputs), ("output", function.outputs)):
            for number in relations.numbers_of(function, tensors):
                layer = relations.labels[number] or function.name
                relations.pin([number], layer, f"an {kind} {where}")


def _groups_of(model, relations):
    """Joins tied tensors into groups, and returns the `ScaleGroups`."""
    found = {id(kernel.variable): kernel for kernel in kernels_and_gammas(model)}
    # In the order of the layers, as everywhere else.
    order = {key: place for place, key in enumerate(found)}
    relations.edges.sort(key=lambda edge: order[id(edge.variable)])
    group_of = _number_groups(relations)
    count = max(group_of) + 1
    pins: list[dict] = [{} for _ in range(count)]
    for pin in relations.pins:
        pins[group_of[pin.tensor]][pin.layer, pin.reason] = None
    _pin_dead_ends(relations, group_of, pins)
    labels: list[dict] = [{} for _ in range(count)]
    for group, label in zip(group_of, relations.labels, strict=True):
        if label is not None:
            labels[group][label] = None
    return ScaleGroups(
        [ScaleGroup(i, tuple(labels[i]), tuple(pins[i])) for i in range(count)],
        [
            KernelEdge(
                found[id(edge.variable)],
                edge.shifts,
                group_of[edge.source],
                group_of[edge.target],
            )
            for edge in relations.edges
        ],
    )


def _number_groups(relations):
    """Numbers the groups in the order of the kernels that touch them, then the rest."""
    component = components(len(relations.labels), relations.ties, "weak").tolist()
    in_order: dict[int, int] = {}
    for edge in relations.edges:
        for end in (edge.source, edge.target):
            in_order.setdefault(component[end], len(in_order))
    for label in component:
        in_order.setdefault(label, len(in_order))
    return [in_order[label] for label in component]


def _pin_dead_ends(relations, group_of, pins):
    """Pins groups that do not lead to the output.

    An unused output of a nested model has no kernel after it to compensate the factor.
    """
    node = np.array([GROUND if pin else i + 1 for i, pin in enumerate(pins)])
    ends = [(group_of[edge.source], group_of[edge.target]) for edge in relations.edges]
    sources, targets = node[np.array(ends, "int64").reshape(-1, 2)].T
    everything = np.full(len(ends), True)
    _, is_used = on_cycles(len(pins) + 1, sources, targets, everything)
    for index, pin in enumerate(pins):
        if node[index] != GROUND and not is_used[node[index]]:
            pin["the model", "the output is not used"] = None
