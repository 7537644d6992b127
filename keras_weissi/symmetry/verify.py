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

from keras_weissi._utils.backend import compiled_whole, without_gradients
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

    def moves(self, claim):
        """Whether it shifts any scale that takes part in a claim."""
        return any(map(self.log2_of, (*claim.scales.values(), *claim.weights)))

    def values_of(self, weights):
        """Draws values for weights: before the shift and after it.

        Args:
            weights: dict from numbers of unknowns to `keras.Variable`s.

        Returns:
            Pair of dicts from the ids of the variables to tensors.
        """
        before, after = {}, {}
        for number, variable in weights.items():
            power = self.log2_of(number)
            if not is_float(variable.dtype):
                continue
            is_small = math.prod(variable.shape) <= _SMALL and variable.trainable
            if not power and not is_small:
                continue
            # Not on the device, where JAX would compile each operation.
            value = keras.ops.convert_to_numpy(variable.value)
            if is_small:
                noise = 0.1 * self.rng.normal(size=value.shape)
                value = (value + noise).astype(value.dtype)
                before[id(variable)] = _tensor(value, variable)
            after[id(variable)] = _tensor(value * 2.0**power, variable)
        return before, after


def _tensor(value, like):
    return keras.ops.convert_to_tensor(value, like.dtype)


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


def random_values(symbols, size, ids, rng):
    """Draws an array for each symbolic tensor, and for its mask."""
    values = {}
    for key, x in symbols.items():
        shape = [size if n is None else n for n in x.shape]
        if is_float(x.dtype):
            values[key] = rng.normal(size=shape)
        elif keras.backend.standardize_dtype(x.dtype) == "bool":
            values[key] = np.ones(shape, bool)
        else:
            values[key] = rng.integers(0, ids, shape)
    return values


class Code:
    """Code of a user, to be run on several values in one mode.

    Args:
        function: Function that gets a dict from the ids of symbolic tensors to tensors,
            and returns tensors.
        layer: The `keras.Layer` whose state is kept.
        symbols: A structure with the `keras.KerasTensor`s.
        variables: List of the `keras.Variable`s whose values matter.
        training: bool.
    """

    def __init__(self, function, layer, symbols, variables, training):
        self.function = function
        self.layer = layer
        self.symbols = symbols_in(symbols)
        self.variables = list({id(v): v for v in variables}.values())
        self.training = training
        self._call = compiled_whole(self._call_as_it_is)

    def run(self, values, powers, weights):
        """Runs the code.

        Args:
            values: dict from the ids of the symbolic tensors to arrays.
            powers: dict from the ids to ints, the powers of 2 that they are multiplied
                by; 0 if left out.
            weights: dict from the ids of variables to tensors, if not their values.

        Returns:
            List of arrays.
        """
        given = []
        for key, x in self.symbols.items():
            value = values[key]
            if is_float(x.dtype):
                value = value * 2.0 ** powers.get(key, 0)
            given.append(_tensor(value, x))
        now = [weights.get(id(v), v.value) for v in self.variables]
        with without_gradients():
            outputs = self._call(given, now)
        return [
            keras.ops.convert_to_numpy(keras.ops.cast(y, _wide(y))) for y in outputs
        ]

    def _call_as_it_is(self, given, weights):
        known = dict(zip(self.symbols, given, strict=True))
        for key, x in self.symbols.items():
            if (mask := mask_of(x)) is not None:
                set_mask(known[key], known[id(mask)])
        outputs: list[Any] = []

        def call():
            outputs[:] = keras.tree.flatten(self.function(known))

        mapping = list(zip(self.variables, weights, strict=True))
        with (
            warnings.catch_warnings(),
            state_kept([self.layer]),
            keras.StatelessScope(state_mapping=mapping),
        ):
            warnings.simplefilter("ignore")
            with _no_dropout(self.layer):
                Outermost()(function=call, training=self.training)
        return [y for y in outputs if keras.ops.is_tensor(y)]


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


def _wide(x):
    """Returns a dtype that NumPy has."""
    dtype = keras.backend.standardize_dtype(x.dtype)
    return "float32" if dtype in ("float16", "bfloat16") else dtype
