import json
import math

import keras
import numpy as np
import pytest
from helpers import (
    BACKEND,
    float64,
    numeric_gradient,
    reference_penalty,
    to_numpy,
    value_and_gradient,
)
from keras import layers

from keras_weissi import WEISSI, regularizers

COEFFICIENTS = [(0.3, 0.0), (0.0, 0.2), (0.3, 0.2)]


def kernel(shape=(4, 5), norm=3.0, dtype="float32", seed=0):
    w = np.random.default_rng(seed).normal(size=shape)
    return (w * norm / np.linalg.norm(w)).astype(dtype)


@pytest.mark.parametrize("log_norm, direction_l1", COEFFICIENTS)
@pytest.mark.parametrize(
    "shape", [(1,), (7,), (4, 5), (2, 3, 4), (3, 3, 2, 5), (2,) * 5]
)
@pytest.mark.parametrize("norm", [1e-3, 0.05, 0.1001, 0.7, 1.0, 30.0, 1e9])
def test_value_is_the_closed_form(log_norm, direction_l1, shape, norm):
    w = kernel(shape, norm)
    value = to_numpy(WEISSI(log_norm, direction_l1)(w))
    assert value.shape == () and value.dtype == "float32"
    expected = reference_penalty(w, log_norm, direction_l1)
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("log_norm, direction_l1", COEFFICIENTS)
@pytest.mark.parametrize("norm", [0.03, 0.09, 0.2, 5.0])
def test_gradient_agrees_with_finite_differences(log_norm, direction_l1, norm):
    w = kernel((3, 4), norm, "float64")
    expected = numeric_gradient(
        lambda w: reference_penalty(w, log_norm, direction_l1), w, 1e-7 * norm
    )
    scale = np.abs(expected).max()
    with float64():
        _, gradient = value_and_gradient(WEISSI(log_norm, direction_l1), w)
    assert gradient.dtype == "float64"
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-6 * scale)
    _, gradient = value_and_gradient(
        WEISSI(log_norm, direction_l1), w.astype("float32")
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("factor", [1e-3, 0.5, 2.0, 1e6])
def test_a_shift_adds_the_log_of_its_factor(factor):
    w = kernel(norm=1e3, dtype="float64")
    with float64():
        regularizer = WEISSI(0.3, 0.2)
        before = float(to_numpy(regularizer(w)))
        after = float(to_numpy(regularizer(factor * w)))
    expected = 0.3 * math.log(factor)
    assert after - before == pytest.approx(expected, rel=1e-9)
    before = float(to_numpy(WEISSI(0.3)(w.astype("float32"))))
    after = float(to_numpy(WEISSI(0.3)((factor * w).astype("float32"))))
    assert after - before == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_shifts_with_product_one_cancel():
    kernels = [
        kernel(norm=norm, dtype="float64", seed=seed)
        for seed, norm in enumerate((2.0, 5.0, 0.9))
    ]
    factors = [4.0, 0.5, 0.5]
    with float64():
        before = sum(float(to_numpy(WEISSI(1.0)(w))) for w in kernels)
        shifted = [factor * w for factor, w in zip(factors, kernels, strict=True)]
        after = sum(float(to_numpy(WEISSI(1.0)(w))) for w in shifted)
    assert after == pytest.approx(before, rel=1e-12)


@pytest.mark.parametrize("fill", [0.0, 1e-45, 1e-30, 1e-20, 1e18, 1e30, 3e38, -3e38])
@pytest.mark.parametrize("log_norm, direction_l1", COEFFICIENTS)
@pytest.mark.parametrize("shape", [(1,), (3, 4), (40, 40, 40)])
def test_every_finite_kernel_has_a_finite_penalty(fill, log_norm, direction_l1, shape):
    w = np.full(shape, fill, "float32")
    value, gradient = value_and_gradient(WEISSI(log_norm, direction_l1), w)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    # 44.4 is the log of the largest norm whose square is a float32 number.
    assert abs(value) <= 45 * log_norm + 1.0001 * direction_l1 * math.sqrt(w.size)
    _, opposite = value_and_gradient(WEISSI(log_norm, direction_l1), -w)
    np.testing.assert_array_equal(gradient, -opposite)


def test_a_broken_kernel_is_not_hidden():
    w = kernel()
    w[1, 2] = np.nan
    assert np.isnan(to_numpy(WEISSI(0.1, 0.1)(w)))


def test_a_zero_element_feels_no_pull_to_either_side():
    w = np.array([[0.0, 3.0], [4.0, 0.0]], "float32")
    _, gradient = value_and_gradient(WEISSI(0.0, 1.0), w)
    assert gradient[0, 0] == 0.0 and gradient[1, 1] == 0.0
    assert gradient[0, 1] != 0.0


@pytest.mark.parametrize("log_norm, direction_l1", COEFFICIENTS)
def test_value_and_log_gradient_are_continuous_at_the_floor(log_norm, direction_l1):
    direction = kernel(norm=1.0, dtype="float64")
    with float64():
        regularizer = WEISSI(log_norm, direction_l1, min_norm=0.1)
        below, below_slope = value_and_gradient(
            regularizer, 0.1 * (1 - 1e-6) * direction
        )
        above, above_slope = value_and_gradient(
            regularizer, 0.1 * (1 + 1e-6) * direction
        )
    assert below == pytest.approx(above, abs=1e-5)
    if not direction_l1:
        np.testing.assert_allclose(below_slope, above_slope, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(dtype):
    w = keras.ops.cast(kernel(norm=1e4), dtype)  # the squares overflow float16
    exact = to_numpy(keras.ops.cast(w, "float32")).astype("float64")
    value = WEISSI(0.3, 0.2)(w)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    assert float(to_numpy(value)) == pytest.approx(
        reference_penalty(exact, 0.3, 0.2), rel=1e-6
    )


def test_float64_stays_float64():
    w = kernel(norm=7.0, dtype="float64")
    with float64():
        value = to_numpy(WEISSI(0.3, 0.2)(w))
    assert value.dtype == "float64"
    assert float(value) == pytest.approx(reference_penalty(w, 0.3, 0.2), rel=1e-14)


def test_a_coefficient_of_zero_builds_no_reduction(monkeypatch):
    reductions = []
    for name in ("sum_of_squares", "sum_of_absolutes", "sqrt", "log"):
        original = getattr(regularizers, name)
        monkeypatch.setattr(
            regularizers,
            name,
            lambda x, name=name, original=original: (
                reductions.append(name) or original(x)
            ),
        )
    w = kernel()
    assert float(to_numpy(WEISSI(0.0, 0.0)(w))) == 0.0
    assert reductions == []
    WEISSI(0.1, 0.0)(w)
    assert sorted(reductions) == ["log", "sum_of_squares"]
    reductions.clear()
    WEISSI(0.0, 0.1)(w)
    assert sorted(reductions) == ["sqrt", "sum_of_absolutes", "sum_of_squares"]


@pytest.mark.parametrize("name", ["log_norm", "direction_l1", "min_norm"])
@pytest.mark.parametrize(
    "value",
    [-1.0, -1e-30, float("nan"), float("inf"), 10**400, True, "0.1", None, [0.1], 1j],
)
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ValueError) as error:
        WEISSI(**{name: value})
    assert f"Invalid value for argument `{name}`. Expected " in str(error.value)
    assert f"Received: {name}={value!r}" in str(error.value)


@pytest.mark.parametrize("value", [0.0, 1e-19, 1e19])
def test_min_norm_has_to_have_a_square_in_float32(value):
    with pytest.raises(ValueError, match="between 1e-18 and 1e"):
        WEISSI(min_norm=value)


@pytest.mark.parametrize("name", ["log_norm", "direction_l1"])
@pytest.mark.parametrize("min_norm, most", [(1e18, 1e12), (0.1, 1e12), (1e-18, 1.0)])
@pytest.mark.parametrize("norm", [0.0, 0.5, 2.0, 1e9])
def test_the_largest_coefficients_have_finite_gradients(name, min_norm, most, norm):
    with pytest.raises(ValueError, match=f"`{name}`.*non-negative float, here up to"):
        WEISSI(**{name: most * 1.01, "min_norm": min_norm})
    regularizer = WEISSI(
        **{"log_norm": 0.0, name: most * 0.999, "min_norm": min_norm},
    )
    value, gradient = value_and_gradient(regularizer, kernel(norm=norm * min_norm))
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_gradient_at_the_floor_is_that_of_the_logarithm(dtype):
    w = np.array([[0.0, 0.5]], dtype)
    with float64():
        value, gradient = value_and_gradient(WEISSI(0.3, min_norm=0.5), w)
    np.testing.assert_allclose(value, 0.3 * math.log(0.5), rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0.0, 0.6]], rtol=1e-6)


@pytest.mark.parametrize("norm", [0.0, 0.05, 0.2, 1e200])
def test_the_bounds_of_float64_are_not_rounded(norm):
    w = kernel(norm=norm, dtype="float64")
    with float64():
        value, gradient = value_and_gradient(WEISSI(0.3, 0.2), w)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    if norm < 1:
        assert float(value) == pytest.approx(reference_penalty(w, 0.3, 0.2), rel=1e-13)
    else:  # the square of the norm overflows
        assert float(value) <= 0.3 * 355 + 0.2 * math.sqrt(w.size) * 1.001


@pytest.mark.skipif(BACKEND != "torch", reason="the formula in PyTorch's functions")
@pytest.mark.parametrize("seed", range(20))
def test_pytorch_rounds_as_the_formula_does(seed):
    import torch

    # Kernels that are above the floor, in which case there is no decay.
    x = torch.tensor(kernel((3, 3, 8, 16), 0.2 * 2**seed, seed=seed))
    log = torch.log((x * x).sum()) * 0.15
    direction = x.abs().sum() / torch.sqrt((x * x).sum()) * 0.2
    for weissi, expected in [
        (WEISSI(0.3), log),
        (WEISSI(0.0, 0.2), direction),
        (WEISSI(0.3, 0.2), log + direction),
    ]:
        value = weissi(x)
        assert value.dtype == torch.float32 and float(value) == float(expected)


def test_integer_tensors_are_refused():
    with pytest.raises(ValueError, match="floating-point tensor. Received: x of dtype"):
        WEISSI()(np.ones((2, 3), "int32"))


def test_config_is_plain_floats_and_round_trips():
    original = WEISSI(np.float32(0.5), 1, np.float64(0.25))
    config = original.get_config()
    assert config == {"log_norm": 0.5, "direction_l1": 1.0, "min_norm": 0.25}
    assert all(type(value) is float for value in config.values())
    serialized = keras.regularizers.serialize(original)
    restored = keras.regularizers.deserialize(json.loads(json.dumps(serialized)))
    assert type(restored) is WEISSI and restored.get_config() == config
    assert keras.regularizers.get(original) is original


def test_calling_leaves_no_state():
    regularizer = WEISSI(0.1, 0.1)
    before = dict(vars(regularizer))
    regularizer(kernel())
    assert vars(regularizer) == before


def test_second_derivatives_are_right():
    w = kernel((2, 3), 2.0, "float64")
    v = kernel((2, 3), 1.0, "float64", seed=1)

    def slope_along_v(w):
        gradient = numeric_gradient(lambda w: reference_penalty(w, 0.3), w, 1e-4)
        return float((gradient * v).sum())

    expected = numeric_gradient(slope_along_v, w, 1e-4)
    regularizer = WEISSI(0.3)
    with float64():
        if BACKEND == "jax":
            import jax

            actual = jax.grad(lambda w: (jax.grad(regularizer)(w) * v).sum())(w)
            forward = jax.jvp(jax.grad(regularizer), (w,), (v,))[1]
            np.testing.assert_allclose(forward, actual, rtol=1e-9)
        elif BACKEND == "tensorflow":
            import tensorflow as tf

            x = tf.constant(w)
            with tf.GradientTape() as outer:
                outer.watch(x)
                with tf.GradientTape() as inner:
                    inner.watch(x)
                    value = regularizer(x)
                slope = tf.reduce_sum(inner.gradient(value, x) * v)
            actual = outer.gradient(slope, x).numpy()
        else:
            import torch

            x = torch.tensor(w, requires_grad=True)
            (slope,) = torch.autograd.grad(regularizer(x), x, create_graph=True)
            (actual,) = torch.autograd.grad((slope * torch.tensor(v)).sum(), x)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_dead_kernel_decays_and_stays():
    """SGD(0.1, momentum 0.9) at log_norm 0.1, on a kernel without a data gradient."""

    def train(min_norm, steps):
        model = keras.Sequential(
            [
                keras.Input((10,)),
                keras.layers.Dense(10, kernel_regularizer=WEISSI(0.1, 0, min_norm)),
            ]
        )
        w = kernel((10, 10), 3.15)
        model.layers[0].kernel.assign(w)
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
        norms = []
        x = np.zeros((100, 10), "float32")
        for _ in range(steps // 100):
            model.fit(x, x, batch_size=1, verbose=0)
            norms.append(np.linalg.norm(to_numpy(model.layers[0].kernel)))
        return np.array(norms)

    norms = train(0.1, 2_000)
    assert np.isfinite(norms).all() and norms.max() < 3.15 and norms[-1] < 1e-3
    # Without a floor to speak of the same kernel is thrown about.
    assert train(1e-6, 1_000).max() > 10


@pytest.mark.jax_only
def test_bytes_moved_stay_at_the_limit():
    import importlib.util

    import jax
    from helpers import ROOT

    path = ROOT / "benchmarks" / "overhead.py"
    spec = importlib.util.spec_from_file_location("overhead", path)
    overhead = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(overhead)
    cost = {k: overhead.update_cost(p) for k, p in overhead.PENALTIES.items()}
    # On a GPU, XLA fuses L2 into the update.
    on_gpu = jax.default_backend() == "gpu"
    assert cost["WEISSI (log)"][0] <= (1.34 if on_gpu else 0.67) * cost["L2"][0]
    assert cost["WEISSI (both)"][0] <= (0.81 if on_gpu else 0.72) * cost["L1L2"][0]
    kernel_bytes = 4 * 2048 * 2048
    for name in ("WEISSI (log)", "WEISSI (both)"):
        assert cost[name][1] < kernel_bytes / 100


@pytest.mark.parametrize("weissi", [WEISSI(0.1), WEISSI(0.1, 0.01), WEISSI(0.0, 0.01)])
@pytest.mark.parametrize("rows", [8, 6])  # the last batch has 2
def test_a_batch_of_unknown_size_has_a_penalty(weissi, rows):
    class Adds(layers.Layer):
        def call(self, x):
            self.add_loss(weissi(x))
            return x

    inputs = keras.Input((3,))
    dense = layers.Dense(3, activity_regularizer=weissi)
    model = keras.Model(inputs, Adds()(dense(inputs)))
    model.compile("sgd", "mse")
    x = np.ones((rows, 3), "float32")
    model.fit(x, x, batch_size=4, verbose=0)
    model(x)
    outputs = to_numpy(dense(x))
    expected = float(to_numpy(weissi(outputs)))
    losses = [float(to_numpy(loss)) for loss in model.losses]
    first, second = sorted(losses, key=abs)
    # Keras divides the first by the size of the batch, from 3.9 on.
    assert first == pytest.approx(expected / rows, rel=1e-5) or first == second
    assert second == pytest.approx(expected, rel=1e-5)


def test_a_subclass_prints_its_own_name_and_arguments():
    class Tagged(WEISSI):
        def __init__(self, tag="x", **arguments):
            super().__init__(**arguments)
            self.tag = tag

        def get_config(self):
            return {**super().get_config(), "tag": self.tag}

    class Plain(WEISSI):
        pass

    expected = "(log_norm=0.01, direction_l1=0, min_norm=0.1"
    assert repr(WEISSI()) == f"WEISSI{expected})"
    assert repr(Plain()) == f"Plain{expected})"
    assert repr(Tagged()) == f"Tagged{expected}, tag='x')"
