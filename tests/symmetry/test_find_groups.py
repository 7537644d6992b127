import keras
import networks
import numpy as np
import pytest
from helpers import outputs_of, to_numpy
from keras import layers

from keras_weissi import balance_scales, scale_groups, shift_scales

X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")


def dense(name, activation="relu", **kwargs):
    return layers.Dense(4, activation, name=name, **kwargs)


def free(model):
    """The free groups: the layers in each, and the kernels in and out, sorted."""
    groups = scale_groups(model)
    return {
        tuple(sorted(group.layers)): (
            sorted(e.kernel.name for e in groups.edges if e.target == group.index),
            sorted(e.kernel.name for e in groups.edges if e.source == group.index),
        )
        for group in groups.free
    }


def reasons(model):
    return {pin for group in scale_groups(model).pinned for pin in group.pins}


def test_a_chain_has_a_free_group_between_any_two_kernels():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1), name="x"),
            layers.Conv2D(4, 3, activation="relu", name="a"),
            layers.MaxPooling2D(name="pool"),
            layers.Flatten(name="flat"),
            dense("b"),
            dense("c", "softmax"),
        ]
    )
    assert free(model) == {
        ("a", "flat", "pool"): (["a"], ["b"]),
        ("b",): (["b"], ["c"]),
    }
    assert reasons(model) == {
        ("x", "an input of the model"),
        ("c", "softmax is not homogeneous"),
        ("c", "an output of the model"),
    }


def test_shortcuts_tie_what_they_join():
    x = inputs = keras.Input((4,))
    x = dense("stem")(x)
    x = layers.Add(name="add")([x, dense("b", None)(dense("a")(x))])
    x = layers.Add(name="add2")([dense("p", None)(x), dense("d", None)(dense("c")(x))])
    model = keras.Model(inputs, dense("logits", None)(x))
    assert free(model) == {
        ("add", "b", "stem"): (["b", "stem"], ["a", "c", "p"]),
        ("a",): (["a"], ["b"]),
        ("add2", "d", "p"): (["d", "p"], ["logits"]),
        ("c",): (["c"], ["d"]),
    }


def test_a_shared_layer_ties_its_calls():
    shared = dense("shared")
    x = inputs = keras.Input((4,))
    y, z = shared(dense("a")(x)), shared(dense("b")(x))
    model = keras.Model(
        inputs, dense("out", None)(layers.Concatenate(name="cat")([y, z]))
    )
    assert free(model) == {
        ("a", "b"): (["a", "b"], ["shared"]),
        ("cat", "shared"): (["shared"], ["out"]),
    }


def test_a_shared_activation_without_weights_ties_nothing():
    relu = layers.ReLU(name="relu")
    x = inputs = keras.Input((4,))
    x = relu(dense("a", None)(x))
    x = relu(dense("b", None)(x))
    model = keras.Model(inputs, dense("c", None)(x))
    assert free(model) == {
        ("a", "relu"): (["a"], ["b"]),
        ("b", "relu"): (["b"], ["c"]),
    }


def test_nested_models_are_seen_through():
    inner_input = keras.Input((4,))
    inner = keras.Model(
        inner_input, dense("i2", None)(dense("i1")(inner_input)), name="inner"
    )
    sequential = keras.Sequential([keras.Input((4,)), dense("s1")], name="seq")
    model = keras.Sequential([keras.Input((4,)), dense("a"), inner, sequential])
    model.add(dense("b", None))
    assert free(model) == {
        ("a",): (["a"], ["inner/i1"]),
        ("inner/i1",): (["inner/i1"], ["inner/i2"]),
        ("inner/i2",): (["inner/i2"], ["seq/s1"]),
        ("seq/s1",): (["seq/s1"], ["b"]),
    }


def test_a_nested_model_called_twice_ties_its_calls():
    inner = keras.Sequential([keras.Input((4,)), dense("i")], name="inner")
    x = inputs = keras.Input((4,))
    x = inner(dense("a")(x))
    x = inner(dense("b")(x))
    model = keras.Model(inputs, dense("c", None)(x))
    assert free(model) == {
        ("inner/i",): (["inner/i"], ["b", "c"]),
        ("a", "b"): (["a", "b"], ["inner/i"]),
    }


def test_several_inputs_and_outputs():
    one, two = keras.Input((4,), name="one"), keras.Input((4,), name="two")
    x = layers.Concatenate(name="cat")([dense("a")(one), dense("b")(two)])
    y = dense("y")(x)
    model = keras.Model([one, two], [dense("head", None)(y), y])
    assert free(model) == {("a", "b", "cat"): (["a", "b"], ["y"])}


def test_a_nested_model_with_named_inputs():
    def inner(inputs):
        y = layers.Concatenate()([dense("ia")(inputs["a"]), dense("ib")(inputs["b"])])
        return keras.Model(inputs, y, name="inner")

    x = keras.Input((4,))
    called = inner({name: keras.Input((4,), name=name) for name in ("b", "a")})
    given = {"a": dense("a")(x), "b": dense("b")(x)}
    model = keras.Model(x, dense("c", None)(called(given)))
    groups = {layers[0]: edges for layers, edges in free(model).items()}
    assert groups["a"] == (["a"], ["inner/ia"])
    assert groups["b"] == (["b"], ["inner/ib"])


def test_arguments_that_can_not_be_told_apart_are_pinned():
    names = ("a", "b")
    inputs = [keras.Input((4,), name=name) for name in names]
    inner = keras.Model(
        inputs,
        layers.Add()([dense(f"i{x.name}")(x) for x in inputs]),
        name="inner",
    )
    x = keras.Input((4,))
    given = {name: dense(f"o{name}")(x) for name in names}
    model = keras.Model(x, dense("c", None)(inner(given)))
    assert free(model) == {}
    assert ("inner", "its arguments cannot be matched to its inputs") in (
        reasons(model)
    )


def test_normalization_pins_what_it_takes_and_frees_what_it_returns():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            dense("a"),
            layers.BatchNormalization(name="bn"),
            layers.ReLU(name="relu"),
            dense("b", None),
        ]
    )
    assert free(model) == {("bn", "relu"): (["bn"], ["b"])}
    assert ("bn", "its input is normalized, up to epsilon") in reasons(model)
    assert [edge.is_gamma for edge in scale_groups(model).edges] == [False, True, False]


def test_a_separable_convolution_has_a_group_inside():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.SeparableConv2D(4, 3, name="sep"),
            layers.Conv2D(2, 1, name="out"),
        ]
    )
    assert free(model) == {
        ("sep",): (["sep/pointwise_kernel"], ["out"]),
        ("inside sep",): (["sep/depthwise_kernel"], ["sep/pointwise_kernel"]),
    }


def test_time_distributed_is_seen_through():
    model = keras.Sequential(
        [
            keras.Input((3, 4)),
            layers.TimeDistributed(dense("a"), name="every_step"),
            layers.TimeDistributed(keras.Sequential([keras.Input((4,)), dense("b")])),
            layers.Conv1D(2, 1, name="c"),
        ]
    )
    assert [
        [name.split("/")[-1] for name in into + out]
        for into, out in free(model).values()
    ] == [["a", "b"], ["b", "c"]]


class Custom(layers.Layer):
    def __init__(self, layer, **kwargs):
        super().__init__(**kwargs)
        self.layer = layer

    def call(self, x):
        return x + self.layer(x)


def test_a_custom_layer_is_seen_through():
    model = keras.Sequential(
        [keras.Input((4,)), dense("a"), Custom(dense("held"), name="mine")]
    )
    model.add(dense("b", None))
    assert free(model) == {
        ("a", "mine", "mine/held"): (["a", "mine/held"], ["b", "mine/held"])
    }
    networks.check_symmetry(model, X)


def test_what_a_custom_layer_does_to_a_layer_counts_for_its_other_calls():
    held = dense("held")
    x = inputs = keras.Input((4,))
    x = held(dense("a")(x))
    x = dense("c", None)(dense("b")(x))
    model = keras.Model(inputs, [x, Custom(held, name="mine")(inputs)])
    # Added to the input of the model, its output is fixed; so is what it takes from a.
    assert list(free(model)) == [("b",)]
    networks.check_symmetry(model, X)


def test_an_opaque_layer_pins_and_so_do_the_layers_it_holds():
    held = dense("held")
    mine = networks.Opaque(held, name="mine")
    model = keras.Sequential([keras.Input((4,)), dense("a"), mine, dense("b", None)])
    assert free(model) == {}
    assert any(
        name == "mine" and why.startswith("Opaque cannot be seen through (")
        for name, why in reasons(model)
    )
    statuses = scale_groups(model).statuses
    assert statuses["mine/held"].kind == "hidden" and "mine" in statuses["mine/held"].by
    x = inputs = keras.Input((4,))
    x = held(dense("a")(x))
    x = dense("c", None)(dense("b")(x))
    y = networks.Opaque(held, name="mine")(inputs)
    model = keras.Model(inputs, [x, y])
    statuses = scale_groups(model).statuses
    assert "Opaque cannot be seen through" in statuses["held"].by
    assert list(free(model)) == [("b",)]
    report = networks.check_symmetry(model, X)
    assert {row.name: row.factor == 1.0 for row in report} == {
        "a": True,
        "held": True,
        "b": False,
        "c": False,
    }


def test_a_weight_that_two_layers_share_is_scaled_alike():
    a, b = dense("a"), dense("b")
    x = inputs = keras.Input((4,))
    model = keras.Model(inputs, dense("c", None)(b(a(x))))
    assert scale_groups(model).dimension == 2
    b._tracker.unlock()  # Keras has no public way to tie weights
    b._trainable_variables[0] = b._kernel = a.kernel
    groups = scale_groups(model)
    assert groups.dimension == 1
    assert [relation.layer for relation in groups.relations] == ["b"]
    # What a returns is multiplied by s, and what b returns by its square.
    assert [group.layers for group in groups.free] == [("a",), ("b",)]
    np.testing.assert_allclose(groups.directions[[2]] / groups.directions[[1]], 2)
    networks.check_symmetry(model, X)
    weights = [to_numpy(v) for v in model.weights]
    for factors in ({"a": 2.0, "c": 0.5}, {"c": 0.25}):
        with pytest.raises(ValueError, match="argument `factors`"):
            shift_scales(model, factors)
    for v, value in zip(model.weights, weights, strict=True):
        np.testing.assert_array_equal(to_numpy(v), value)
    shift_scales(model, {"a": 2.0, "c": 0.25})
    np.testing.assert_array_equal(to_numpy(a.kernel), 2 * weights[0])
    np.testing.assert_array_equal(to_numpy(b.bias), 4 * weights[2])


class Operation(keras.Operation):
    def __init__(self, layer):
        super().__init__()
        self.held = layer

    def call(self, x):
        return x @ self.held.kernel

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


class InABox(layers.Layer):
    def __init__(self, layer, before=lambda x: x):
        super().__init__()
        self.box = lambda: layer
        self.before = before

    def call(self, x):
        return keras.ops.matmul(self.before(x), self.box().kernel)


@pytest.mark.parametrize(
    "use",
    [
        lambda x, a: keras.ops.matmul(x, a.kernel),
        lambda x, a: keras.ops.einsum("bj,ij->bi", x, a.kernel),
        lambda x, a: x * a.bias,
        lambda x, a: x + a.bias,
    ],
    ids=["matmul", "einsum", "times", "plus"],
)
def test_a_weight_that_a_function_uses_is_scaled_for_both(use):
    a = dense("a")
    x = inputs = keras.Input((4,))
    x = use(dense("c")(dense("b")(a(x))), a)
    model = keras.Model(inputs, dense("d", None)(x))
    assert "a" in [edge.kernel.name for edge in scale_groups(model).edges]
    report = networks.check_symmetry(model, X)
    assert {row.name: row.factor == 1.0 for row in report}["a"] is False


@pytest.mark.parametrize(
    "use",
    [
        lambda x, a: layers.Lambda(
            lambda y: networks.opaque(y) @ a.kernel, output_shape=(4,)
        )(x),
        lambda x, a: Operation(a)(x),
        lambda x, a: InABox(a, networks.opaque)(x),
    ],
    ids=["lambda", "operation", "box"],
)
def test_a_weight_that_something_else_uses_is_not_scaled(use):
    a = dense("a")
    x = inputs = keras.Input((4,))
    x = use(dense("c")(dense("b")(a(x))), a)
    model = keras.Model(inputs, dense("d", None)(x))
    # Neither what a returns, which b takes; nor what is computed with its weights.
    assert ("b",) in free(model) and ("a",) not in free(model)
    assert any(name == "a" and "shares a weight" in why for name, why in reasons(model))
    values, before = [to_numpy(v) for v in a.weights], outputs_of(model, X)
    balance_scales(model)
    for v, value in zip(a.weights, values, strict=True):
        np.testing.assert_array_equal(to_numpy(v), value)
    np.testing.assert_allclose(outputs_of(model, X), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "use",
    [
        lambda x, a: layers.Lambda(lambda y: y @ a.kernel, output_shape=(4,))(x),
        lambda x, a: InABox(a)(x),
    ],
    ids=["lambda", "box"],
)
def test_a_weight_that_is_seen_to_be_used_again_is_scaled_alike(use):
    a = dense("a")
    x = inputs = keras.Input((4,))
    x = use(dense("c")(dense("b")(a(x))), a)
    model = keras.Model(inputs, dense("d", None)(x))
    groups = scale_groups(model)
    assert len(groups.free) == 4 and groups.dimension == 3
    assert len(groups.relations) == 1
    networks.check_symmetry(model, X)
    with pytest.raises(ValueError, match="argument `factors`"):
        shift_scales(model, {"a": 2.0, "b": 0.5})  # as what uses it again doubles
    shift_scales(model, {"a": 2.0, "b": 0.5, "d": 0.5})


def test_what_goes_into_the_loss_by_itself_is_pinned():
    x = inputs = keras.Input((4,))
    x = dense("a", activity_regularizer="l2")(x)
    x = layers.ReLU(activity_regularizer="l2", name="relu")(dense("b")(x))
    x = dense("d")(dense("c")(x))
    inner = keras.Sequential([keras.Input((4,)), dense("i")], name="inner")
    inner.activity_regularizer = keras.regularizers.L2(0.1)
    model = keras.Model(inputs, dense("e", None)(inner(x)))
    assert list(free(model)) == [("c",), ("d",)]
    assert {
        n for n, why in reasons(model) if why == "it has an activity_regularizer"
    } == {
        "a",
        "relu",
        "inner",
    }


def test_integers_between_models_are_pinned():
    inner_input = keras.Input((4,), dtype="int32")
    y = layers.Dense(4, name="i")(keras.ops.cast(inner_input, "float32"))
    inner = keras.Model(inner_input, y, name="inner")
    model = keras.Sequential([keras.Input((4,)), dense("a"), inner, dense("b", None)])
    # What leaves the model inside is a number again.
    assert free(model) == {("inner/i",): (["inner/i"], ["b"])}
    assert ("inner", "it takes integers") in reasons(model)
    report = networks.check_symmetry(model, X)
    assert [row.factor == 1.0 for row in report] == [True, False, False]


def test_frozen_layers_are_pinned():
    layer = dense("b")
    model = keras.Sequential([keras.Input((4,)), dense("a"), layer, dense("c")])
    model.add(dense("d", None))
    layer.trainable = False
    assert list(free(model)) == [("c",)]
    assert ("b", "its kernel is frozen") in reasons(model)


def test_a_function_that_is_no_layer_is_pinned():
    inner_input = keras.Input((4,))
    function = keras.Function(inner_input, dense("f2")(dense("f1")(inner_input)))
    x = inputs = keras.Input((4,))
    model = keras.Model(inputs, dense("c", None)(function(dense("b")(dense("a")(x)))))
    assert list(free(model)) == [("a",)]
    assert any("keras.Function" in why for _, why in reasons(model))


def test_a_functional_model_with_a_call_of_its_own_is_not_guessed_at():
    class Odd(keras.Model):
        def call(self, x):
            return super().call(networks.opaque(x)) + 1.0

    class Shown(keras.Model):
        def call(self, x):
            return super().call(x) + 1.0

    class Plain(keras.Model):
        def train_step(self, *args):
            return super().train_step(*args)

    def made(kind):
        inputs = keras.Input((4,))
        return kind(inputs, dense("b", None)(dense("a")(inputs)))

    assert len(free(made(Plain))) == 1
    with pytest.raises(ValueError, match="of class .*Odd"):
        scale_groups(made(Odd))
    outer = keras.Sequential([keras.Input((4,)), dense("o"), made(Odd)])
    outer.add(dense("p", None))
    assert free(outer) == {}
    # Where it can be traced, nothing has to be guessed: its output alone is fixed.
    outer = keras.Sequential([keras.Input((4,)), dense("o"), made(Shown)])
    outer.add(dense("p", None))
    assert [into + out for into, out in free(outer).values()] == [
        ["o", f"{outer.layers[1].name}/a"],
        [f"{outer.layers[1].name}/{name}" for name in "ab"],
    ]
    networks.check_symmetry(outer, X)


def test_a_branch_that_is_not_used_is_pinned():
    inner_input = keras.Input((4,))
    y = dense("i")(inner_input)
    inner = keras.Model(
        inner_input, [dense("used")(y), dense("unused")(y)], name="inner"
    )
    x = inputs = keras.Input((4,))
    model = keras.Model(inputs, dense("out", None)(inner(dense("a")(x))[0]))
    assert set(free(model)) == {("a",), ("inner/i",), ("inner/used",)}
    assert ("the model", "no other kernel makes up for it") in reasons(model)


def test_a_subclassed_model_is_seen_through():
    class Chain(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.last = dense("first"), dense("last", None)

        def call(self, x):
            for _ in range(2):
                x = keras.ops.relu(x)
            return self.last(self.first(x))

    model = Chain()
    model(X)
    assert [group.layers for group in scale_groups(model).free] == [("first",)]
    networks.check_symmetry(model, X)


def test_models_that_can_not_be_seen_through_are_refused():
    opaque = networks.OpaqueModel()
    with pytest.raises(ValueError, match="Expected a .*model.*: its `call` cannot"):
        scale_groups(opaque)  # not called yet
    opaque(X)
    with pytest.raises(ValueError, match="Expected a model that can be seen through"):
        scale_groups(opaque)
    with pytest.raises(ValueError, match="Expected a built model: start it with a ke"):
        scale_groups(keras.Sequential([dense("a")]))
    with pytest.raises(ValueError, match="Expected a keras.Model. Received: .*3"):
        scale_groups(3)


def test_groups_are_numbered_along_the_model():
    inner = keras.Sequential([keras.Input((4,)), dense("i"), dense("j")], name="inner")
    model = keras.Sequential([keras.Input((4,)), dense("a"), inner, dense("b", None)])
    groups = scale_groups(model)
    assert [(e.kernel.name, e.source, e.target) for e in groups.edges] == [
        ("a", 0, 1),
        ("inner/i", 1, 2),
        ("inner/j", 2, 3),
        ("b", 3, 4),
    ]


def test_prints_as_tables():
    x = inputs = keras.Input((4,), name="x")
    for i in range(3):
        x = layers.Add(name=f"add{i}")([x, dense(f"b{i}", None)(dense(f"a{i}")(x))])
    model = keras.Model(inputs, dense("out", None)(dense("in", None)(x)))
    text = str(scale_groups(model))
    assert "x: an input of the model" in text
    assert "x, b0, … add2 (7 in all)" in text
    assert "6 groups, 4 of them free" in text
    assert repr(scale_groups(model)) == text


def test_a_layer_in_two_time_distributed_ones():
    each = layers.TimeDistributed(layers.TimeDistributed(dense("a")))
    model = keras.Sequential([keras.Input((2, 3, 4)), each, dense("b", None)])
    assert len(free(model)) == 1


def with_two_inputs():
    """A model to be called with a list; with a dict, it is not clear what is what."""
    inputs = [keras.Input((4,), name=name) for name in ("a", "b")]
    y = layers.Add()([dense(f"i{x.name}")(x) for x in inputs])
    return keras.Model(inputs, dense("im", None)(y), name="inner")


def test_a_call_that_is_clear_does_not_free_what_another_pins():
    inner, x = with_two_inputs(), keras.Input((4,))
    clear = inner([dense("p")(x), dense("q")(x)])
    unclear = inner({name: dense(f"o{name}")(x) for name in ("a", "b")})
    model = keras.Model(x, [dense("c", None)(clear), dense("d", None)(unclear)])
    assert not any({"p", "q", "oa", "ob"} & set(group) for group in free(model))


def test_what_an_unclear_call_takes_is_pinned_elsewhere_too():
    inner, x = with_two_inputs(), keras.Input((4,))
    a, b = dense("oa")(x), dense("ob")(x)
    y = inner({"a": a, "b": b})
    model = keras.Model(x, [dense("c", None)(y), dense("r", None)(a)])
    assert "oa" not in [name for group in free(model) for name in group]


def test_what_is_not_clear_is_pinned_on_both_sides_of_the_call():
    inner, x = with_two_inputs(), keras.Input((4,))
    given = {name: dense(f"o{name}")(x) for name in ("a", "b")}
    groups = scale_groups(keras.Model(x, dense("c", None)(inner(given))))
    why = "its arguments cannot be matched to its inputs"
    unclear = [
        i for i, group in enumerate(groups.groups) if ("inner", why) in group.pins
    ]
    sources = {e.kernel.name for e in groups.edges if e.source in unclear}
    targets = {e.kernel.name for e in groups.edges if e.target in unclear}
    assert sources == {"inner/ia", "inner/ib", "c"}
    assert targets == {"oa", "ob", "inner/im"}


def test_a_tuple_is_as_clear_as_a_list():
    inputs = [keras.Input((4,)), keras.Input((4,))]
    y = layers.Add()([dense(f"i{i}")(x) for i, x in enumerate(inputs)])
    inner = keras.Model(inputs, y, name="inner")
    x = keras.Input((4,))
    called = inner((dense("a")(x), dense("b")(x)))
    model = keras.Model(x, dense("c", None)(called))
    assert {("a",), ("b",)} <= set(free(model))


def test_a_single_input_is_clear_however_it_is_passed():
    x = keras.Input((4,), name="one")
    one = keras.Model(x, dense("j")(x), name="by_list")
    x = keras.Input((4,), name="k")
    named = keras.Model({"k": x}, dense("l")(x), name="by_name")
    x = keras.Input((4,))
    model = keras.Model(x, dense("c", None)(named({"k": one([dense("a")(x)])})))
    assert set(free(model)) == {("a",), ("by_list/j",), ("by_name/l",)}


def test_both_ends_of_a_shared_layer_are_tied():
    shared = dense("shared")
    x = inputs = keras.Input((4,))
    y, z = shared(dense("a")(x)), shared(dense("b")(x))
    model = keras.Model(inputs, [dense("p", None)(y), dense("q", None)(z)])
    assert free(model) == {
        ("a", "b"): (["a", "b"], ["shared"]),
        ("shared",): (["shared"], ["p", "q"]),
    }


def test_a_layer_one_call_of_which_is_not_known_is_pinned_in_all():
    bn = layers.BatchNormalization(name="bn")
    x, mask = keras.Input((5, 4)), keras.Input((5,), dtype="bool")
    y, z = bn(dense("a", None)(x)), bn(dense("b", None)(x), mask=mask)
    model = keras.Model([x, mask], [dense("c", None)(y), dense("d", None)(z)])
    assert free(model) == {}
