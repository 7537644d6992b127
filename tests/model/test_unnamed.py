"""No weight goes unseen: matrices of any name, and layers that are not built yet."""

import inspect
import math

import keras
import networks
import numpy as np
import pytest
from helpers import to_numpy
from keras import layers, ops

from keras_weissi import WEISSI, norm_table, regularize, scale_groups
from keras_weissi.model.kernels import kernels, kernels_and_gammas
from keras_weissi.model.walk import unbuilt_layers

R = WEISSI(0.1)


def chain(*stack, shape=(4,)):
    return keras.Sequential([keras.Input(shape), *stack])


class Unnamed(layers.Layer):
    def build(self, shape):
        self.weight = self.add_weight(shape=(4, 4))
        self.offset = self.add_weight(shape=(4,))

    def call(self, x):
        return ops.matmul(x, self.weight) + self.offset


class Experts(layers.Layer):
    """Weights of many names, as in a mixture of experts."""

    def build(self, shape):
        for name, shape, trainable in (
            ("router", (4, 3), True),
            ("expert_up", (3, 4, 5), True),
            ("kernel", (4, 4), True),
            ("bias", (3, 5), True),
            ("expert_bias", (3, 4), True),
            ("gamma", (1, 1, 4), True),
            ("beta", (1, 1, 4), True),
            ("lora_a", (4, 2), True),
            ("scale", (4,), True),
            ("running", (4, 4), False),
        ):
            self.add_weight(shape=shape, name=name, trainable=trainable)

    def call(self, x):
        return x


class Assigned(layers.Layer):
    """Makes its weight as a `keras.Variable`, in `__init__`."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.table = keras.Variable(np.ones((4, 4), "float32"), name="table")

    def call(self, x):
        return ops.matmul(x, self.table)


class Lazy(layers.Layer):
    """Has layers inside that its `call` does not reach."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.used = layers.Dense(4, name="used")
        self.later = layers.Dense(4, name="later")
        self.flat = layers.Flatten(name="flat")

    def build(self, shape):
        self.used.build(shape)

    def call(self, x):
        return self.used(x)


NOT_NAMED = "not named kernel: select it with `layers`"


def test_a_matrix_without_a_name_is_listed_and_not_taken():
    model = chain(Unnamed(name="mine"), layers.Dense(2, name="dense"))
    report = regularize(model, R)
    assert [(row.name, row.changed) for row in report] == [
        ("mine", False),
        ("dense", True),
    ]
    assert report[0].note == NOT_NAMED and len(model.losses) == 1
    expected = np.linalg.norm(to_numpy(model.get_layer("mine").weight))
    assert report[0].norm == pytest.approx(expected, rel=1e-6)
    # It stays out of what callbacks watch, but not of the symmetry.
    assert [kernel.name for kernel in kernels(model)] == ["dense"]
    names = [edge.kernel.name for edge in scale_groups(model).edges]
    assert names == ["mine", "dense"]
    networks.check_symmetry(model, np.ones((2, 4), "float32"))


@pytest.mark.parametrize(
    "named", [dict(layers="mine"), dict(layers=Unnamed), dict(regularizer={"mine": R})]
)
@pytest.mark.filterwarnings("ignore:[0-9]+ of .* may have another")
def test_it_is_taken_when_it_is_named(named):
    model = chain(Unnamed(name="mine"), layers.Dense(2, name="dense"))
    report = regularize(model, **{"regularizer": R, **named})
    assert [row.changed for row in report] == [True, False]
    assert model.get_layer("mine").weight.regularizer is R
    # And from then on it is a kernel as any other.
    regularize(model, WEISSI(0.2))
    assert len(model.losses) == 2


@pytest.mark.filterwarnings("ignore:[0-9]+ of .* may have another")
def test_every_matrix_that_is_trained_is_listed():
    report = regularize(chain(Experts(name="moe"), Assigned(name="own")), R)
    assert {row.name: row.changed for row in report} == {
        "moe/router": False,
        "moe/expert_up": False,
        "moe": True,  # the one called kernel goes by the name of its layer, as before
        **dict.fromkeys(
            ("moe/bias", "moe/expert_bias", "moe/gamma", "moe/beta", "moe/lora_a"),
            False,
        ),
        "own": False,
    }


def test_a_frozen_matrix_is_listed_too():
    model = chain(Unnamed(name="mine"), layers.Dense(2))
    model.get_layer("mine").trainable = False
    assert [row.name for row in regularize(model, R)][0] == "mine"


def test_matrices_inside_other_layers_are_listed_in_order():
    inner = keras.Sequential(
        [keras.Input((3, 4)), Unnamed(name="b"), layers.Dense(4, name="c")],
        name="inner",
    )
    each = layers.TimeDistributed(Unnamed(name="d"), name="each")
    model = chain(layers.Dense(4, name="a"), inner, each, shape=(3, 4))
    names = [row.name for row in regularize(model, R)]
    assert names == ["a", "inner/b", "inner/c", "each/d"]


class OwnDense(layers.Dense):
    pass


@pytest.mark.parametrize("kind", [layers.Dense, OwnDense])
@pytest.mark.filterwarnings("ignore:[0-9]+ of .* may have another")
def test_layers_of_keras_list_what_they_did(kind):
    inputs = keras.Input((6, 4))
    x = layers.MultiHeadAttention(2, 4, name="mha")(inputs, inputs)
    x = layers.PReLU(name="prelu")(x)
    x = layers.LayerNormalization(axis=(1, 2), name="ln")(x)
    x = layers.LSTM(3, name="lstm")(x)
    dense = kind(4, name="lora")
    model = keras.Model(inputs, dense(x))
    dense.enable_lora(2)
    with pytest.warns(UserWarning, match="LoRA"):
        report = regularize(model, R, include_normalized=True)
    assert [row.name for row in report] == [
        *(f"mha/{part}" for part in ("query", "key", "value", "attention_output")),
        *("lstm/lstm_cell/kernel", "lstm/lstm_cell/recurrent_kernel", "lora"),
    ]


@pytest.mark.filterwarnings("ignore:[0-9]+ of .* may have another")
def test_layers_that_are_not_built_have_a_row():
    model = chain(Lazy(name="lazy"), layers.Dense(2, name="dense"))
    report = regularize(model, R)
    assert [row.name for row in report] == ["lazy/used", "dense", "lazy/later"]
    assert report[2].note.startswith("not built yet: call the model on data")
    assert not report[2].changed and math.isnan(report[2].norm)
    assert "not built yet: lazy/later" in str(norm_table(model, print_fn=None))


def calls_of(kind):
    """Yields a layer that was called and one that was not, for each way that works."""
    for given in ((), (2,), (2, 2)):
        for shape in ((4, 4), (8, 8, 3), (4, 4, 4, 3)):
            x = keras.Input(shape)
            for call in (lambda x: (x,), lambda x: ([x, x],), lambda x: (x, x)):
                try:
                    layer, other = kind(*given), kind(*given)
                    layer(*call(x))
                except Exception:  # not an argument or an input that it takes
                    continue
                yield layer, other


def test_layers_of_keras_that_make_no_kernel_need_not_be_built():
    builds = {keras.Layer.build, keras.Model.build, keras.Sequential.build}
    needed = {}
    for kind in set(filter(inspect.isclass, vars(layers).values())):
        name = kind.__name__
        is_layer = issubclass(kind, keras.Layer)
        # This one starts TensorFlow, and has only a table.
        if not is_layer or kind.build in builds or name == "TextVectorization":
            continue
        if found := next(calls_of(kind), None):
            model = layers.Layer()
            built, model.part = found
            needed[name] = bool(unbuilt_layers(model))
            assert needed[name] == bool(kernels_and_gammas(built)), name
    assert not any(needed[x] for x in ("Add", "Concatenate", "Dot", "Attention"))
    assert needed["Dense"] and needed["LSTM"] and needed["MultiHeadAttention"]


def test_norm_table_without_a_kernel_names_no_product():
    model = chain(layers.Dense(4, name="int8"), Unnamed(name="mine"))
    model.get_layer("int8").quantize("int8")
    text = str(norm_table(model, print_fn=None))
    assert "log norm product: no kernels; without those not named kernel" in text


def test_norm_table_lists_a_matrix_outside_the_product():
    model = chain(Unnamed(name="mine"), layers.Dense(2, name="dense"))
    table = norm_table(model, print_fn=None)
    assert [row.name for row in table] == ["mine", "dense"]
    assert table[0].norm > 0 and math.isnan(table[0].share)
    assert table[1].share == 1.0
    norm = np.linalg.norm(to_numpy(model.get_layer("dense").kernel))
    assert f"log norm product: {np.log(norm):.4f}; without those" in str(table)
    assert "without those not named kernel: mine" in str(table)


def test_a_quantized_kernel_has_no_norm():
    model = chain(layers.Dense(4, name="int8"), layers.Dense(2, name="dense"))
    model.get_layer("int8").quantize("int8")
    with pytest.warns(UserWarning, match="quantized to int8"):
        report = regularize(model, R)
    for table in (report, norm_table(model, print_fn=None)):
        assert [row.name for row in table] == ["int8", "dense"]
        assert math.isnan(table[0].norm) and table[1].norm > 0
        assert "nan" not in str(table)
    assert table[1].share == 1.0


def test_rows_stand_in_the_order_of_the_layers_gammas_too():
    stack = [
        layers.BatchNormalization(name="first"),
        layers.Dense(4, name="a"),
        Unnamed(name="b"),
        layers.BatchNormalization(name="second"),
        layers.Dense(4, name="c"),
    ]
    model = chain(*stack)
    with pytest.warns(UserWarning, match="'b' .normalized by second"):
        report = regularize(model, R, layers=["c", "second", "b", "first"])
    assert [row.name for row in report] == ["first", "a", "b", "second", "c"]
    assert [row.changed for row in report] == [True, False, False, True, True]


def test_a_matrix_beside_layers_can_be_named_alone():
    class Tokens(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.inside = layers.Dense(4, name="inside")

        def build(self, shape):
            self.inside.build(shape)
            self.token = self.add_weight(shape=(1, 4), name="token")

        def call(self, x):
            return self.inside(x) + self.token

    model = chain(Tokens(name="tokens"), layers.Dense(2, name="dense"))
    with pytest.warns(UserWarning, match="may have another"):
        report = regularize(model, R, layers="tokens/token")
    changed = [row.name for row in report if row.changed]
    assert changed == ["tokens/token"]
