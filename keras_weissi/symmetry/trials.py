"""Random values to try code on, and how it is run on them."""

import contextlib
import math
from fractions import Fraction
from typing import Any

import keras
import ml_dtypes
import numpy as np

from keras_weissi._utils.keras_private import holding, mask_of, set_mask
from keras_weissi._utils.run_code import compiled_whole, without_gradients
from keras_weissi.model.operations import is_float
from keras_weissi.model.reads import Outermost, symbols_in
from keras_weissi.model.snapshot import state_kept
from keras_weissi.model.walk import layers_of

# What unknown dimensions count as, tried in turn.
_SIZES = (2, 12, 1, 64)
# Pairs of these, and of how many ids there are. A table may have a single row.
TRIES = [(size, ids) for size in _SIZES for ids in (2, 1)]
# Weights of more elements are tried as they are. Smaller ones are moved by noise, and
# those that are 0 or 1 throughout too, which would hide what comes before.
_SMALL = 4096


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
            # Not on the device, where JAX would compile each operation.
            value = keras.ops.convert_to_numpy(variable.value)
            is_varied = variable.trainable and (
                value.size <= _SMALL or value.min() == value.max()
            )
            if is_varied:
                noise = 0.1 * self.rng.normal(size=value.shape)
                value = (value + noise).astype(value.dtype)
                before[id(variable)] = _tensor(value, variable)
            if power or is_varied:
                after[id(variable)] = _tensor(value * 2.0**power, variable)
        return before, after


def _tensor(value, like):
    return keras.ops.convert_to_tensor(value, like.dtype)


def is_close(actual, expected, dtype):
    """Whether two arrays are equal up to the rounding of a dtype."""
    if not is_float(dtype):
        return np.array_equal(actual, expected)
    if expected.size and np.isnan(expected).all():
        raise FloatingPointError("its outputs are not numbers")
    if np.isinf(actual[np.isfinite(expected)]).any():
        raise FloatingPointError("its outputs overflow")
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
        arguments: A structure with the `keras.KerasTensor`s.
        variables: List of the `keras.Variable`s whose values matter.
        training: bool.
    """

    def __init__(self, function, layer, arguments, variables, training):
        self.function = function
        self.layer = layer
        self.symbols = symbols_in(arguments)
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
            state_kept([self.layer]),
            holding(mapping),
            keras.StatelessScope(state_mapping=mapping),
            _no_dropout(self.layer),
        ):
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
