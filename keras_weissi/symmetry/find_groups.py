"""Finds the scale groups of a model: what is tied, and what pins it."""

import collections
import types

import keras

from keras_weissi._utils.keras_private import nodes_of
from keras_weissi._utils.user_warnings import warn
from keras_weissi._utils.validation import check_model
from keras_weissi.model.graph import Graph, inner_function, unwrapped
from keras_weissi.model.homogeneity import relations_of, why_fixed
from keras_weissi.model.kernels import named_weights
from keras_weissi.model.reads import reads_of, storages_among, stored_in
from keras_weissi.model.scaling import is_declared
from keras_weissi.model.walk import layers_of, own_variables
from keras_weissi.symmetry.groups import ScaleGroups
from keras_weissi.symmetry.reduce import reduced
from keras_weissi.symmetry.relations import System
from keras_weissi.symmetry.verify import find_untrue


class UnseenError(ValueError):
    """A model cannot be seen through."""


def scale_groups(model: keras.Model) -> ScaleGroups:
    """Finds the groups of tensors that must be scaled together, and what pins them.

    If every tensor of a free group is multiplied by one factor, of any size above 0,
    and every kernel by the factor of its output over that of its input, the model
    still computes the same. Layers not known to be homogeneous pin the groups they
    touch (fix their factor at 1), as do the model's inputs and outputs. Where layers
    multiply tensors, factors depend on each other: `relations` lists these.

    Custom layers, attention, `Lambda`s and subclassed models are seen through: their
    `call` is run on symbolic tensors, and what it shows is tried on random numbers, in
    training and without. Code that cannot be seen through pins what it uses, which is
    found by running it, without values or on ones. What the code changes is put back,
    as far as Python objects and Keras go. Not seen is what it does for other inputs
    only or in other threads, and other models: if they share layers with this one,
    scaling it changes them.

    Args:
        model: A built `keras.Model`. A subclassed one must have been called on data,
            take one argument besides `training` and `mask`, and be trained by Keras's
            own `train_step` and `compute_loss`.

    Returns:
        `ScaleGroups`, which prints as two tables.

    Raises:
        ValueError: If the model is not built, or cannot be seen through, or if what
            `register_scaling` declares of a layer does not hold.

    Warns:
        UserWarning: If the outputs of a layer do not scale as its code shows. No scale
            is shifted through it then.

    Examples:
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
    return graph_and_groups(model)[1]


def graph_and_groups(model):
    """Returns the `Graph` of a model, without what does not hold, and its groups."""
    check_model(model)
    opaque: dict[int, str] = {}
    while True:
        graph, unknowns, reduction = seen_as_shown(model, opaque)
        untrue = find_untrue(graph, unknowns, reduction)
        if not untrue:
            return graph, reduction.groups()
        for claim, why in untrue:
            layer = unwrapped(claim.layer)
            kind = type(layer).__name__
            if is_declared(layer):
                raise ValueError(
                    f"Invalid scaling registered for {kind}. Expected relations that "
                    f"hold for layer {claim.name!r}. Received: {why}"
                )
            opaque[id(claim.layer)] = why
            warn(
                f"No scale is shifted through layer {claim.name!r} of class {kind}: "
                f"{why}."
            )


def seen_as_shown(model, opaque=types.MappingProxyType({})):
    """Returns the `Graph`, `System` and `Reduction` of a model, and tries nothing.

    Args:
        model: A `keras.Model`.
        opaque: dict from the ids of layers not to be seen through to str: why.
    """
    graph = Graph(model, opaque)
    if graph.root is None:
        raise UnseenError(
            f"Invalid value for argument `model`. Expected {_expected(model, graph)}. "
            f"Received: model={model.name!r} of class {type(model).__name__}, "
            f"built={model.built}"
        )
    unknowns = collect(model, graph)
    return graph, unknowns, reduced(model, unknowns)


def _expected(model, graph):
    if isinstance(model, keras.Sequential) and not model.built:
        return "a built model: start it with a keras.Input, or call `model.build` first"
    why = graph.hidden.get(id(model), "")
    return f"a model that can be seen through: its `call` cannot ({why})"


def collect(model, graph):
    """Collects all equations of a model.

    Args:
        model: A `keras.Model`.
        graph: Its `Graph`.

    Returns:
        `System`.
    """
    collected = _Collected(model, graph)
    for function in graph.functions:
        for node in nodes_of(function):
            collected.add_call(function, node)
    collected.add_reads()
    collected.pin_ends()
    collected.pin_weights()
    return collected.unknowns


class _Collected:
    def __init__(self, model, graph):
        self.model = model
        self.named = named_weights(model)
        self.graph = graph
        self.unknowns = System()
        self.entered = {id(graph.root)}
        self.readers = []  # what may run code of the user: layers, calls, functions
        self.prefixes = collections.defaultdict(str)
        self.layers = layers_of(model)
        self.everything = list(model.weights)

    def add_call(self, function, node):
        """Adds what one call does to scale."""
        unknowns, graph = self.unknowns, self.graph
        layer = unwrapped(node.operation)
        inner = graph.inner(node)
        inputs = self._numbers(function, node.input_tensors)
        outputs = self._numbers(function, node.output_tensors)
        is_input = isinstance(layer, keras.layers.InputLayer)
        is_layer = isinstance(layer, keras.Layer)
        name = self.prefixes[id(function)] + node.operation.name
        is_shown = inner is None or id(inner) in graph.traces
        is_shown &= is_layer or id(function) not in graph.traces
        if is_shown and (not is_input or function is graph.root):
            for output in outputs:
                unknowns.labels[output] = unknowns.labels[output] or name
        elif inner is None and not is_input:
            unknowns.places |= dict.fromkeys(outputs, self._name_of(function, layer))
        for part in {node.operation, layer}:
            if getattr(part, "activity_regularizer", None) is not None:
                unknowns.pin(outputs, part.name, "it has an activity_regularizer")
        if inner is not None:
            self.prefixes[id(inner)] = f"{name}/"
            self.entered.add(id(inner))
            self._enter(function, node, inner, inputs, outputs)
        elif not is_input:
            self._add_relations(function, node, layer, inputs, outputs)
        # What a trace uses by itself is known from tracing it.
        if inner is None and not is_input and is_shown:
            self.readers.append((layer, node))

    def _enter(self, function, node, inner, inputs, outputs):
        """Ties the tensors around a function to those inside."""
        passages, name = self.graph.passages(node), node.operation.name
        if passages is not None:
            for outer, entry in (*passages[0], *passages[1]):
                self.unknowns.add(
                    {self._number(function, outer): 1},
                    {self._number(inner, entry): -1},
                    layer=name,
                    reason="it takes integers",
                )
            return
        for tensors in (inner.inputs, inner.outputs):
            numbers = self.unknowns.numbers_of(inner, tensors)
            self.unknowns.pin(numbers, name, _UNMATCHED)
        self.unknowns.pin([*inputs, *outputs], name, _UNMATCHED)

    def _add_relations(self, function, node, layer, inputs, outputs):
        """Adds the relations of a call, or pins all that takes part in it."""
        unknowns = self.unknowns
        relations = relations_of(layer, node)
        name = self._name_of(function, layer)
        if isinstance(relations, str):
            reason = relations
            if why := self.graph.hidden.get(id(node), ""):
                reason = f"{type(layer).__name__} cannot be seen through ({why})"
            leaves = keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
            weights = self._numbers(function, leaves)
            unknowns.pin([*inputs, *outputs, *weights], name, reason, "hidden")
            weights = getattr(layer, "weights", ())
            self._pin_weights(weights, f"{name}: {reason}", "hidden")
            return
        ends = {id(x) for x in (*node.input_tensors, *node.output_tensors)}
        for relation in relations:
            for x in relation.scaled:
                if isinstance(x, keras.KerasTensor) and id(x) not in ends:
                    inside = self._number(function, x)
                    if inside not in unknowns.weights:
                        unknowns.labels[inside] = f"inside {name}"
            for equation in relation.equations:
                powers = [{self._number(function, x): p} for x, p in equation]
                kind = "normalized" if relation.normalizes else "pinned"
                unknowns.add(*powers, layer=name, reason=relation.reason, kind=kind)

    def _name_of(self, function, layer):
        """Returns what a layer is called in reasons; functions by the layer around."""
        around = self.prefixes[id(function)]
        if id(function) not in self.graph.traces or not around:
            return layer.name
        is_layer = isinstance(layer, keras.Layer)
        return around + layer.name if is_layer else around.rstrip("/")

    def add_reads(self):
        """Pins the weights that code of the user reads in other ways than are known."""
        for function in self.graph.functions:
            trace = self.graph.traces.get(id(function))
            if trace is not None:
                name = self.prefixes[id(function)].rstrip("/") or self.model.name
                calls = [
                    (n.arguments.args, n.arguments.kwargs) for n in nodes_of(function)
                ]
                storages = trace.storages | storages_among(calls)
                read = [*trace.read, *stored_in(storages, self.everything)]
                self._pin_weights(read, f"it shares a weight with {name}")
        for layer, node in self.readers:
            arguments = keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
            known = {id(x) for x in arguments}
            for reads in reads_of(layer, node, self.everything):
                reason = f"it shares a weight with {reads.reader}"
                variables = reads.variables
                if reads.error:
                    reason = f"{reads.reader} may use it: it cannot be run "
                    reason += f"({reads.error})"
                    variables = [*variables, *self.everything]
                own = getattr(reads.owner, "weights", ())
                skipped = known | set(map(id, own))
                others = [v for v in variables if id(v) not in skipped]
                self._pin_weights(others, reason)

    def pin_weights(self):
        """Pins the weights that keep their values."""
        called: set[int] = set()
        for function in self.graph.functions:
            for node in nodes_of(function):
                if isinstance(node.operation, keras.Layer):
                    called.update(map(id, layers_of(node.operation)))
        for layer in self.layers[1:]:
            if id(layer) not in called and inner_function(layer) is None:
                reason = f"it shares a weight with {layer.name}"
                self._pin_weights(own_variables(layer), reason)
        for variable in list(self.unknowns.weights.values()):
            reason = why_fixed(variable)
            if id(variable) not in self.named:
                reason = "it is in a bare keras.Function"
            if reason:
                self._pin_weights([variable], reason)

    def pin_ends(self):
        """Pins the ends of the model, and of models called out of sight."""
        unknowns = self.unknowns
        for function in self.graph.functions:
            trace = self.graph.traces.get(id(function))
            inputs, outputs = function.inputs, function.outputs
            if trace is not None:
                inputs = trace.sources
            if function is self.graph.root:
                where = "of the model"
            elif id(function) not in self.entered:
                where = "of a model called inside another layer"
            else:
                continue
            for kind, tensors in (("input", inputs), ("output", outputs)):
                for number in self._numbers(function, tensors):
                    layer = unknowns.labels[number] or function.name
                    unknowns.pin([number], layer, f"an {kind} {where}")

    def _pin_weights(self, variables, reason, kind="pinned"):
        for variable in variables:
            kernel = self.named.get(id(variable))
            name = kernel.layer.name if kernel else variable.path.split("/")[0]
            number = self.unknowns.number_of(None, variable)
            self.unknowns.pin([number], name, reason, kind)

    def _numbers(self, function, things):
        """Returns the numbers of those that have a scale."""
        kinds = (keras.KerasTensor, keras.Variable)
        return [self._number(function, x) for x in things if isinstance(x, kinds)]

    def _number(self, function, thing):
        """Returns the number of a tensor, or of the weight that it stands for."""
        trace = self.graph.traces.get(id(function))
        if trace is not None:
            thing = trace.weights.get(id(thing), thing)
        return self.unknowns.number_of(function, thing)


_UNMATCHED = "its arguments cannot be matched to its inputs"
