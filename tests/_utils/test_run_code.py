import keras
import numpy as np
import pytest

from keras_weissi._utils import run_code

on_jax = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="other backends run call by call"
)


def arrays(outputs):
    return [keras.ops.convert_to_numpy(x) for x in outputs]


@pytest.fixture
def traced():
    """The number of elements of what each function that was made is called on."""
    return []


def make(traced, factor):
    def function(xs):
        traced.append(factor)
        return [factor * x for x in xs]

    return run_code.compiled_whole(function)


def test_functions_return_what_they_compute(traced):
    function = make(traced, 3.0)
    for value in (1.0, 2.0):
        (y,) = arrays(function([keras.ops.full((2,), value)]))
        np.testing.assert_array_equal(y, [3 * value] * 2)


@on_jax
def test_a_function_is_traced_once(traced):
    function = make(traced, 3.0)
    for _ in range(3):
        function([keras.ops.ones((2,))])
    assert traced == [3.0]


@on_jax
def test_equal_code_is_compiled_once(traced, monkeypatch):
    monkeypatch.setattr(run_code, "_programs", {})
    for factor in (3.0, 3.0, 4.0):
        (y,) = arrays(make(traced, factor)([keras.ops.ones((2,))]))
        np.testing.assert_array_equal(y, [factor] * 2)
    assert traced == [3.0, 3.0, 4.0]
    assert len(run_code._programs) == 2


@on_jax
def test_programs_are_kept_up_to_a_number(traced, monkeypatch):
    monkeypatch.setattr(run_code, "_programs", {})
    monkeypatch.setattr(run_code, "_MOST_PROGRAMS", 2)
    for factor in (1.0, 2.0, 1.0, 3.0):
        make(traced, factor)([keras.ops.ones((2,))])
    assert len(run_code._programs) == 2
    kept = list(run_code._programs)
    make(traced, 1.0)([keras.ops.ones((2,))])
    assert sorted(run_code._programs) == sorted(kept)  # the latest was used again


def test_code_that_asks_for_values_runs_as_it_is():
    def function(xs):
        return [xs[0] if float(keras.ops.sum(xs[0])) > 0 else -xs[0]]

    for sign in (1.0, -1.0):
        (y,) = arrays(run_code.compiled_whole(function)([keras.ops.full((2,), sign)]))
        np.testing.assert_array_equal(y, [1.0, 1.0])


@on_jax
def test_programs_that_call_back_are_not_shared(monkeypatch):
    import jax

    monkeypatch.setattr(run_code, "_programs", {})
    for factor in (3.0, 4.0):

        def on_host(x, factor=factor):
            return factor * np.asarray(x)

        def function(xs, on_host=on_host):
            return [jax.pure_callback(on_host, jax.typeof(xs[0]), xs[0])]

        (y,) = arrays(run_code.compiled_whole(function)([keras.ops.ones((2,))]))
        np.testing.assert_array_equal(y, [factor] * 2)
    assert not run_code._programs


@on_jax
def test_programs_are_not_shared_by_other_arguments():
    def one(xs, ys):
        return [xs[0] * ys[0]]

    def other(xs, ys):
        return [xs[0] * xs[1]]

    x, y = keras.ops.full((2,), 3.0), keras.ops.full((2,), 5.0)
    for function, arguments in ((one, ([x], [y])), (other, ([x, y], []))):
        (z,) = arrays(run_code.compiled_whole(function)(*arguments))
        np.testing.assert_array_equal(z, [15.0] * 2)


@on_jax
def test_programs_with_large_tables_are_not_kept(monkeypatch):
    monkeypatch.setattr(run_code, "_programs", {})
    table = np.random.default_rng(0).normal(size=2**18).astype("float32")
    function = run_code.compiled_whole(lambda xs: [xs[0] + keras.ops.array(table)])
    (y,) = arrays(function([keras.ops.zeros(table.shape)]))
    np.testing.assert_array_equal(y, table)
    assert not run_code._programs
