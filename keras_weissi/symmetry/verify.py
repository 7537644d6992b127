"""Tries on random numbers what was seen inside layers, or declared of them."""

import dataclasses
import warnings
from typing import Any

import keras
import numpy as np

from keras_weissi._utils.keras_private import nodes_of
from keras_weissi.model.graph import unwrapped, weights_among
from keras_weissi.model.reads import described, in_mode
from keras_weissi.model.scaling import is_declared
from keras_weissi.model.trace import has_own_code
from keras_weissi.symmetry.trials import TRIES, Code, Trial, is_close, random_values


@dataclasses.dataclass(frozen=True)
class Claim:
    """What is said of one call: that its outputs scale as its inputs and weights do.

    Attributes:
        layer: the `keras.Layer` that is called.
        name: str, what it is called in messages.
        arguments: pair of the list and the dict that it is called with.
        scales: dict from the ids of its tensors to the numbers of their unknowns.
        outputs: list of `keras.KerasTensor`.
        weights: dict from numbers of unknowns to the `keras.Variable`s it may use.
        inside: list of `Claim`, of calls inside.
    """

    layer: keras.Layer
    name: str
    arguments: tuple[Any, Any]
    scales: dict[int, int]
    outputs: list[keras.KerasTensor]
    weights: dict[int, keras.Variable]
    inside: list["Claim"]


def find_untrue(graph, unknowns, reduction):
    """Tries all that was seen inside layers, or declared.

    Returns:
        List of pairs: a `Claim` that is not true, as far inside as that can be told,
        and what is wrong with it.
    """
    # A tie that is not seen may hold in one trial by chance.
    trials = [Trial(reduction, np.random.default_rng(seed)) for seed in range(3)]
    root = graph.traces.get(id(graph.root))
    if root is not None:
        claims = [_claim_of_trace(graph, unknowns, root, root.layer.name)]
    else:
        claims = [c for f in graph.functions for c in _claims_in(graph, unknowns, f)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [found for claim in claims for found in _untrue(claim, trials)]


def _untrue(claim, trials):
    moving = [trial for trial in trials if trial.moves(claim)]
    why = _what_is_wrong(claim, moving) if moving else ""
    if not why:
        return []
    inside = [found for part in claim.inside for found in _untrue(part, trials)]
    return inside or [(claim, why)]


def _claims_in(graph, unknowns, function, is_inside=False):
    if id(function) in graph.traces and not is_inside:
        return []
    found = []
    for node in nodes_of(function):
        layer = node.operation
        trace = graph.traces.get(id(graph.inner(node)))
        if trace is not None and has_own_code(layer):
            found.append(_claim_of_trace(graph, unknowns, trace, layer.name))
        elif trace is None and is_declared(unwrapped(layer)):
            arguments = (node.arguments.args, node.arguments.kwargs)
            tensors = (*node.input_tensors, *node.output_tensors)
            scales = {id(x): unknowns.number_of(function, x) for x in tensors}
            outputs = node.output_tensors
            weights = _numbered(unknowns, layer.weights)
            found.append(
                Claim(layer, layer.name, arguments, scales, outputs, weights, [])
            )
    return found


def _claim_of_trace(graph, unknowns, trace, name):
    function = trace.function
    tensors = (*trace.sources, *function.outputs)
    inside = [
        dataclasses.replace(claim, name=f"{name}/{claim.name}")
        for claim in _claims_in(graph, unknowns, function, True)
    ]
    weights = _numbered(unknowns, trace.layer.weights)
    for node in nodes_of(function):
        weights |= _numbered(unknowns, weights_among(node, trace))
    for claim in inside:
        weights |= claim.weights
    return Claim(
        trace.layer,
        name,
        trace.arguments,
        {id(x): unknowns.number_of(function, x) for x in tensors},
        function.outputs,
        weights,
        inside,
    )


def _numbered(unknowns, variables):
    numbers = [(unknowns.numbers.get((None, id(v))), v) for v in variables]
    return {number: v for number, v in numbers if number is not None}


def _what_is_wrong(claim, trials):
    """Tries a claim in training and without; returns "" or what is wrong with it."""
    error = ""
    for size, ids in TRIES:
        try:
            for training in (False, True):
                code = _code_of(claim, training)
                for trial in trials:
                    if not _holds(claim, trial, code, size, ids):
                        mode = "training" if training else "inference"
                        return f"in {mode}, its outputs do not scale as it shows"
        except Exception as e:
            error = error or described(e)
        else:
            return ""
    return f"it cannot be tried ({error})"


def _code_of(claim, training):
    """Returns the `Code` that a claim is about."""
    layer = claim.layer

    def call(known):
        args, kwargs = keras.tree.map_structure(
            lambda x: known.get(id(x), x), claim.arguments
        )
        return layer(*args, **in_mode(layer, kwargs, training))

    variables = [*layer.variables, *claim.weights.values()]
    return Code(call, layer, claim.arguments, variables, training)


def _holds(claim, trial, code, size, ids):
    """Whether a claim is true for one trial."""
    powers = {key: trial.log2_of(x) for key, x in claim.scales.items()}
    values = random_values(code.symbols, size, ids, trial.rng)
    before, after = trial.values_of(claim.weights)
    one = code.run(values, {}, before)
    other = code.run(values, powers, after)
    return all(
        is_close(z, y * 2.0 ** powers[id(tensor)], tensor.dtype)
        for tensor, y, z in zip(claim.outputs, one, other, strict=True)
    )
