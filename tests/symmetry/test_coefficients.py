import copy
import pickle

import keras
import networks
import numpy as np
import pytest
from helpers import float64, penalty_of
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

from keras_weissi import (
    WEISSI,
    deregularize,
    invariant_coefficients,
    regularize,
    scale_groups,
    shift_scales,
)
from keras_weissi.model.kernels import kernels, kernels_and_gammas


def dense(name, activation="relu"):
    return layers.Dense(4, activation, name=name)


def of(c):
    """The coefficients of all kernels, also of those without a penalty."""
    return {row.name: row.coefficient for row in c.table}


def scaled(strength, c):
    return {
        name: WEISSI(strength * value, min_norm=1e-6)
        for name, value in c.coefficients.items()
    }


def put(model, strength):
    return regularize(model, WEISSI(strength, min_norm=1e-6), invariant=True)


def residual(projection, normalization=False, blocks=2):
    x = inputs = keras.Input((4,))
    x = dense("stem")(x)
    for i in range(blocks):
        y = dense(f"a{i}")(x)
        y = dense(f"b{i}", None)(y)
        if normalization:
            y = layers.BatchNormalization(name=f"bn{i}")(y)
        shortcut = dense(f"p{i}", None)(x) if projection else x
        x = layers.ReLU()(layers.Add(name=f"add{i}")([y, shortcut]))
    return keras.Model(inputs, dense("head", None)(x))


def test_all_are_one_on_a_chain_and_with_identity_shortcuts():
    chain = keras.Sequential([keras.Input((4,)), dense("a"), dense("b"), dense("c")])
    for model in (chain, residual(projection=False)):
        c = invariant_coefficients(model)
        assert set(c.coefficients.values()) == {1.0}
        assert c.plain_is_invariant and "is invariant." in c.statement


def test_projection_shortcuts_need_other_coefficients():
    model = residual(projection=True)
    c = invariant_coefficients(model)
    # By hand: with x for stem and head and y for a and b, a projection gets x - y.
    # For a given x, a block is nearest to 1 at y = (x + 1) / 3, off by 2/3 (x - 2)^2;
    # 2 (x - 1)^2 + 2 * 2/3 (x - 2)^2 is least at x = 1.4.
    expected = {"stem": 1.4, "head": 1.4}
    for i in (0, 1):
        expected |= {f"a{i}": 0.8, f"b{i}": 0.8, f"p{i}": 0.6}
    assert c.coefficients == pytest.approx(expected)
    assert not c.plain_is_invariant
    assert "1 kernel enters ('stem'), but 2 kernels leave (" in c.statement
    assert "not invariant: at the output of 'stem', 1 kernel" in c.statement
    assert "(and 1 more" in c.statement


def test_the_coefficients_are_a_flow_and_the_nearest_to_one():
    model = residual(projection=True, blocks=3)
    c = invariant_coefficients(model)
    groups = scale_groups(model)
    rows = [
        [
            (edge.target == group.index) - (edge.source == group.index)
            for edge in groups.edges
        ]
        for group in groups.free
    ]
    matrix = np.array(rows, float)
    values = np.array([of(c)[edge.kernel.name] for edge in groups.edges])
    np.testing.assert_allclose(matrix @ values, 0, atol=1e-12)
    ones = np.ones(len(values))
    nearest = ones - np.linalg.pinv(matrix) @ matrix @ ones
    np.testing.assert_allclose(values, nearest, atol=1e-12)
    assert values.min() > 0


def test_a_gamma_that_feeds_a_free_group_gets_one_too():
    model = residual(projection=False, normalization=True, blocks=1)
    c = invariant_coefficients(model)
    assert not c.plain_is_invariant
    assert "the gamma of 'bn0' scales it as well" in c.statement
    assert "2 of 4 kernels are penalized" in c.statement
    assert "makes it so with these coefficients (gammas too)." in c.statement
    assert of(c)["b0"] == 0.0 and "b0" not in c.coefficients
    assert "left out: normalized by bn0" in str(c)
    assert of(c)["bn0"] > 0
    # What leads into the sum, over what leads out: a0 leads to b0, which is left out.
    assert of(c)["stem"] + of(c)["bn0"] == pytest.approx(of(c)["head"])
    assert of(c)["a0"] == 0.0
    assert "left out: kernels without a penalty can absorb its scale" in str(c)
    everything = invariant_coefficients(model, include_normalized=True)
    assert set(everything.coefficients) == {"stem", "a0", "b0", "bn0", "head"}
    assert "include_normalized=True, invariant=True)`" in everything.statement


def branches(count, length):
    """Blocks with several branches, with long names, of which some are hidden."""

    class Hidden(Block):
        def call(self, x):
            if isinstance(x, keras.KerasTensor):
                raise TypeError("no symbols")
            return super().call(x)

    def name(kind, i):
        return f"{kind}{i}_".ljust(length, "x")

    x = inputs = keras.Input((4,))
    for i in range(3):
        ways = [dense(name(f"a{i}_", j), None)(x) for j in range(count)]
        ways += [layers.BatchNormalization(name=name(f"bn{i}_", j))(x) for j in (0, 1)]
        x = layers.ReLU()(layers.Add()(ways))
        x = dense(name("b", i))(x)
        if count > 2:
            x = layers.BatchNormalization(name=name("bn", i))(x)
            x = Hidden(name=name("hidden", i))(x)
            x = dense(name("c", i), None)(x)
    return keras.Model(inputs, dense(name("head", 0), None)(x))


@pytest.mark.parametrize("count", [2, 3, 12])
@pytest.mark.parametrize("length", [1, 30, 300])
@pytest.mark.parametrize("include_normalized", [False, True])
def test_the_statement_is_short_whatever_the_names(count, length, include_normalized):
    c = invariant_coefficients(branches(count, length), include_normalized)
    assert "is not invariant: at the output of " in c.statement
    assert "invariant=True)` makes it so" in c.statement
    assert len(c.statement) < 300 and c.statement.endswith(".")
    assert ("cannot be seen through" in c.statement) == (count > 2)


@pytest.mark.parametrize("length", [1, 30, 300])
def test_the_statement_is_short_where_nothing_is_free(length):
    names = [f"{i}".ljust(length, "x") for i in range(9)]
    chain = [keras.Input((4,)), *(dense(name, "tanh") for name in names)]
    c = invariant_coefficients(keras.Sequential(chain))
    assert "No scale is free" in c.statement and len(c.statement) < 300


def test_what_is_penalized_comes_first():
    model = residual(projection=False, normalization=True, blocks=2)
    rows = invariant_coefficients(model).table
    bears = [row.coefficient > 0 for row in rows]
    assert bears == sorted(bears, reverse=True) and not all(bears)
    order = {k.name: i for i, k in enumerate(kernels_and_gammas(model))}
    for kind in (True, False):
        places = [order[r.name] for r in rows if (r.coefficient > 0) is kind]
        assert places == sorted(places) and len(places) > 1


def test_a_gamma_is_left_alone_where_it_is_not_needed():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            dense("a", None),
            layers.BatchNormalization(name="bn"),
            dense("b", "tanh"),
            layers.BatchNormalization(name="bn2"),
            dense("c", None),
            layers.UnitNormalization(),
        ]
    )
    c = invariant_coefficients(model)
    assert c.coefficients == {"bn": 1.0, "b": 1.0}
    assert of(c)["bn2"] == 0.0 and "not needed" in str(c)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("include_normalized", [False, True])
@pytest.mark.parametrize(("projection", "normalization"), [(1, 0), (0, 1), (1, 1)])
def test_with_regularize_the_penalty_does_not_change(
    projection, normalization, include_normalized, seed
):
    model = residual(projection, normalization)
    networks.randomize(model)
    factors = networks.random_factors(model, seed)
    c = invariant_coefficients(model, include_normalized)
    weissi = WEISSI(0.1, min_norm=1e-6)
    ways = (
        lambda: regularize(
            model, scaled(0.1, c), include_normalized=include_normalized
        ),
        lambda: regularize(
            model, weissi, include_normalized=include_normalized, invariant=True
        ),
    )
    for put_on in ways:
        deregularize(model)
        report = put_on()
        changed = {row.name for row in report if row.changed}
        assert changed == set(c.coefficients)
        before = penalty_of(model)
        shift_scales(model, factors)
        assert penalty_of(model) == pytest.approx(before, abs=1e-5)
        factors = {name: 1 / factor for name, factor in factors.items()}


def test_invariant_is_what_makes_the_difference():
    model = residual(projection=True)
    networks.randomize(model)
    factors = networks.random_factors(model, 0)
    # Plain WEISSI is not invariant, as the statement says.
    regularize(model, WEISSI(0.1, min_norm=1e-6))
    before = penalty_of(model)
    shift_scales(model, factors)
    assert abs(penalty_of(model) - before) > 0.01
    regularize(model, WEISSI(0.1, min_norm=1e-6), invariant=True)
    before = penalty_of(model)
    shift_scales(model, {name: 1 / factor for name, factor in factors.items()})
    assert penalty_of(model) == pytest.approx(before, abs=1e-5)


@settings(max_examples=25)
@given(networks.specs, st.integers(0, 2**31))
def test_the_statement_is_true_of_any_model(spec, seed):
    with float64():
        model = networks.build(spec, seed, "float64")
        c = invariant_coefficients(model)
        report = regularize(model, WEISSI(1.0, min_norm=1e-12))
        taken = {row.name for row in report if row.changed}
        norms = {e.kernel.name: e.kernel.variable for e in scale_groups(model).edges}

        def log_norms(coefficients):
            return sum(
                coefficient * np.log(np.linalg.norm(keras.ops.convert_to_numpy(v)))
                for name, v in norms.items()
                if (coefficient := coefficients(name))
            )

        def plain(name):
            return float(name in taken)

        before = log_norms(plain), log_norms(of(c).__getitem__)
        shift_scales(model, networks.random_factors(model, seed))
        changes = log_norms(plain) - before[0], log_norms(of(c).__getitem__) - before[1]
        assert abs(changes[1]) < 1e-10
        assert (abs(changes[0]) < 1e-10) == c.plain_is_invariant
        assert min(c.coefficients.values(), default=1.0) > 0


def test_frozen_kernels_can_take_up_no_scale_and_others_are_left_out():
    model = keras.Sequential(
        [keras.Input((4,)), dense("a"), dense("b"), dense("c"), dense("d"), dense("e")]
    )
    networks.randomize(model)
    model.get_layer("b").trainable = False
    c = invariant_coefficients(model)
    assert of(c)["a"] == of(c)["c"] == 1.0 and c.plain_is_invariant
    regularize(model, {"d": keras.regularizers.L2(0.1)})
    c = invariant_coefficients(model)
    assert of(c)["d"] == 0.0 and "left out: has L2(l2=0.1) already" in str(c)
    assert of(c)["c"] == of(c)["e"] == 0.0 and not c.plain_is_invariant


def test_kernels_outside_of_the_symmetry_keep_one():
    model = keras.Sequential(
        [keras.Input((3, 4)), layers.LSTM(2, name="lstm"), dense("a", None)]
    )
    c = invariant_coefficients(model)
    assert of(c)["lstm/lstm_cell/kernel"] == of(c)["a"] == 1.0
    assert "no scale can be shifted through its layer" in str(c)
    assert c.plain_is_invariant is None


class Block(layers.Layer):
    """A projection shortcut that nobody can see."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.one, self.two = dense("one", None), dense("two", None)

    def call(self, x):
        x = networks.opaque(x)
        return keras.ops.relu(self.one(x)) + self.two(x)


def test_what_cannot_be_seen_is_counted():
    chain = [keras.Input((4,)), dense("a"), dense("b"), dense("c")]
    model = keras.Sequential([*chain, Block(name="block"), dense("d")])
    c = invariant_coefficients(model)
    assert c.plain_is_invariant is None
    assert "is invariant as far as the kernels can be seen; 2 cannot be seen" in (
        c.statement
    )
    assert "('block/one', 'block/two')" in c.statement
    model.get_layer("block").trainable = False  # what does not train changes nothing
    assert invariant_coefficients(model).plain_is_invariant is True


class Unnamed(layers.Layer):
    """A matrix that `regularize` does not take unless it is named."""

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 4))

    def call(self, x):
        return networks.opaque(x) @ self.w


def test_a_matrix_that_regularize_does_not_take_is_counted_as_hidden():
    chain = [dense("a"), dense("b"), Unnamed(name="mine"), dense("c")]
    c = invariant_coefficients(keras.Sequential([keras.Input((4,)), *chain]))
    assert c.plain_is_invariant is None
    assert "1 cannot be seen through ('mine')" in c.statement


def test_what_is_seen_not_to_be_invariant_is_said_whatever_is_hidden():
    model = residual(projection=True)
    hidden = keras.Model(model.inputs, Block(name="block")(model.outputs[0]))
    c = invariant_coefficients(hidden)
    assert c.plain_is_invariant is False and "is not invariant" in c.statement
    assert "so as far as the kernels can be seen" in c.statement
    assert len(c.statement) < 300


def pinned(how):
    """A chain with a kernel that is seen, but that no scale can be shifted through."""
    constraint = "max_norm" if how == "constraint" else None
    first = layers.Dense(4, "relu", kernel_constraint=constraint, name="pinned")
    if how == "wrapped":
        first.kernel_constraint = keras.constraints.MaxNorm(1.0)
        first = layers.TimeDistributed(first)
    if how == "nested":
        first.kernel_constraint = keras.constraints.MaxNorm(1.0)
        first = keras.Sequential([keras.Input((3, 4)), first])
    x = inputs = keras.Input((3, 4))
    x = dense("b")(first(x))
    if how == "Lambda":
        other = layers.Lambda(lambda y: y @ keras.ops.transpose(first.kernel))
        x = layers.Concatenate()([x, other(x)])
    return keras.Model(inputs, dense("d", None)(dense("c")(x)))


@pytest.mark.parametrize("how", ["constraint", "wrapped", "nested", "Lambda"])
def test_a_kernel_that_is_seen_to_be_pinned_is_seen(how):
    model = pinned(how)
    c = invariant_coefficients(model)
    assert c.plain_is_invariant is True
    assert c.statement.endswith("is invariant.")
    assert "4 of 4 kernels" in c.statement


def test_what_a_replaced_method_does_cannot_be_seen():
    chain = [keras.Input((4,)), dense("a"), dense("b"), dense("c"), dense("d")]
    model = keras.Sequential(chain)
    before = model.layers[0].call
    model.layers[0].call = lambda x: before(keras.ops.tanh(x))
    c = invariant_coefficients(model)
    assert c.plain_is_invariant is None
    assert "1 cannot be seen through ('a')" in c.statement


@pytest.mark.parametrize("is_penalized", [False, True])
def test_nothing_can_change_the_penalty_where_none_is_penalized(is_penalized):
    model = keras.Sequential([keras.Input((4,)), dense("a"), Unnamed(name="hidden")])
    if not is_penalized:
        regularize(model, {"a": keras.regularizers.L2(0.1)})
    c = invariant_coefficients(model)
    assert c.plain_is_invariant is (None if is_penalized else True)
    assert ("there is nothing to make invariant" in c.statement) != is_penalized


def test_a_bias_at_the_end_is_scaled_by_nothing():
    last = layers.Dense(4, name="c", bias_regularizer=WEISSI(0.2, min_norm=1e-6))
    model = keras.Sequential([keras.Input((4,)), dense("a"), dense("b"), last])
    networks.randomize(model)
    c = invariant_coefficients(model)
    assert c.plain_is_invariant is True and of(c)["c/bias"] == 1.0
    put(model, 0.1)
    before = penalty_of(model)
    shift_scales(model, networks.random_factors(model, 0))
    assert penalty_of(model) == pytest.approx(before, abs=1e-5)


@pytest.mark.parametrize(
    "built, pins",
    [
        ([dense("a", "silu"), dense("b", "tanh")], "a: silu is not homogeneous (and"),
        ([dense("a")], "an input of the model (and 1 more)"),
        ([dense("a"), Block(name="hidden")], "hidden: Block cannot be seen"),
    ],
)
def test_where_nothing_is_free_there_is_nothing_to_be_invariant_to(built, pins):
    c = invariant_coefficients(keras.Sequential([keras.Input((4,)), *built]))
    assert "No scale is free, so there is nothing to be invariant to: " in c.statement
    assert pins in c.statement and "is invariant" not in c.statement


def test_an_embedding_beside_a_kernel_bears_none():
    class Both(layers.Layer):
        def build(self, shape):
            self.table = self.add_weight(shape=(5, 4), name="embeddings")
            self.kernel = self.add_weight(shape=(4, 4), name="kernel")

        def call(self, x):
            return keras.ops.matmul(x, self.kernel) + self.table[0]

    model = keras.Sequential([keras.Input((4,)), dense("a"), Both(name="both")])
    c = invariant_coefficients(model)
    assert set(c.coefficients) == {"a", "both/kernel"}


def test_takes_what_regularize_takes():
    def make():
        return keras.Sequential(
            [
                keras.Input((3,), dtype="int32"),
                layers.Embedding(5, 4, name="embedding"),
                layers.GlobalAveragePooling1D(),
                dense("a"),
                dense("lora"),
                layers.Dense(4, name="normalized"),
                layers.BatchNormalization(center=False, scale=False),
                layers.Dense(4, trainable=False, name="frozen"),
                layers.BatchNormalization(center=False, scale=False),
                dense("b", None),
            ]
        )

    def penalized(model):
        return {k.name for k in kernels(model) if k.regularizer is not None}

    model = make()
    model.get_layer("lora").enable_lora(2)
    with pytest.warns(UserWarning, match="'lora' .LoRA is enabled"):
        regularize(model, WEISSI(0.1))
    by_default = penalized(model)
    assert by_default == {"a", "b"}
    c = invariant_coefficients(model)
    assert of(c)["lora"] == of(c)["frozen"] == of(c)["normalized"] == 0.0
    assert "left out: LoRA" in str(c)
    # Like a gamma, the embedding can take the scale of "a".
    assert of(c)["embedding"] == of(c)["a"] == 1.0
    assert c.plain_is_invariant is False and "'embedding'" in c.statement
    assert "3 of 6 kernels are penalized" in str(c)
    deregularize(model)
    regularize(model, scaled(0.1, c))
    assert penalized(model) == by_default | {"embedding"}
    networks.randomize(model)
    before = penalty_of(model)
    shift_scales(model, {"embedding": 8.0, "a": 0.125})
    assert penalty_of(model) == pytest.approx(before, abs=1e-5)


def test_an_embedding_bears_none_where_no_scale_moves():
    embedding = layers.Embedding(5, 4, name="embedding")
    gelu = layers.Activation("gelu")
    stack = [keras.Input((3,), dtype="int32"), embedding, gelu, dense("a", None)]
    c = invariant_coefficients(keras.Sequential(stack))
    assert of(c) == {"embedding": 0.0, "a": 1.0} and c.plain_is_invariant is True
    assert "left out: an embedding" in str(c)


def test_where_no_kernel_is_penalized():
    model = keras.Sequential([keras.Input((4,)), dense("a"), dense("b"), dense("c")])
    regularize(model, {"b": keras.regularizers.L2(0.1)})
    c = invariant_coefficients(model)
    assert c.coefficients == {}
    assert "0 of 3 kernels are penalized: there is nothing" in c.statement
    with pytest.raises(
        ValueError, match="at least one layer. Received: regularizer={}$"
    ):
        regularize(model, scaled(1.0, c))


def test_names_are_those_of_the_kernels():
    def inner(name):
        return keras.Sequential([keras.Input((4,)), dense("d")], name=name)

    x = inputs = keras.Input((4,))
    x = inner("one")(x)
    x = layers.Add()([inner("two")(x), dense("p", None)(x)])
    model = keras.Model(inputs, dense("out", None)(x))
    c = invariant_coefficients(model)
    assert set(c.coefficients) == {k.name for k in kernels(model)}
    assert type(c.coefficients) is dict
    regularize(model, scaled(0.1, c))
    for kernel in kernels(model):
        expected = 0.1 * c.coefficients[kernel.name]
        assert kernel.regularizer.log_norm == pytest.approx(expected)
    with pytest.raises(ValueError, match="argument `include_normalized`"):
        invariant_coefficients(model, include_normalized="yes")


def test_a_layer_inside_is_not_taken_for_one_outside_of_the_same_name():
    inner_input = keras.Input((4,))
    y = layers.Add()([dense("a")(inner_input), dense("p")(inner_input)])
    inner = keras.Model(inner_input, y, name="inner")
    model = keras.Sequential([keras.Input((4,)), inner, dense("a", None)])
    expected = {"inner/a": 2 / 3, "inner/p": 2 / 3, "a": 4 / 3}
    c = invariant_coefficients(model)
    assert c.coefficients == pytest.approx(expected)
    for how in (lambda: regularize(model, scaled(1.0, c)), lambda: put(model, 1.0)):
        how()
        found = {k.name: k.regularizer.log_norm for k in kernels(model)}
        assert found == pytest.approx(expected)
        deregularize(model)


def test_a_gamma_that_feeds_something_pinned_is_not_needed():
    x = inputs = keras.Input((4,))
    x = dense("stem")(x)
    x = layers.Add()([dense("p", None)(x), dense("q", None)(x)])
    x = layers.BatchNormalization(name="bn")(dense("head", None)(x))
    c = invariant_coefficients(keras.Model(inputs, layers.Softmax()(x)))
    assert not c.plain_is_invariant
    assert of(c)["bn"] == 0.0 and "gamma" not in c.statement


def test_what_feeds_something_hidden_bears_a_penalty():
    class Hidden(layers.Layer):
        def call(self, x):
            return x

    model = keras.Sequential([keras.Input((4,)), dense("a"), dense("b"), Hidden()])
    c = invariant_coefficients(model)
    assert c.plain_is_invariant and of(c)["a"] == of(c)["b"] == 1.0


def test_what_is_left_out_next_to_a_group_is_named():
    model = keras.Sequential(
        [keras.Input((4,)), dense("a"), dense("b", None)]
        + [layers.BatchNormalization(name="bn"), dense("c", None)]
    )
    c = invariant_coefficients(model)
    assert "(not counting 'b', without a penalty)" in c.statement
    assert c.statement.startswith("1 of 3 kernels is penalized. ")
    assert "1 kernel enters ('a'), but no kernel leaves" in c.statement


def nested_normalization():
    inner = keras.Sequential(
        [keras.Input((4,)), dense("a", None), layers.BatchNormalization(name="bn")],
        name="inner",
    )
    return keras.Sequential([keras.Input((4,)), inner, dense("b", None)])


@pytest.mark.parametrize("how", ["name", "path", "layer", "dict", "frozenset"])
def test_regularize_takes_a_gamma_that_is_named(how):
    model = nested_normalization()
    bn = model.layers[0].layers[-1]
    named = {"name": ["bn"], "path": "inner/bn", "layer": [bn]}
    named["frozenset"] = frozenset(["bn"])
    if how == "dict":
        regularize(model, {"bn": WEISSI(0.1)})
    else:
        regularize(model, WEISSI(0.1), layers=named[how])
    assert isinstance(bn.gamma.regularizer, WEISSI)
    assert isinstance(bn.gamma_regularizer, WEISSI)
    # Once more, as one of those that have it already.
    report = regularize(model, WEISSI(0.2), layers=["bn"])
    assert [row.name for row in report].count("inner/bn") == 1 and len(report) == 3


def test_regularize_takes_no_gamma_unless_it_is_named():
    model = nested_normalization()
    for named in (None, "inner", lambda layer: True, layers.Layer):
        report = regularize(model, WEISSI(0.1), layers=named, include_normalized=True)
        assert "inner/bn" not in [row.name for row in report]
    assert model.layers[0].layers[-1].gamma.regularizer is None


@pytest.mark.parametrize("how", ["by hand", "invariant"])
def test_it_is_invariant_on_a_model_that_had_a_penalty(how):
    x = inputs = keras.Input((4,))
    x = layers.Dense(6, "relu", name="first")(x)
    x = layers.BatchNormalization(name="bn")(layers.Dense(6, name="normalized")(x))
    outputs = layers.Dense(2, name="last")(layers.ReLU()(x))
    model = keras.Model(inputs, outputs)
    regularize(model, WEISSI(0.05))
    c = invariant_coefficients(model)
    assert of(c)["first"] == 0 and "first" not in c.coefficients
    if how == "invariant":
        report = regularize(model, WEISSI(0.02), invariant=True)
        (first,) = [row for row in report if row.name == "first"]
        assert first.changed and first.regularizer is None
        assert first.note == (
            "kernels without a penalty can absorb its scale; WEISSI removed"
        )
    else:
        deregularize(model)
        regularize(model, scaled(0.02, c))
    before = penalty_of(model)
    shift_scales(model, {"first": 10.0, "normalized": 0.1})
    assert penalty_of(model) == pytest.approx(before, rel=1e-6)


def test_invariant_says_what_it_does_and_keeps_the_rest_of_the_regularizer():
    model = residual(projection=True, normalization=True, blocks=1)
    c = invariant_coefficients(model)
    report = regularize(model, WEISSI(0.1, 0.02, 0.3), invariant=True)
    by_name = {row.name: row for row in report}
    for name, coefficient in c.coefficients.items():
        config = by_name[name].regularizer.get_config()
        assert config["log_norm"] == pytest.approx(0.1 * coefficient)
        # The direction of a gamma is not penalized: only its norm takes up scale.
        direction = 0.0 if name == "bn0" else 0.02
        assert (config["direction_l1"], config["min_norm"]) == (direction, 0.3)
        assert f"coefficient {coefficient:.4g}" in by_name[name].note
    assert by_name["bn0"].changed
    assert by_name["b0"].scale == "normalized by bn0" and not by_name["b0"].changed
    # Once more, with another strength, as a callback would.
    regularize(model, WEISSI(0.2), invariant=True)
    bn = model.get_layer("bn0")
    expected = 0.2 * c.coefficients["bn0"]
    assert bn.gamma_regularizer.log_norm == pytest.approx(expected)
    twin = keras.models.clone_model(model)
    assert len(twin.losses) == len(model.losses) == len(c.coefficients)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"regularizer": "l2"}, "argument `regularizer`. Expected a WEISSI"),
        ({"regularizer": {"a0": WEISSI()}}, "argument `regularizer`. Expected a WEIS"),
        ({"layers": "a0"}, "argument `layers`. Expected None"),
        ({"invariant": 1}, "argument `invariant`. Expected a bool"),
    ],
)
def test_invariant_names_bad_arguments(arguments, message):
    model = residual(projection=True)
    arguments = {"regularizer": WEISSI(), "invariant": True, **arguments}
    with pytest.raises(ValueError, match=message):
        regularize(model, **arguments)
    assert not model.losses


@pytest.mark.parametrize(
    "twin_of", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))]
)
def test_coefficients_can_be_copied(twin_of):
    c = invariant_coefficients(residual(projection=True))
    twin = twin_of(c)
    assert type(twin) is type(c) and twin.coefficients == c.coefficients
    assert str(twin) == str(c) and twin.plain_is_invariant is False


def with_penalized_bias(kind):
    weissi = {"bias_regularizer": WEISSI(0.2, min_norm=1e-6)}
    first = layers.Dense(4, "relu", name="a", bias_initializer="ones", **weissi)
    if kind == "bias":
        return keras.Sequential(
            [keras.Input((4,)), first, dense("b"), dense("c", None)]
        )
    beta = {"beta_regularizer": WEISSI(0.2, min_norm=1e-6), "beta_initializer": "ones"}
    norm = layers.LayerNormalization(name="ln", **beta)
    return keras.Sequential([keras.Input((4,)), norm, dense("b"), dense("c", None)])


@pytest.mark.parametrize(("kind", "name"), [("bias", "a/bias"), ("beta", "ln/beta")])
def test_a_penalty_on_what_is_added_is_not_invariant(kind, name):
    model = with_penalized_bias(kind)
    networks.randomize(model)
    c = invariant_coefficients(model)
    assert not c.plain_is_invariant and of(c)[name] == 0.0
    assert f"{name!r} is scaled by all the factors before it" in c.statement
    report = put(model, 0.1)
    (row,) = [row for row in report if row.name == name]
    assert row.changed and row.regularizer is None
    before, factors = penalty_of(model), networks.random_factors(model, 0)
    shift_scales(model, factors)
    assert penalty_of(model) == pytest.approx(before, abs=1e-5)


@pytest.mark.parametrize("how", ["lora", "int8"])
def test_invariant_leaves_a_kernel_that_it_cannot_take_as_it_was(how):
    stack = [dense("a"), dense("b"), dense("c", None)]
    model = keras.Sequential([keras.Input((4,)), *stack])
    regularize(model, WEISSI(0.1))
    layer = model.get_layer("b")
    layer.enable_lora(2) if how == "lora" else layer.quantize("int8")
    before = layer.kernel_regularizer
    with pytest.warns(UserWarning, match="skipped 1 of 3 kernels: 'b'"):
        report = put(model, 0.2)
    row = report[1]
    assert row.name == "b" and not row.changed and "removed" not in row.note
    assert layer.kernel_regularizer is before


def test_invariant_names_the_kernels_that_get_nothing():
    model = keras.Sequential([keras.Input((4,)), dense("a"), dense("b"), dense("c")])
    regularize(model, {"a": keras.regularizers.L2(0.1)})
    with pytest.warns(UserWarning) as caught:
        report = put(model, 0.1)
    assert not any(row.changed for row in report)
    texts = [str(w.message) for w in caught if w.category is UserWarning]
    assert any("skipped 1 of 3 kernels: 'a'" in text for text in texts)
    assert any("on 0 of 3 kernels: 'b'" in text for text in texts)
    # With `replace`, the L2 gives way, and all get a coefficient.
    report = regularize(model, WEISSI(0.1), invariant=True, replace=True)
    assert [row.regularizer.log_norm for row in report] == [0.1] * 3


@keras.saving.register_keras_serializable("tests")
class Scaled(WEISSI):
    def __init__(self, strength=0.1):
        super().__init__(strength)

    def get_config(self):
        return {"strength": self.log_norm}


@keras.saving.register_keras_serializable("tests")
class Tagged(WEISSI):
    def __init__(self, tag="", **kwargs):
        super().__init__(**kwargs)
        self.tag = tag

    def get_config(self):
        return {**super().get_config(), "tag": self.tag}


def test_invariant_keeps_a_subclass_or_refuses_it():
    model = residual(projection=True, blocks=1)
    report = regularize(model, Tagged("mine", log_norm=0.1), invariant=True)
    assert {row.regularizer.tag for row in report if row.changed} == {"mine"}
    deregularize(model)
    with pytest.raises(ValueError, match="argument `regularizer`. Expected a WEISSI"):
        regularize(model, Scaled(0.1), invariant=True)
    assert not model.losses


def test_invariant_with_attention():
    x = inputs = keras.Input((5, 8))
    x = layers.MultiHeadAttention(2, 4, name="mha")(x, x)
    model = keras.Model(inputs, layers.Dense(2, name="last")(x))
    report = put(model, 0.1)
    assert [row.regularizer.log_norm for row in report if row.changed] == [0.1] * 5
    twin = keras.models.clone_model(model)
    assert len(twin.losses) == len(model.losses) == 5
