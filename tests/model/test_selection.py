import keras
import numpy as np
import pytest
from keras import layers

from keras_weissi import WEISSI, deregularize, regularize, scale_groups
from keras_weissi.model.kernels import kernels, kernels_and_gammas
from keras_weissi.model.selection import names_in, select_kernels, validate_selection
from keras_weissi.symmetry.factors import factors_by_edge


@pytest.fixture
def model():
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="a"), layers.Dense(4, name="b")],
        name="inner",
    )
    return keras.Sequential([keras.Input((4,)), inner, layers.Dense(2, name="c")])


def keys(names):
    return dict.fromkeys(names).keys()


def selected(model, layers):
    return [kernel.name for kernel in select_kernels(kernels(model), layers)]


def test_by_name_layer_class_and_function(model):
    assert selected(model, "c") == ["c"]
    assert selected(model, ["c", "a"]) == ["inner/a", "c"]
    assert selected(model, model.layers[-1]) == ["c"]
    assert selected(model, keras.Sequential) == ["inner/a", "inner/b"]
    assert selected(model, lambda layer: layer.units == 4) == ["inner/a", "inner/b"]


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset, keys])
def test_any_collection_of_names_or_classes(kind, model):
    assert selected(model, kind(["a", "c"])) == ["inner/a", "c"]
    assert selected(model, kind([layers.Conv2D, layers.Dense])) == [
        *("inner/a", "inner/b", "c")
    ]


def test_names_reach_into_nested_models(model):
    assert selected(model, "inner") == ["inner/a", "inner/b"]
    assert selected(model, "inner/b") == ["inner/b"]
    assert selected(model, "b") == ["inner/b"]


def block(name, *kinds):
    return keras.Sequential([keras.Input((4,)), *kinds], name=name)


def dense(name):
    return layers.Dense(4, "relu", name=name)


@pytest.fixture
def ambiguous():
    """Names that stand for a kernel here, and for another layer there."""
    return block(
        "model",
        block("a", dense("b"), dense("d"), layers.BatchNormalization(name="bn")),
        block("c", dense("a"), dense("d"), dense("one")),
        layers.BatchNormalization(name="c_bn"),
        dense("b"),
        dense("last"),
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("b", ["b"]),  # not "a/b"
        ("a", ["a/b", "a/d"]),  # the nested model, not "c/a"
        ("c/a", ["c/a"]),
        ("one", ["c/one"]),
        ("c", ["c/a", "c/d", "c/one"]),
        ("bn", ["a/bn"]),
        ("a/bn", ["a/bn"]),
        ("c_bn", ["c_bn"]),
        ("d", None),  # "a/d" or "c/d"
        ("e", None),
    ],
)
def test_a_name_means_the_same_to_every_function(ambiguous, name, expected):
    def regularized(*args, **kwargs):
        try:
            report = regularize(ambiguous, *args, include_normalized=True, **kwargs)
            return [row.name for row in report if row.changed]
        except ValueError as error:
            assert f"Received: {name!r}" in str(error)
            assert name != "d" or "'a/d' or 'c/d'" in str(error)
            return None
        finally:
            deregularize(ambiguous)

    def shifted():
        groups = scale_groups(ambiguous)
        candidates = kernels_and_gammas(ambiguous)
        try:
            found = factors_by_edge({name: 2.0}, groups, candidates)
        except ValueError as error:
            assert f"Received: {name!r}" in str(error)
            return None
        return [groups.edges[i].kernel.name for i in sorted(found)]

    weissi = WEISSI()
    assert regularized({name: weissi}) == expected
    assert regularized(weissi, layers=name) == expected
    if name not in ("a", "c"):  # a nested model has no factor of its own
        assert shifted() == expected


class Nest(layers.Layer):
    """Has a kernel of its own, and layers inside."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inside = layers.Dense(4, name="inside")

    def build(self, shape):
        self.kernel = self.add_weight(shape=(4, 4), name="kernel")
        self.inside.build(shape)

    def call(self, x):
        return self.inside(x) @ self.kernel


def test_a_layer_means_the_same_by_its_name_and_by_itself():
    model = block(
        "model",
        layers.Dense(4, name="d", bias_regularizer=WEISSI()),
        Nest(name="nest"),
        layers.Reshape((2, 2)),
        layers.SeparableConv1D(2, 1, name="sep"),
    )
    found = kernels_and_gammas(model)
    both = ["sep/depthwise_kernel", "sep/pointwise_kernel"]
    nest = ["nest", "nest/inside"]
    assert [kernel.name for kernel in found] == ["d", "d/bias", *nest, *both]
    for name, expected in (("d", ["d", "d/bias"]), ("nest", nest), ("sep", both)):
        for meant in (name, model.get_layer(name)):
            chosen = select_kernels(found, meant)
            assert [kernel.name for kernel in chosen] == expected
    for name in ("d/bias", "nest/inside", both[1]):
        assert [kernel.name for kernel in select_kernels(found, name)] == [name]
    with pytest.warns(UserWarning, match="may have another.*: 'nest'"):
        report = regularize(model, {"nest": WEISSI(0.2), "nest/inside": WEISSI(0.3)})
    strengths = {row.name: row.regularizer.log_norm for row in report if row.changed}
    assert strengths == {"nest": 0.2, "nest/inside": 0.3}
    shift = factors_by_edge({"d": 2.0}, scale_groups(model), found)
    assert list(shift.values()) == [2.0]


class Twins(keras.Model):
    def __init__(self):
        super().__init__()
        self.stack = [layers.Dense(4, name="same"), layers.Dense(4, name="same")]

    def call(self, x):
        return self.stack[1](self.stack[0](x))


def test_layers_of_one_name_are_named_by_their_kernels():
    model = Twins()
    model(np.ones((1, 4), "float32"))
    found = kernels_and_gammas(model)
    for name in ("same", "same_1"):
        assert [kernel.name for kernel in select_kernels(found, name)] == [name]


def test_two_names_of_one_kernel_are_refused(ambiguous):
    gru = block("model", layers.Reshape((2, 2)), layers.GRU(3, name="g"))
    for names in (("g/gru_cell", "gru_cell"), ("gru_cell", "g/gru_cell")):
        with pytest.raises(ValueError, match="two for 'g/gru_cell/kernel', by 'g"):
            regularize(gru, {name: WEISSI() for name in names})
    assert not gru.losses


def test_a_layer_stands_for_itself(ambiguous):
    for layer, expected in (
        (ambiguous.layers[0], ["a/b", "a/d"]),
        (ambiguous.layers[1].layers[0], ["c/a"]),
        (ambiguous.layers[0].layers[-1], ["a/bn"]),
    ):
        found = select_kernels(kernels_and_gammas(ambiguous), layer)
        assert [kernel.name for kernel in found] == expected


def test_what_matches_nothing_is_an_error(model):
    with pytest.raises(ValueError, match=r"argument `layers`.*'c'.*Received: 'cc'"):
        selected(model, ["a", "cc"])
    with pytest.raises(ValueError, match="true for at least one layer"):
        selected(model, lambda layer: False)
    with pytest.raises(ValueError, match="classes of layers with a kernel"):
        selected(model, layers.Conv2D)


def test_names_are_told_from_classes_and_functions(model):
    assert names_in("a") == ["a"]
    assert names_in(("a", model.layers[0])) == ["a", model.layers[0]]
    assert names_in({"a"}) == ["a"]
    assert names_in(["a", layers.Dense]) == []
    assert names_in(layers.Dense) == names_in(len) == names_in(None) == []
    for neither in (
        [],
        {"a": 1},
        np.zeros(()),
        np.zeros(2),
        b"a",
        ["a", 1],
        [layers.Dense, 1],
        WEISSI(),
    ):
        assert names_in(neither) == []
        with pytest.raises(ValueError, match="argument `layers`. Expected a name, "):
            validate_selection(neither)
