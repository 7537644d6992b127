"""Properties of the scale symmetry on random networks: products, powers, attention.

Each test runs on few of its examples by default, and on all of them among the slow
tests. They are the same every time.
"""

import random

import blocks
import keras
import networks
import numpy as np
import pytest
from helpers import BACKEND, outputs_of, relative_error, to_numpy, weights_of
from hypothesis import strategies as st
from keras import layers
from random_examples import examples

from keras_weissi import (
    balance_scales,
    scale_groups,
    shift_scales,
)
from keras_weissi.model.walk import layers_of
from keras_weissi.symmetry import check_scaling

SHAPE = (blocks.STEPS, blocks.WIDTH)
drawn = {
    "spec": networks.sequence_specs,
    "seed": st.integers(0, 2**31),
    "is_subclassed": st.booleans(),
}
float32 = {**drawn, "dtype": st.just("float32")}
float64 = {**drawn, "dtype": st.just("float64")}


def build(spec, seed=0, is_subclassed=False, dtype="float32"):
    return networks.build(spec, seed, dtype, SHAPE, is_subclassed)


def data(dtype, rows=7):
    return np.random.default_rng(1).normal(size=(rows, *SHAPE)).astype(dtype)


def results(model, dtype="float32"):
    """The outputs at inference and in training, with the same random numbers."""
    state = [to_numpy(v) + 0 for v in model.non_trainable_variables]
    found = []
    for training in (False, True):
        # PyTorch takes them from its own source if a layer has no seed.
        keras.utils.set_random_seed(1)
        found.append(outputs_of(model, data(dtype), training))
        for variable, value in zip(model.non_trainable_variables, state, strict=True):
            variable.assign(value)
    return found


def check_results(actual, expected, limit):
    for one, other in zip(actual, expected, strict=True):
        assert np.isfinite(other).all() and relative_error(one, other) <= limit


def limit_of(model, dtype, before):
    """How far outputs may move: more only where rounding the weights moves them too.

    Sums of products of large numbers, in front of a softmax, can be that sensitive.
    """
    # Keras computes in float32 here and there, but for TensorFlow.
    is_exact = dtype == "float64" and BACKEND == "tensorflow"
    eps = np.finfo(dtype if is_exact else "float32").eps
    values = [to_numpy(v) + 0 for v in model.trainable_variables]
    rng = np.random.default_rng(0)
    for variable, value in zip(model.trainable_variables, values, strict=True):
        variable.assign(value * (1 + eps * rng.normal(size=value.shape)))
    moved = map(relative_error, results(model, dtype), before)
    limit = max(1e-12 if is_exact else 1e-5, 30 * max(moved))
    for variable, value in zip(model.trainable_variables, values, strict=True):
        variable.assign(value)
    return limit


def check_equal(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other)


# How many scales are free in a block after a layer, with another one after it. Each of
# these layers has one.
FREE = {
    "multiply": 2,
    "squeeze and excitation": 2,
    "dot": 4,
    "matmul": 3,
    "einsum": 4,
    "ratio": 1,
    "ratio with epsilon": 1,
    "powers": 2,
    "root": 2,
    "swiglu": 1,
    "swiglu in a layer": 2,
    "gate in a layer": 3,
    "three deep": 1,
    "own weights": 3,
    "shared weights": 0,
    "subclassed": 2,
    "embedding": 1,
    "lambda": 2,
    "attention": 4,
    "attention without bias": 4,
    "attention with a mask": 4,
    "causal attention": 4,
    "cross attention": 6,
    "grouped attention": 4,
    "grouped attention without bias": 4,
    "attention with a gate": 4,
    "grouped attention with a gate": 4,
    "rms norm": 1,
}


@pytest.mark.parametrize("kind", blocks.BLOCKS)
def test_free_scales_of_each_block(kind):
    model = build([("dense", "relu"), (kind, "relu"), ("dense", "relu")])
    groups = scale_groups(model)
    assert groups.dimension == FREE[kind] + 2
    before = results(model)
    shift_scales(model, groups.random_factors(np.random.default_rng(0)))
    shifted = results(model)
    check_results(shifted, before, 1e-5)
    balance_scales(model, exact=True)
    check_equal(results(model), shifted)


@examples(100, wide=float64, some=4, **float32)
def test_shifts_and_balancing_leave_the_outputs(spec, seed, is_subclassed, dtype):
    model = build(spec, seed, is_subclassed, dtype)
    before, log_norm = results(model, dtype), networks.weighted_log_norm(model)
    limit = limit_of(model, dtype, before)
    rng = np.random.default_rng(seed)
    for change in (
        lambda: shift_scales(model, scale_groups(model).random_factors(rng)),
        lambda: balance_scales(model),
    ):
        change()
        check_results(results(model, dtype), before, limit)
        if dtype == "float64":
            assert abs(networks.weighted_log_norm(model) - log_norm) < 1e-10
    weights = weights_of(model)
    assert all(row.factor == 1.0 for row in balance_scales(model))
    check_equal(weights_of(model), weights)


@examples(60, some=4, **drawn)
def test_exact_balancing_changes_no_bit(spec, seed, is_subclassed):
    model = build(spec, seed, is_subclassed)
    before = results(model)
    report = balance_scales(model, exact=True)
    assert all(np.log2(row.factor) % 1 == 0 for row in report)
    check_equal(results(model), before)
    weights = weights_of(model)
    assert all(row.factor == 1.0 for row in balance_scales(model, exact=True))
    check_equal(weights_of(model), weights)


def random_numbers(seed):
    """The next random numbers of all sources that layers may use, from a seed on."""
    keras.utils.set_random_seed(seed)
    return lambda: (
        random.random(),
        np.random.random(),
        float(to_numpy(keras.random.uniform(()))),
    )


def are_seeded():
    """Whether `set_random_seed` reaches all of them, which it does not in Keras 3.8."""
    return random_numbers(0)() == random_numbers(0)()


def next_names():
    """The names that the next layers of some kinds get, which they take."""
    made = [
        layers.Dense(1),
        layers.Identity(),
        layers.InputLayer((1,)),
        layers.MultiHeadAttention(1, 1),
        blocks.Position(),
    ]
    return [layer.name.rpartition("_")[2] for layer in made]


def contents(model):
    """What the layers hold, and how often they were called."""
    return {
        layer.name: (
            {name: id(value) for name, value in vars(layer).items()},
            len(layer._inbound_nodes),
            len(layer._outbound_nodes),
        )
        for layer in layers_of(model)
    }


@examples(40, some=4, marks=[pytest.mark.one_backend], **drawn)
def test_what_is_looked_at_or_refused_stays_as_it_was(spec, seed, is_subclassed):
    model = build(spec, seed, is_subclassed)
    weights, before = weights_of(model), contents(model)
    state = [to_numpy(v) + 0 for v in model.non_trainable_variables]
    names = [next_names() for _ in range(2)][1]  # as the first may have no number
    are_seeded_in_all = are_seeded()
    for function in (scale_groups, check_scaling):
        numbers = random_numbers(seed % 1000)()
        again = random_numbers(seed % 1000)
        function(model)
        count = 3 if are_seeded_in_all else 2
        assert again()[:count] == numbers[:count]
        assert contents(model) == before
    for edge in scale_groups(model).edges[:3]:
        with pytest.raises(ValueError, match="argument `factors"):
            shift_scales(model, {edge.kernel.name: 2.0})
    assert next_names() == [str(int(number) + 1) for number in names]
    check_equal(weights_of(model), weights)
    check_equal(map(to_numpy, model.non_trainable_variables), state)
