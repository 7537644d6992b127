import contextlib

import keras
import networks
import numpy as np
import pytest
from helpers import (
    BACKEND,
    float64,
    norm_of,
    outputs_of,
    relative_error,
    to_numpy,
    weights_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, optimizers

from keras_weissi import (
    WEISSI,
    balance_scales,
    scale_groups,
    shift_scales,
)

# Each builds a model, so few of them; the shapes matter more than the numbers.
few = settings(max_examples=25)
seeds = st.integers(0, 2**31)


def precision(dtype):
    return float64() if dtype == "float64" else contextlib.nullcontext()


def limit_of(dtype, spec):
    """How near outputs have to be: to 1e-12 where Keras computes in float64."""
    # On JAX, Keras normalizes in float32, and makes it the dtype of `2.0 * x`; on
    # PyTorch, it multiplies matrices in float32.
    single = any(kind in ("batch norm", "layer norm", "ops") for kind, _ in spec)
    exact = BACKEND == "tensorflow" or (BACKEND == "jax" and not single)
    return 1e-12 if exact and dtype == "float64" else 1e-5


def data(dtype, rows=7):
    x = np.random.default_rng(1).normal(size=(rows, networks.WIDTH))
    return x.astype(dtype)


def dense(name, activation="relu", **kwargs):
    return layers.Dense(4, activation, name=name, **kwargs)


def chain(**kwargs):
    model = keras.Sequential(
        [
            keras.Input((4,)),
            dense("a", **kwargs),
            dense("b", **kwargs),
            dense("c", None, **kwargs),
        ]
    )
    networks.randomize(model)
    return model


@few
@given(networks.specs, seeds, st.sampled_from(["float64", "float32"]))
def test_any_shift_leaves_the_outputs(spec, seed, dtype):
    with precision(dtype):
        model = networks.build(spec, seed, dtype)
        x = data(dtype)
        before, log_norm = outputs_of(model, x), networks.weighted_log_norm(model)
        shift_scales(model, networks.random_factors(model, seed))
        assert relative_error(outputs_of(model, x), before) < limit_of(dtype, spec)
        if dtype == "float64":
            assert abs(networks.weighted_log_norm(model) - log_norm) < 1e-10


@few
@given(networks.specs, seeds, st.sampled_from(["float64", "float32"]))
def test_balancing_leaves_the_outputs_and_is_done_after_once(spec, seed, dtype):
    with precision(dtype):
        model = networks.build(spec, seed, dtype)
        x = data(dtype)
        before, log_norm = outputs_of(model, x), networks.weighted_log_norm(model)
        shift_scales(model, networks.random_factors(model, seed))
        balance_scales(model)
        assert relative_error(outputs_of(model, x), before) < limit_of(dtype, spec)
        if dtype == "float64":
            assert abs(networks.weighted_log_norm(model) - log_norm) < 1e-10
        weights = weights_of(model)
        assert all(row.factor == 1.0 for row in balance_scales(model))
        for one, two in zip(weights, weights_of(model), strict=True):
            np.testing.assert_array_equal(one, two)


@few
@given(networks.specs, seeds)
def test_the_balanced_norms_are_least_and_do_not_depend_on_the_shift(spec, seed):
    with float64():
        model = networks.build(spec, seed, "float64")
        edges = scale_groups(model).edges

        def squares():
            return np.array([norm_of(edge.kernel.variable) ** 2 for edge in edges])

        balance_scales(model)
        balanced = squares()
        for i in range(3):
            factors = networks.random_factors(
                model, seed + i, spread=[0.01, 0.3, 3.0][i]
            )
            shift_scales(model, factors)
            assert squares().sum() >= balanced.sum() * (1 - 1e-12)
        balance_scales(model)
        np.testing.assert_allclose(squares(), balanced, rtol=1e-9)


@few
@given(networks.specs, seeds)
def test_a_shift_and_its_inverse_are_the_identity_to_the_last_bit(spec, seed):
    model = networks.build(spec, seed)
    rng = np.random.default_rng(seed)
    groups = scale_groups(model)
    powers = {g.index: rng.integers(-9, 9) if g.free else 0 for g in groups.groups}
    factors = {
        e.kernel.name: 2.0 ** float(powers[e.target] - powers[e.source])
        for e in groups.edges
    }
    weights = weights_of(model)
    shift_scales(model, factors)
    shift_scales(model, {name: 1 / factor for name, factor in factors.items()})
    for one, two in zip(weights, weights_of(model), strict=True):
        np.testing.assert_array_equal(one, two)


@few
@given(networks.specs, seeds)
def test_wrong_factors_are_refused_and_change_nothing(spec, seed):
    model = networks.build(spec, seed)
    factors = networks.random_factors(model, seed)
    edges = scale_groups(model).edges
    wrong = edges[seed % len(edges)]
    if wrong.source == wrong.target or seed % 2:
        factors[wrong.kernel.name] *= 1.001
    else:
        factors[wrong.kernel.name] = -1.0
    weights = weights_of(model)
    with pytest.raises(ValueError, match="argument `factors"):
        shift_scales(model, factors)
    for one, two in zip(weights, weights_of(model), strict=True):
        np.testing.assert_array_equal(one, two)


def test_biases_get_all_the_factors_before_them():
    model = chain()
    before = weights_of(model)
    shift_scales(model, {"a": 2.0, "b": 8.0, "c": 1 / 16})
    factors = [2.0, 2.0, 8.0, 16.0, 1 / 16, 1.0]  # kernel and bias of each layer
    for one, two, factor in zip(before, weights_of(model), factors, strict=True):
        np.testing.assert_array_equal(two, one * factor)


def test_a_chain_gets_equal_norms_of_the_geometric_mean():
    model = chain()
    model.layers[0].kernel.assign(to_numpy(model.layers[0].kernel) * 1e4)
    norms = [norm_of(layer.kernel) for layer in model.layers]
    report = balance_scales(model)
    mean = np.prod(norms) ** (1 / 3)
    for row, layer, norm in zip(report, model.layers, norms, strict=True):
        assert norm_of(layer.kernel) == pytest.approx(mean, rel=1e-6)
        assert (row.name, row.before) == (layer.name, pytest.approx(norm))
        assert row.after == pytest.approx(mean)
        assert row.factor == pytest.approx(mean / norm)
    assert "sum of squares" in str(report)


def test_squares_in_and_out_of_every_free_group_are_equal_after_balancing():
    spec = [("projection shortcut", "relu"), ("concat", "relu"), ("batch norm", "relu")]
    model = networks.build(spec)
    balance_scales(model)
    groups = scale_groups(model)
    assert len(groups.free) == 4
    for group in groups.free:
        into, out = (
            sum(
                norm_of(edge.kernel.variable) ** 2
                for edge in groups.edges
                if getattr(edge, end) == group.index
                and getattr(edge, other) != group.index
            )
            for end, other in (("target", "source"), ("source", "target"))
        )
        assert into == pytest.approx(out, rel=1e-5)


def test_what_can_not_be_balanced_is_said_and_left():
    x = inputs = keras.Input((5, 4))
    x = dense("a")(x)
    x = dense("dead")(x)
    x = dense("b", "tanh")(x)
    x = dense("fixed", "tanh")(x)
    x = layers.LSTM(3, name="lstm")(x)
    model = keras.Model(inputs, x)
    networks.randomize(model)
    model.get_layer("dead").kernel.assign(np.zeros((4, 4)))
    weights = weights_of(model)
    notes = {row.name: row.note for row in balance_scales(model)}
    assert notes == {
        "a": "a kernel of norm 0 stands in the way",
        "dead": "its norm is 0",
        "b": "a kernel of norm 0 stands in the way",
        "fixed": "between pinned groups",
        "lstm/lstm_cell/kernel": "no scale can be shifted through its layer",
        "lstm/lstm_cell/recurrent_kernel": "no scale can be shifted through its layer",
    }
    for one, two in zip(weights, weights_of(model), strict=True):
        np.testing.assert_array_equal(one, two)


def test_frozen_layers_are_left_as_they_are():
    model = keras.Sequential([keras.Input((4,)), dense("a"), dense("b"), dense("c")])
    model.add(dense("d", None))
    networks.randomize(model)
    model.layers[0].trainable = False
    kernel = to_numpy(model.layers[0].kernel)
    rows = {row.name: row for row in balance_scales(model)}
    assert rows["a"].factor == 1.0 != rows["b"].factor
    np.testing.assert_array_equal(to_numpy(model.layers[0].kernel), kernel)
    with pytest.raises(ValueError, match="argument `factors`.*Received: 'a'"):
        shift_scales(model, {"a": 2.0, "b": 0.5})


@few
@given(networks.specs, seeds)
def test_training_computes_the_same_as_well(spec, seed):
    model = networks.build([*spec, ("second output", "linear")], seed)
    x = data("float32")

    def outputs():
        for layer in model.layers:  # the same noise again
            if hasattr(layer, "seed_generator"):
                layer.seed_generator.state.assign([seed % 1000, 0])
        y = [to_numpy(y).ravel() for y in model(x, training=True)]
        for variable, value in zip(model.non_trainable_variables, moving, strict=True):
            variable.assign(value)
        return np.concatenate(y)

    moving = [to_numpy(v) for v in model.non_trainable_variables]
    before = outputs()
    shift_scales(model, networks.random_factors(model, seed))
    assert relative_error(outputs(), before) < 1e-4


def test_ranges_of_half_precision_count_in_mixed_precision():
    model = networks.build([("dense", "relu")], dtype="mixed_float16")
    weights = weights_of(model)
    names = [layer.name for layer in model.layers[1:]]
    with pytest.raises(ValueError, match="range of float32 and float16"):
        shift_scales(model, dict(zip(names, (1e6, 1e-6), strict=True)))
    for one, two in zip(weights, weights_of(model), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("small", [1e-200, 1e200])
def test_products_beyond_the_range_of_floats_are_refused(small):
    model = keras.Sequential([keras.Input((4,)), dense("a"), dense("b"), dense("c")])
    model.add(dense("d", None))
    factors = {"a": small, "b": small, "c": 1 / small, "d": 1 / small}
    with pytest.raises(ValueError, match="argument `factors`.*range of floats"):
        shift_scales(model, factors)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_norm_that_is_not_finite_is_refused_by_name(value):
    model = chain()
    model.layers[1].kernel.assign(np.full((4, 4), value))
    weights = weights_of(model)
    with pytest.raises(ValueError, match="argument `model`.*'b' of norm"):
        balance_scales(model)
    for one, two in zip(weights, weights_of(model), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"a": 2.0}, "is 1 at 'c', which pins .* 2 along 'a' and 'b' and 'c'$"),
        ({"a": 2.0, "b": 0.0}, r"factors\['b'\]=0.0"),
        ({"a": float("nan")}, r"factors\['a'\]=nan"),
        ({"a": float("inf")}, r"factors\['a'\]=inf"),
        ({"a": True}, r"factors\['a'\]=True"),
        ({"z": 2.0}, "Received: 'z'"),
        ([2.0], "Expected a dict"),
    ],
)
def test_wrong_factors_are_named(factors, message):
    with pytest.raises(ValueError, match=f"argument `factors.*{message}"):
        shift_scales(chain(), factors)


def test_factors_by_the_names_of_kernels_and_of_nested_layers():
    def inner(name):
        return keras.Sequential([keras.Input((4,)), dense("d")], name=name)

    model = keras.Sequential([keras.Input((4,)), inner("one"), inner("two")])
    model.add(dense("out", None))
    with pytest.raises(ValueError, match="'one/d' or 'two/d'. Received: 'd', .* 2 lay"):
        shift_scales(model, {"d": 2.0})
    shift_scales(model, {"one/d": 2.0, "two/d": 0.5})
    with pytest.raises(ValueError, match="two for 'out', by 'out' and 'out"):
        shift_scales(model, {"out": 1.0, **{_Name("out"): 1.0}})


class _Name(str):
    """Equal to no other name, as a dict key."""

    def __hash__(self):
        return id(self)


def test_a_layer_with_two_kernels_shares_its_factor():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.SeparableConv2D(4, 3, name="sep"),
            layers.Conv2D(2, 1, name="out"),
        ]
    )
    report = shift_scales(model, {"sep": 4.0, "out": 0.25})
    assert [row.factor for row in report] == [2.0, 2.0, 0.25]
    shift_scales(model, {"sep/depthwise_kernel": 2.0, "sep/pointwise_kernel": 0.5})
    networks.randomize(model)
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 2)).astype("float32")
    before = outputs_of(model, x)
    shift_scales(model, {"sep/depthwise_kernel": 8.0, "out": 0.125})
    balance_scales(model)
    assert relative_error(outputs_of(model, x), before) < 1e-5


def test_a_factor_that_would_overflow_changes_nothing():
    model = chain()
    weights = weights_of(model)
    with pytest.raises(ValueError, match="a/kernel.*range of float32"):
        shift_scales(model, {"a": 1e39, "b": 1e-39})
    for one, two in zip(weights, weights_of(model), strict=True):
        np.testing.assert_array_equal(one, two)


def test_half_precision_is_balanced_to_its_precision():
    for dtype, limit in (("float16", 2e-3), ("bfloat16", 2e-2)):
        model = networks.build([("dense", "relu"), ("dense", "relu")], dtype=dtype)
        model.layers[1].kernel.assign(to_numpy(model.layers[1].kernel) * 0 + 100.0)
        balance_scales(model)
        norms = [norm_of(keras.ops.cast(d.kernel, "float32")) for d in model.layers[1:]]
        np.testing.assert_allclose(norms, np.mean(norms), rtol=limit)
        assert all(row.factor == 1.0 for row in balance_scales(model))


def test_a_model_that_can_not_be_seen_through_is_refused():
    model = networks.OpaqueModel()
    model(keras.ops.ones((1, 4)))
    weights = weights_of(model)
    for function in (balance_scales, lambda m: shift_scales(m, {"d": 1.0})):
        with pytest.raises(
            ValueError, match="Expected a model that can be seen through: its `call`"
        ):
            function(model)
    for one, two in zip(weights, weights_of(model), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_subclassed_model_is_shifted_and_balanced():
    class Two(networks.Subclassed):
        def __init__(self):
            super().__init__()
            self.first = layers.Dense(3, "relu", name="first")

        def call(self, x):
            return super().call(self.first(x))

    model, x = Two(), np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    before = outputs_of(model, x)
    shift_scales(model, {"first": 8.0, model.dense.name: 0.125})
    np.testing.assert_allclose(outputs_of(model, x), before, rtol=1e-6)
    balance_scales(model)
    np.testing.assert_allclose(outputs_of(model, x), before, rtol=1e-5, atol=1e-6)
    norms = [norm_of(layer.kernel) for layer in (model.first, model.dense)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_an_optimizer_that_is_not_known_is_named_and_nothing_changes():
    class Mine(optimizers.SGD):
        pass

    model = chain()
    model.compile(Mine(), "mse")
    weights = weights_of(model)
    for function in (
        balance_scales,
        lambda m: shift_scales(m, {"a": 2.0, "b": 0.5}),
    ):
        with pytest.raises(ValueError, match="argument `optimizer`.*Received: Mine"):
            function(model)
    for one, two in zip(weights, weights_of(model), strict=True):
        np.testing.assert_array_equal(one, two)
    balance_scales(model, optimizer=False)


# Momentum, against a network, its gradients and its optimizer written out in NumPy.

RATE, MOMENTUM = 0.05, 0.9
SPREADS = 3.0, 1.0, 0.2, 1.0  # of the weights: far from balanced


def numpy_gradients(weights, x, y):
    """Of the mean squared error of a network of two layers, by hand."""
    w1, b1, w2, b2 = weights
    hidden = x @ w1 + b1
    active = np.maximum(hidden, 0)
    error = 2 * (active @ w2 + b2 - y) / y.size
    back = (error @ w2.T) * (hidden > 0)
    return [x.T @ back, back.sum(0), active.T @ error, error.sum(0)]


def numpy_step(weights, momenta, x, y):
    gradients = numpy_gradients(weights, x, y)
    momenta = [MOMENTUM * m - RATE * g for m, g in zip(momenta, gradients, strict=True)]
    return [w + m for w, m in zip(weights, momenta, strict=True)], momenta


@pytest.mark.parametrize("carry", [True, False])
def test_training_goes_on_as_the_optimizer_remembers_it(carry):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 3)), rng.normal(size=(20, 2))
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(8, "relu"), layers.Dense(2)]
    )
    start = [
        rng.normal(0, s, v.shape) for s, v in zip(SPREADS, model.weights, strict=True)
    ]
    model.set_weights(start)
    model.compile(optimizers.SGD(RATE, momentum=MOMENTUM), "mse")
    weights, momenta = start, [np.zeros_like(w) for w in start]

    def train():
        nonlocal weights, momenta
        weights, momenta = numpy_step(weights, momenta, x, y)
        model.train_on_batch(x.astype("float32"), y.astype("float32"))

    for _ in range(5):
        train()
    balance_scales(model, optimizer=carry)
    norms = np.linalg.norm(weights[0]), np.linalg.norm(weights[2])
    c = np.sqrt(norms[1] / norms[0])  # both become the geometric mean
    factors = [c, c, 1 / c, 1.0]
    assert c < 0.5
    weights = [w * f for w, f in zip(weights, factors, strict=True)]
    momenta = [m / f for m, f in zip(momenta, factors, strict=True)]
    before = weights_of(model)
    np.testing.assert_allclose(before[0], weights[0], rtol=1e-5, atol=1e-6)
    old = weights
    train()
    errors = [
        relative_error(after - was, new - then)
        for after, was, new, then in zip(
            weights_of(model), before, weights, old, strict=True
        )
    ]
    if carry:
        # Differences of float32 weights: about 1e-7 over the size of an update.
        worst = max(
            np.abs(after - new).max() / np.abs(new).max()
            for after, new in zip(weights_of(model), weights, strict=True)
        )
        assert worst < 1e-6 and max(errors) < 1e-4
        for _ in range(5):
            train()
        for one, two in zip(weights_of(model), weights, strict=True):
            assert relative_error(one, two) < 1e-5
    else:
        # Without it, the first layer's update is a fraction of what it should be.
        assert errors[0] > 0.5 and errors[2] > 0.5


def test_the_first_update_in_float64():
    if BACKEND == "torch":
        pytest.skip("Keras feeds its trainer float32 data")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 3)), rng.normal(size=(20, 2))
    with float64():
        policy = keras.config.dtype_policy()
        keras.config.set_dtype_policy("float64")
        try:
            model = keras.Sequential(
                [keras.Input((3,)), layers.Dense(8, "relu"), layers.Dense(2)]
            )
        finally:
            keras.config.set_dtype_policy(policy)
        start = [
            rng.normal(0, s, v.shape)
            for s, v in zip(SPREADS, model.weights, strict=True)
        ]
        model.set_weights(start)
        model.compile(optimizers.SGD(RATE, momentum=MOMENTUM), "mse")
        weights, momenta = start, [np.zeros_like(w) for w in start]
        for _ in range(5):
            weights, momenta = numpy_step(weights, momenta, x, y)
            model.train_on_batch(x, y)
        balance_scales(model)
        c = np.sqrt(np.linalg.norm(weights[2]) / np.linalg.norm(weights[0]))
        factors = [c, c, 1 / c, 1.0]
        weights = [w * f for w, f in zip(weights, factors, strict=True)]
        momenta = [m / f for m, f in zip(momenta, factors, strict=True)]
        before, old = weights_of(model), weights
        weights, momenta = numpy_step(weights, momenta, x, y)
        model.train_on_batch(x, y)
        for after, was, new, then in zip(
            weights_of(model), before, weights, old, strict=True
        ):
            assert relative_error(after - was, new - then) < 1e-6


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("power", [1e-200, 1e200, 10**400])
def test_products_out_of_range_are_refused_on_any_way(swapped, power):
    inputs = keras.Input((4,))
    short = layers.Dense(3, name="b")(layers.Dense(3, name="a")(inputs))
    long = layers.Dense(3, name="d")(layers.Dense(3, name="c")(inputs))
    ends = [short, layers.Dense(3, name="e")(long)]
    x = layers.add(ends[::-1] if swapped else ends)
    model = keras.Model(inputs, layers.Dense(2, name="out")(x))
    weights = weights_of(model)
    with pytest.raises(ValueError, match="`factors.*`. Expected .*Received: "):
        shift_scales(model, {"a": power, "b": power})
    for before, after in zip(weights, weights_of(model), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_scales_out_of_range_are_refused_if_there_is_a_bias(bias):
    chain = [layers.Dense(1) for _ in range(40)]
    model = keras.Sequential([keras.Input((1,)), *chain])
    for i, layer in enumerate(chain):
        power = 1e-30 if i < 20 else 1e30
        layer.set_weights([np.full((1, 1), power), np.full((1,), bias)])
    weights = weights_of(model)
    if bias:
        with pytest.raises(
            ValueError, match="Cannot multiply .*bias.*range of float32"
        ):
            balance_scales(model)
        for before, after in zip(weights, weights_of(model), strict=True):
            np.testing.assert_array_equal(before, after)
    else:
        balance_scales(model)
        norms = [to_numpy(layer.kernel).item() for layer in chain]
        np.testing.assert_allclose(norms, 1.0, rtol=1e-5)


def test_a_kernel_shifted_below_its_floor_is_noted():
    stack = [dense("a", kernel_regularizer=WEISSI(min_norm=0.5)), dense("b")]
    model = keras.Sequential([keras.Input((4,)), *stack])
    model.get_layer("a").kernel.assign(np.full((4, 4), 0.25))  # a norm of 1
    notes = [row.note for row in shift_scales(model, {"a": 0.4, "b": 2.5})]
    assert notes == ["below min_norm=0.5, where WEISSI is not invariant", ""]
    notes = [row.note for row in shift_scales(model, {"a": 2.5, "b": 0.4})]
    assert notes == ["", ""]
