import keras
import numpy as np
import pytest
from helpers import BACKEND
from keras import layers

from keras_weissi import WEISSI, NormLogger, norm_table, regularize, scale_groups


def test_norm_table_prints_and_returns():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(4, kernel_initializer="ones", name="a"),
            layers.BatchNormalization(name="bn"),
            layers.Dense(
                1, kernel_initializer="ones", kernel_regularizer="l2", name="b"
            ),
        ]
    )
    printed = []
    table = norm_table(model, print_fn=printed.append)
    (text,) = printed
    assert text == str(table)
    assert "log norm product: 2.0794" in text and "L2(l2=0.01)" in text and "bn" in text
    rows = norm_table(model, print_fn=None)
    assert rows == table and len(printed) == 1
    assert [(row.name, row.norm, row.scale) for row in rows] == [
        ("a", 4.0, "normalized by bn"),
        ("b", 2.0, "shifts"),
    ]
    assert [row.share for row in rows] == pytest.approx([2 / 3, 1 / 3])
    assert rows.to_dicts()[1]["shape"] == (4, 1)


def test_norm_table_of_a_dead_kernel_makes_no_noise(recwarn):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="a")])
    model.layers[0].kernel.assign(np.zeros((4, 4)))
    (row,) = norm_table(model, print_fn=None)
    assert row.norm == 0.0 and np.isnan(row.share)
    assert "nan" not in str(norm_table(model, print_fn=None))
    assert not [w for w in recwarn if w.category is RuntimeWarning]


def of_norms(*values, **arguments):
    model = keras.Sequential([keras.Input((1,))])
    for i, value in enumerate(values):
        model.add(layers.Dense(1, name=f"d{i}", **arguments))
        model.layers[-1].kernel.assign([[value]])
    return model


def test_shares_only_where_there_are_parts():
    for values, shares in {
        (10.0, 100.0): [1 / 3, 2 / 3],
        (0.1, 0.01): [1 / 3, 2 / 3],
        (1.0, 5.0): [0.0, 1.0],
        (10.0, 0.1): [np.nan] * 2,
        (10.0, 0.5, 3.0): [np.nan] * 3,
        (3.0, 0.0): [np.nan] * 2,
    }.items():
        table = norm_table(of_norms(*values), print_fn=None)
        np.testing.assert_allclose([row.share for row in table], shares, rtol=1e-6)
        assert ("%" in str(table)) == np.isfinite(shares).all()


def test_norm_table_tells_what_the_logger_watches():
    model = of_norms(np.e, np.e**2, np.e**4)
    assert "WEISSI" not in str(norm_table(model, print_fn=None))
    regularize(model, WEISSI(), layers=["d0", "d2"])
    text = str(norm_table(model, print_fn=None))
    assert "log norm product: 7.0000 (5.0000 for the 2 of 3 kernels with" in text
    assert text.endswith(" with WEISSI, which NormLogger watches)")
    logger = NormLogger()
    model.compile("sgd", "mse")
    model.fit(np.zeros((1, 1)), np.zeros((1, 1)), verbose=0, callbacks=[logger])
    assert logger.record[0]["log_norm_product"] == pytest.approx(5.0)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_tables_fit_the_terminal_and_break_no_name(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    model = of_norms(2.0, 3.0, 4.0)
    model.add(layers.Dense(1, kernel_regularizer="l2", name="with_l2"))
    model.add(layers.BatchNormalization(name="bn"))
    with pytest.warns(UserWarning, match="'with_l2' .has L2"):
        report = regularize(model, WEISSI(0.01, 0.02))
    tables = [
        report,
        norm_table(model, print_fn=None),
        scale_groups(model),
    ]
    for table in tables:
        lines = [line for line in str(table).splitlines() if line[0] in "┏│┃└"]
        assert max(map(len, lines)) <= max(width, 80)
        assert "with_l2" in str(table)
    name = "a_name_longer_than_a_terminal_" * 8
    wide = keras.Sequential([keras.Input((1,)), layers.Dense(1, name=name)])
    assert name in str(norm_table(wide, print_fn=None))


@pytest.mark.parametrize("width", [60, 80])
def test_nothing_is_cut_where_the_terminal_is_narrow(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    model = of_norms(2.0, 3.0, activation="tanh")
    report = regularize(model, WEISSI(0.012345, 0.02))
    for table in (report, norm_table(model, print_fn=None)):
        assert "…" not in str(table) and "tanh" in str(table)


def test_norm_table_of_a_model_that_is_not_built():
    with pytest.raises(ValueError, match="argument `model`. Expected a built model"):
        norm_table(keras.Sequential([layers.Dense(2)]))


@pytest.mark.skipif(BACKEND == "jax", reason="has no float64 variables by default")
def test_norm_table_keeps_float64():
    dense = layers.Dense(4, dtype="float64")
    model = keras.Sequential([keras.Input((4,), dtype="float64"), dense])
    dense.kernel.assign(np.full((4, 4), 1.0 + 1e-12))
    (row,) = norm_table(model, print_fn=None)
    assert row.norm == pytest.approx(4.0 + 4e-12, rel=1e-14) and row.norm != 4.0


def test_norm_table_of_something_else():
    with pytest.raises(
        ValueError, match="Expected a keras.Model. Received: model=None"
    ):
        norm_table(None)
