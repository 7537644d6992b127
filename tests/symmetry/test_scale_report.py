import keras
import networks
import numpy as np
import pytest
from keras import layers

from keras_weissi import (
    WEISSI,
    balance_scales,
    deregularize,
    invariant_coefficients,
    norm_table,
    regularize,
    scale_groups,
    shift_scales,
)
from keras_weissi.model.kernels import named_weights
from keras_weissi.symmetry.scale_report import ScaleReport


def dense(name, activation="relu", **arguments):
    return layers.Dense(4, activation, name=name, **arguments)


def chain(*stack, shape=(4,)):
    return keras.Sequential([keras.Input(shape, name="x"), *stack])


def caption_of(table):
    return str(table).rpartition("┘\n")[2]


class Hidden(layers.Layer):
    """A layer that cannot be seen through."""

    def call(self, x):
        if isinstance(x, keras.KerasTensor):
            raise TypeError("no symbols")
        return x


def every_kind():
    x = inputs = keras.Input((4,))
    y = dense("forked", None)(x)
    x = layers.Add()([layers.BatchNormalization(name="other")(y), y])
    x = dense("before_bn", None)(dense("first")(x))
    x = layers.BatchNormalization(name="bn")(x)
    x = dense("shifts")(x)
    x = dense("frozen", trainable=False)(x)
    x = Hidden(name="hidden")(dense("before_hidden")(x))
    return keras.Model(inputs, dense("last", "softmax")(dense("after")(x)))


@pytest.mark.parametrize("of", [norm_table, lambda m, _: regularize(m, WEISSI(0.1))])
def test_the_column_says_what_can_be_shifted_and_why_not(of):
    scale = {row.name: row.scale for row in of(every_kind(), None)}
    assert (
        scale["before_bn"] == "normalized by bn"
    )  # though it could shift with "first"
    assert scale["first"] == "shifts"
    assert scale["shifts"] == "shifts"
    # Its scale has a meaning: it is added, too.
    assert scale["forked"].startswith("pinned: other: its input is normalized")
    assert scale["frozen"].startswith("pinned: frozen: its kernel is frozen")
    assert scale["before_hidden"].startswith("hidden: ")
    assert scale["after"] == "shifts"
    assert scale["last"] == "shifts"


@pytest.mark.parametrize(
    "layer, reason",
    [
        (layers.Softmax(name="it"), "softmax is not homogeneous"),
        (layers.Activation("gelu", name="it"), "gelu is not homogeneous"),
        (layers.ReLU(6.0, name="it"), "ReLU(max_value=6) is not homogeneous"),
        (layers.BatchNormalization(trainable=False, name="it"), "it is frozen: it "),
    ],
)
def test_what_is_known_to_fix_the_scale_hides_nothing(layer, reason):
    model = keras.Sequential([keras.Input((4,)), dense("a", None), layer])
    model.add(dense("b", "softmax"))
    statuses = scale_groups(model).statuses
    assert {s.kind for s in statuses.values()} == {"pinned"}
    assert statuses["a"].by.startswith(f"it: {reason}")
    assert invariant_coefficients(model).plain_is_invariant is not None


def test_a_model_that_cannot_be_seen_through_is_hidden():
    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="mine")
            self.first, self.last = dense("first"), dense("last")

        def call(self, x):
            if self.built and isinstance(x, keras.KerasTensor):
                raise TypeError("no symbols")
            return self.last(self.first(x))

    model = Model()
    model(np.zeros((2, 4), "float32"))
    table = norm_table(model, print_fn=None)
    assert [row.name for row in table] == ["first", "last"]
    assert all(row.scale.startswith("hidden: in mine") for row in table)
    assert caption_of(table).startswith("log norm product: ")


@pytest.mark.parametrize("seed", range(3))
def test_the_sums_are_those_of_balancing(seed):
    x = inputs = keras.Input((4,))
    x = dense("stem")(x)
    y = layers.BatchNormalization(name="bn")(dense("b")(dense("a")(x)))
    x = layers.Add()([dense("projection", None)(x), y])
    model = keras.Model(inputs, dense("last", None)(x))
    networks.randomize(model)
    shift_scales(model, networks.random_factors(model, seed))
    sums = ScaleReport(model).sums_of_squares({})
    report = balance_scales(model)
    for value, moment in zip(sums, ("before", "after"), strict=True):
        squares = [getattr(row, moment) ** 2 for row in report]
        assert value == pytest.approx(sum(squares), rel=1e-6)
    assert sums[1] < sums[0]


def test_the_caption_says_what_balancing_would_do():
    model = chain(dense("a", kernel_initializer="ones"), dense("b", None))
    model.get_layer("b").kernel.assign(np.full((4, 4), 4.0))
    expected = (
        "1 scale can be shifted without changing the model: balance_scales would "
        "lower the sum of squares from 272 to 128."
    )
    assert caption_of(norm_table(model, None)).splitlines()[0] == expected
    report = regularize(model, WEISSI(0.1))
    assert caption_of(report) == f"2 of 2 kernels got the penalty. {expected}"
    balance_scales(model)
    expected = "1 scale can be shifted without changing the model; it is balanced."
    assert caption_of(norm_table(model, None)).splitlines()[0] == expected
    report = deregularize(model)
    assert caption_of(report) == f"WEISSI was removed from 2 of 2 kernels. {expected}"
    model = chain(dense("a", "tanh"), dense("b"))
    expected = "No scale can be shifted without changing the model."
    assert caption_of(norm_table(model, None)).splitlines()[0] == expected


@pytest.mark.parametrize("value", [0.0, np.inf, np.nan])
def test_norms_that_cannot_be_balanced_make_no_noise(value):
    model = chain(dense("a"), dense("b"), dense("c"))
    model.get_layer("b").kernel.assign(np.full((4, 4), value))
    for table in (regularize(model, WEISSI(0.1)), norm_table(model, print_fn=None)):
        caption = caption_of(table)
        assert "2 scales can be shifted without changing the model" in caption
        assert "inf" not in caption.splitlines()[0]
        assert "sum of squares" not in caption
        assert ("they are balanced" in caption) == (value == 0.0)


@pytest.mark.parametrize("of", [norm_table, lambda m, _: regularize(m, WEISSI(0.1))])
def test_no_norm_is_read_twice(of, monkeypatch):
    model = chain(dense("a"), layers.BatchNormalization(name="bn"), dense("b"))
    read = []
    for module in ("attach.report", "symmetry.table", "symmetry.scale_report"):

        def norm(variable):
            read.append(id(variable))
            return 1.0

        monkeypatch.setattr(f"keras_weissi.{module}.host_norm", norm)
    of(model, None)
    names = [named_weights(model)[key].name for key in read]
    assert sorted(names) == ["a", "b", "bn"]


def normalized(count, last=4):
    stack = []
    for i in range(count):
        stack += [dense(f"d{i}"), layers.BatchNormalization()]
    return chain(*stack, layers.Dense(last, name="last"))


NOTHING = "WEISSI does next to nothing here"


@pytest.mark.parametrize(
    "model, is_told",
    [
        (lambda: normalized(8), False),
        (lambda: normalized(9), False),
        (lambda: normalized(10), True),
        (lambda: normalized(8, last=1), True),  # of the elements, 4 of 132
        (lambda: normalized(2, last=1), False),
        (lambda: chain(dense("a"), dense("last")), False),
    ],
)
def test_who_has_next_to_nothing_to_regularize_is_told_what_to_do(model, is_told):
    model = model()
    assert NOTHING not in caption_of(norm_table(model, None))
    report = regularize(model, WEISSI(0.1))
    for table in (report, norm_table(model, None)):
        caption = caption_of(table)
        assert (NOTHING in caption) == is_told
        assert ("include_normalized=True, and the gammas with" in caption) == is_told
    for arguments in ({"include_normalized": True}, {"layers": "last"}):
        report = regularize(model, WEISSI(0.1), **arguments)
        assert NOTHING not in caption_of(report)
    report = regularize(model, keras.regularizers.L2(0.1), replace=True)
    assert NOTHING not in caption_of(report)


def test_what_is_left_out_is_counted():
    stack = [dense("n1"), layers.BatchNormalization()]
    stack += [dense("n2"), layers.BatchNormalization()]
    model = chain(
        layers.Embedding(5, 4, name="e"),
        layers.Flatten(),
        *stack,
        dense("l2", kernel_regularizer="l2"),
        dense("lora"),
        dense("last"),
    )
    model.get_layer("lora").enable_lora(2)
    with pytest.warns(UserWarning, match="skipped 2 of 6 kernels"):
        report = regularize(model, WEISSI(0.1))
    assert caption_of(report).startswith(
        "1 of 6 kernels got the penalty; left out: 2 normalized, 1 embedding, 1 with "
        "another regularizer, 1 for other reasons. include_normalized=True would "
        "change 2 more. "
    )


@pytest.mark.parametrize("length", [1, 300])
def test_captions_are_short_whatever_the_names(length):
    class Own(layers.Layer):
        def build(self, shape):
            self.weight = self.add_weight(shape=(4, 4))
            self.later = layers.Dense(4, name="later")

        def call(self, x):
            return x @ self.weight

    def name(i):
        return f"{i}_".ljust(length, "x")

    stack = [dense(name(i)) for i in range(20)]
    stack += [Own(name=name(20 + i)) for i in range(5)]
    stack += [x for i in range(5) for x in (dense(name(30 + i), None), layers.ReLU())]
    for i in range(5):
        stack += [dense(name(40 + i)), layers.BatchNormalization()]
    stack += [dense(name(50 + i), kernel_regularizer="l2") for i in range(5)]
    model = chain(*stack)
    with pytest.warns(UserWarning):
        report = regularize(model, WEISSI(0.1), layers=lambda x: "5" not in x.name)
    for table in (report, norm_table(model, None)):
        lines = caption_of(table).splitlines()
        assert lines and max(map(len, lines)) < 300
