import keras
import numpy as np
import pytest
from keras import layers

from keras_weissi import WEISSI
from keras_weissi.model.kernels import kernels
from keras_weissi.model.selection import names_in, select_kernels, validate_selection


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
