"""Tries on random numbers what was seen inside layers, or declared of them."""

import contextlib
import dataclasses
import math
import warnings
from fractions import Fraction
from typing import Any

import keras
import ml_dtypes
import numpy as np

from keras_weissi._utils.backend import without_gradients
from keras_weissi._utils.keras_private import mask_of, nodes_of, set_mask
from keras_weissi.model.graph import unwrapped, weights_among
from keras_weissi.model.operations import is_float
from keras_weissi.model.reads import Outermost, described, in_mode, symbols_in
from keras_weissi.model.scaling import is_declared
from keras_weissi.model.snapshot import state_kept
from keras_weissi.model.trace import has_own_code
from keras_weissi.model.walk import layers_of

# What unknown dimensions count as, tried in turn.
_SIZES = (2, 12, 1, 64)
# Pairs of these, and of how many ids there are. A table may have a single row.
TRIES = [(size, ids) for size in _SIZES for ids in (2, 1)]
# Weights of more elements are tried as they are; smaller ones, which may be all 0 or 1
# at the start, are moved by noise.
_SMALL = 4096


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
    return [found for claim in claims for found in _untrue(claim, trials)]


def _untrue(claim, trials):
    whys = (_what_is_wrong(claim, trial) for trial in trials)
    why = next(filter(None, whys), "")
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


class Trial:
    """One random shift of all scales, by powers of 2.

    Args:
        reduction: `Reduction` of the model's equations.
        rng: `numpy.random.Generator`.
    """

    def __init__(self, reduction, rng):
        self.rng = rng
        self.reduction = reduction
        values = reduction.values.values()
        powers = [Fraction(p) for value in values for p in value.values()]
        step = math.lcm(*(power.denominator for power in powers))
        free = reduction.free_unknowns()
        self.z = {x: step * int(rng.choice([-3, -2, -1, 1, 2, 3])) for x in free}

    def log2_of(self, unknown):
        """Returns the logarithm, to base 2, of the factor of an unknown."""
        value = self.reduction.value_of(unknown)
        return int(sum(power * self.z[x] for x, power in value.items()))

    def values_of(self, weights):
        """Draws values for weights: before the shift and after it.

        Args:
            weights: dict from numbers of unknowns to `keras.Variable`s.

        Returns:
            Pair of lists of pairs of a `keras.Variable` and a value.
        """
        before, after = [], []
        for number, variable in weights.items():
            power = self.log2_of(number)
            if not is_float(variable.dtype):
                continue
            value = variable.value
            is_small = math.prod(variable.shape) <= _SMALL and variable.trainable
            if is_small:
                noise = 0.1 * self.rng.normal(size=variable.shape)
                value = value + keras.ops.convert_to_tensor(noise, variable.dtype)
                before.append((variable, value))
            if power or is_small:
                factor = keras.ops.convert_to_tensor(2.0**power, variable.dtype)
                after.append((variable, value * factor))
        return before, after


def _what_is_wrong(claim, trial):
    """Tries a claim in training and without; returns "" or what is wrong with it."""
    if not any(trial.log2_of(x) for x in (*claim.scales.values(), *claim.weights)):
        return ""
    powers = {key: trial.log2_of(x) for key, x in claim.scales.items()}
    before, after = trial.values_of(claim.weights)
    error = ""
    for size, ids in TRIES:
        values = random_values(claim.arguments, size, ids, trial.rng)
        try:
            for training in (False, True):
                one = _outputs(claim, values, before, training, {})
                other = _outputs(claim, values, after, training, powers)
                for tensor, y, z in zip(claim.outputs, one, other, strict=True):
                    expected = y * 2.0 ** powers[id(tensor)]
                    if not is_close(z, expected, tensor.dtype):
                        mode = "training" if training else "inference"
                        return f"in {mode}, its outputs do not scale as it shows"
        except Exception as e:
            error = error or described(e)
        else:
            return ""
    return f"it cannot be tried ({error})"


def is_close(actual, expected, dtype):
    """Whether two arrays are equal up to the rounding of a dtype."""
    if not is_float(dtype):
        return np.array_equal(actual, expected)
    if expected.size and np.isnan(expected).all():
        raise FloatingPointError("its outputs are not numbers")
    # Powers of 2 are exact, but code may round in another order.
    eps = float(ml_dtypes.finfo(keras.backend.standardize_dtype(dtype)).eps)
    scale = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
    atol = min(256 * eps, 0.01) * scale
    with np.errstate(all="ignore"):
        return bool(np.isclose(actual, expected, 0.0, atol, equal_nan=True).all())


def random_values(arguments, size, ids, rng):
    """Draws a value for each symbolic tensor, and for its mask."""
    values = {}
    for key, x in symbols_in(arguments).items():
        shape = [size if n is None else n for n in x.shape]
        if is_float(x.dtype):
            value = rng.normal(size=shape)
        elif keras.backend.standardize_dtype(x.dtype) == "bool":
            value = np.ones(shape, bool)
        else:
            value = rng.integers(0, ids, shape)
        values[key] = keras.ops.convert_to_tensor(value, x.dtype)
    return values


def scaled_by(values, symbols, powers):
    """Multiplies values of tensors by powers of 2, and gives them their masks.

    Args:
        values: dict from the ids of symbolic tensors to tensors.
        symbols: dict from the ids to the symbolic tensors.
        powers: dict from the ids to ints, for those that are multiplied.
    """
    scaled = {}
    for key, x in symbols.items():
        scaled[key] = values[key]
        if is_float(x.dtype):
            factor = keras.ops.convert_to_tensor(2.0 ** powers.get(key, 0), x.dtype)
            scaled[key] = values[key] * factor
    for key, x in symbols.items():
        if (mask := mask_of(x)) is not None:
            set_mask(scaled[key], scaled[id(mask)])
    return scaled


def run(function, layer, weights, training):
    """Calls a function with other values of the weights, and puts back its traces.

    Args:
        function: Function without arguments, which returns tensors.
        layer: The `keras.Layer` whose state is kept.
        weights: List of pairs of a `keras.Variable` and a value.
        training: bool.

    Returns:
        List of arrays.
    """
    outputs: list[Any] = []

    def call():
        outputs[:] = keras.tree.flatten(function())

    with (
        warnings.catch_warnings(),
        state_kept([layer]),
        without_gradients(),
        keras.StatelessScope(state_mapping=weights),
    ):
        warnings.simplefilter("ignore")
        with _no_dropout(layer):
            Outermost()(function=call, training=training)
    return [
        keras.ops.convert_to_numpy(keras.ops.cast(y, _wide(y)))
        for y in outputs
        if keras.ops.is_tensor(y)
    ]


@contextlib.contextmanager
def _no_dropout(layer):
    """Lets dropout keep all: it is known, and takes JAX long to compile."""
    dropouts = [x for x in layers_of(layer) if type(x) is keras.layers.Dropout]
    rates = [part.rate for part in dropouts]
    try:
        for part in dropouts:
            vars(part)["rate"] = 0.0
        yield
    finally:
        for part, rate in zip(dropouts, rates, strict=True):
            vars(part)["rate"] = rate


def _outputs(claim, values, weights, training, powers):
    """Calls the layer with other weights, and with inputs multiplied by powers of 2."""
    scaled = scaled_by(values, symbols_in(claim.arguments), powers)
    args, kwargs = keras.tree.map_structure(
        lambda x: scaled.get(id(x), x), claim.arguments
    )
    named = in_mode(claim.layer, kwargs, training)
    return run(lambda: claim.layer(*args, **named), claim.layer, weights, training)


def _wide(x):
    """Returns a dtype that NumPy has."""
    dtype = keras.backend.standardize_dtype(x.dtype)
    return "float32" if dtype in ("float16", "bfloat16") else dtype
