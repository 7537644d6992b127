import keras
import numpy as np
import pytest
from helpers import BACKEND, float64, to_numpy
from keras import layers, optimizers

from keras_weissi import balance_scales
from keras_weissi.model.kernels import host_norm
from keras_weissi.symmetry import apply_factors
from keras_weissi.symmetry.apply_factors import multiply_all
from keras_weissi.symmetry.optimizer_state import _POWERS, optimizer_of, state_of

ALL = {
    "SGD": lambda: optimizers.SGD(0.01, momentum=0.9),
    "SGD, Nesterov": lambda: optimizers.SGD(0.01, momentum=0.9, nesterov=True),
    "SGD, no momentum": lambda: optimizers.SGD(0.01),
    "Adam": lambda: optimizers.Adam(0.01, epsilon=1e-30),
    "Adam, AMSGrad": lambda: optimizers.Adam(0.01, amsgrad=True, epsilon=1e-30),
    "AdamW": lambda: optimizers.AdamW(0.01, epsilon=1e-30),
    "Adamax": lambda: optimizers.Adamax(0.01, epsilon=1e-30),
    "Nadam": lambda: optimizers.Nadam(0.01, epsilon=1e-30),
    "Lamb": lambda: optimizers.Lamb(0.01, epsilon=1e-30),
    "Lion": lambda: optimizers.Lion(0.01),
    "RMSprop": lambda: optimizers.RMSprop(
        0.01, momentum=0.9, centered=True, epsilon=1e-30
    ),
    "Adagrad": lambda: optimizers.Adagrad(
        0.01, initial_accumulator_value=0.0, epsilon=1e-30
    ),
    "Adadelta": lambda: optimizers.Adadelta(0.01, epsilon=1e-30),
    "loss scaling": lambda: optimizers.LossScaleOptimizer(
        optimizers.SGD(0.01, momentum=0.9)
    ),
}


def variable_and_optimizer(make, value=(1.0, -2.0, 3.0), dtype=None):
    variable = keras.Variable(np.array(value), dtype=dtype, name="w")
    optimizer = make()
    optimizer.build([variable])
    return variable, optimizer


def step(optimizer, variable, gradient):
    optimizer.apply([keras.ops.cast(np.array(gradient), variable.dtype)], [variable])


def slots(optimizer, variable):
    return [to_numpy(slot) for slot, _ in state_of(optimizer)[id(variable)]]


@pytest.mark.parametrize("name", ALL)
def test_state_is_as_if_training_had_gone_on_with_the_new_weights(name):
    """Trains two copies, one of which is scaled on the way.

    Its gradients are divided by c from then on. What the optimizer remembers has to
    stay in the same proportion, whatever it computes from old and new gradients.
    """
    if name == "loss scaling" and BACKEND == "jax":
        pytest.skip("Keras takes it inside of a compiled step alone on JAX")
    c = 64.0
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(4, 3))
    plain, plain_optimizer = variable_and_optimizer(ALL[name])
    scaled, scaled_optimizer = variable_and_optimizer(ALL[name])
    for gradient in gradients[:2]:
        step(plain_optimizer, plain, gradient)
        step(scaled_optimizer, scaled, gradient)
    multiply_all([(scaled, c, "float32")], scaled_optimizer)
    np.testing.assert_array_equal(to_numpy(scaled), c * to_numpy(plain))
    for gradient in gradients[2:]:
        before = slots(plain_optimizer, plain)
        step(plain_optimizer, plain, gradient)
        step(scaled_optimizer, scaled, gradient / c)
    powers = [power for _, power in state_of(plain_optimizer)[id(plain)]]
    after = slots(plain_optimizer, plain)
    other = slots(scaled_optimizer, scaled)
    for old, one, two, power in zip(before, after, other, powers, strict=True):
        assert not np.array_equal(one, old)
        np.testing.assert_allclose(two, one * c**power, rtol=1e-5)


def test_every_optimizer_of_the_table_is_tested():
    assert {type(make()).__name__ for make in ALL.values()} == {
        *_POWERS,
        "LossScaleOptimizer",
    }


@pytest.mark.parametrize("name", ALL)
def test_keras_still_keeps_its_state_where_it_is_looked_for(name):
    make = ALL[name]
    variable, optimizer = variable_and_optimizer(make)
    found = {id(slot) for slot, _ in state_of(optimizer)[id(variable)]}
    arrays = {id(v) for v in optimizer.variables if tuple(v.shape) == (3,)}
    assert found == arrays


def test_moving_averages_and_accumulated_gradients_are_carried():
    def make():
        return optimizers.SGD(
            0.1, use_ema=True, ema_momentum=0.5, gradient_accumulation_steps=3
        )

    variable, optimizer = variable_and_optimizer(make)
    for _ in range(4):
        step(optimizer, variable, (1.0, 1.0, 1.0))
    before = {power: to_numpy(s) for s, power in state_of(optimizer)[id(variable)]}
    assert set(before) == {-1, 1} and np.abs(before[-1]).min() > 0
    multiply_all([(variable, 4.0, "float32")], optimizer)
    after = {power: to_numpy(s) for s, power in state_of(optimizer)[id(variable)]}
    np.testing.assert_array_equal(after[1], before[1] * 4)
    np.testing.assert_array_equal(after[-1], before[-1] / 4)


def test_unknown_optimizers_are_named_before_anything_is_changed():
    class MySGD(optimizers.SGD):
        pass

    class SGD(optimizers.SGD):  # the name alone does not make it known
        pass

    for kind in (MySGD, SGD, optimizers.Ftrl, optimizers.Adafactor):
        variable, optimizer = variable_and_optimizer(lambda kind=kind: kind(0.1))
        with pytest.raises(ValueError, match=f"`optimizer`.*Received: {kind.__name__}"):
            multiply_all([(variable, 2.0, "float32")], optimizer)
        assert to_numpy(variable).tolist() == [1.0, -2.0, 3.0]


def test_a_loss_scaling_of_the_users_own_is_refused():
    class Mine(optimizers.LossScaleOptimizer):
        pass

    with pytest.raises(ValueError, match="argument `optimizer`.*Received: Mine"):
        state_of(Mine(optimizers.SGD(0.1)))


def test_state_that_is_not_known_is_refused():
    variable, optimizer = variable_and_optimizer(lambda: optimizers.SGD(0.1))
    optimizer.add_variable_from_reference(variable, "novelty")
    with pytest.raises(ValueError, match="novelty"):
        state_of(optimizer)


def test_an_optimizer_that_has_not_trained_keeps_nothing():
    assert state_of(optimizers.Adam()) == state_of(None) == {}


def test_an_optimizer_of_another_model_is_refused():
    def make():
        model = keras.Sequential([keras.Input((3,)), layers.Dense(2), layers.Dense(1)])
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())
        model.compile(optimizer, "mse")
        return model

    model, other = make(), make()
    balance_scales(model, other.optimizer)  # it is of none yet
    for variable in model.trainable_variables:
        variable.assign(variable + 1.0)
    before = [to_numpy(v) for v in model.weights]
    other.optimizer.build(other.trainable_variables)
    with pytest.raises(ValueError, match="trains model.*: Adam, which trains 4 var"):
        balance_scales(model, other.optimizer)
    for value, variable in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(variable), value)
    model.optimizer.build(model.trainable_variables)
    balance_scales(model, model.optimizer)
    assert host_norm(model.weights[0]) == pytest.approx(
        host_norm(model.weights[2]), rel=1e-6
    )


def test_the_argument_for_the_optimizer():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    other = optimizers.Adam()
    assert optimizer_of(model, True) is None
    model.compile("sgd", "mse")
    assert optimizer_of(model, True) is model.optimizer
    assert optimizer_of(model, False) is None
    assert optimizer_of(model, other) is other
    with pytest.raises(ValueError, match="argument `optimizer`.*Received: .*'sgd'"):
        optimizer_of(model, "sgd")


@pytest.mark.parametrize(
    ("value", "dtype", "factor"),
    [
        ((1e30, 1.0), "float32", 1e10),
        ((1e-30, 1e-31), "float32", 1e-10),
        ((1e4, 1.0), "float16", 10.0),
        ((1.0, -np.inf), "float32", 2.0),
        ((1.0, np.nan), "float32", 2.0),
    ],
)
def test_what_leaves_the_range_of_its_dtype_is_refused_as_a_whole(value, dtype, factor):
    fine = keras.Variable(np.ones(2), name="fine")
    variable = keras.Variable(np.array(value), dtype=dtype, name="extreme")
    with pytest.raises(ValueError, match=f"extreme.*range of {dtype}"):
        multiply_all([(fine, 2.0, "float32"), (variable, factor, dtype)])
    assert to_numpy(fine).tolist() == [1.0, 1.0]


def test_zeros_and_vanishing_state_are_no_obstacle():
    variable, optimizer = variable_and_optimizer(
        lambda: optimizers.Adam(0.1), (0.0, 0.0)
    )
    step(optimizer, variable, (1e-15, 1e-15))
    variable.assign([0.0, 0.0])
    multiply_all([(variable, 1e10, "float32")], optimizer)
    assert to_numpy(variable).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_rounded_once(dtype):
    rng = np.random.default_rng(0)
    variable = keras.Variable(rng.normal(size=2000), dtype=dtype)
    value = to_numpy(keras.ops.cast(variable.value, "float32")).astype("float64")
    factor = 1.2345678
    multiply_all([(variable, factor, dtype)])
    after = to_numpy(keras.ops.cast(variable.value, "float32"))
    expected = keras.ops.cast(
        keras.ops.convert_to_tensor((value * factor).astype("float32")), dtype
    )
    expected = to_numpy(keras.ops.cast(expected, "float32"))
    np.testing.assert_array_equal(after, expected)
    assert variable.dtype == dtype


def test_float64_is_exact():
    with float64():
        variable = keras.Variable(np.array([1.0 / 3, 1e-9]), dtype="float64")
        multiply_all([(variable, np.pi, "float64")])
        np.testing.assert_array_equal(
            to_numpy(variable), np.array([1.0 / 3, 1e-9]) * np.pi
        )


def test_a_factor_of_one_touches_nothing(monkeypatch):
    variable, optimizer = variable_and_optimizer(ALL["SGD"])
    monkeypatch.setattr(type(variable), "assign", lambda *_: pytest.fail("assigned"))
    multiply_all([(variable, 1.0, "float32")], optimizer)


def test_what_is_zero_stays_so_whatever_the_factor():
    variable, optimizer = variable_and_optimizer(
        lambda: optimizers.Adam(0.1), np.ones(2**20 + 1)
    )
    multiply_all([(variable, 1e-20, "float32")], optimizer)  # of the velocity: 1e40
    for slot, _ in state_of(optimizer)[id(variable)]:
        assert not to_numpy(slot).any()


def test_a_large_variable_is_scaled_as_a_small_one():
    value = np.random.default_rng(0).normal(size=(2**10, 2**10 + 1)).astype("float32")
    large, small = keras.Variable(value), keras.Variable(value[:3])
    for factor in (3.0, 1e-3):
        multiply_all([(large, factor, "float32"), (small, factor, "float32")])
    np.testing.assert_allclose(to_numpy(large)[:3], to_numpy(small), rtol=1e-6)
    np.testing.assert_allclose(to_numpy(large), value * np.float64(3e-3), rtol=1e-6)
    tiny = keras.Variable(np.full((2**10, 2**10 + 1), 1e-30, "float32"))
    multiply_all([(tiny, 1e40, "float32")])  # a factor beyond the range of float32
    np.testing.assert_allclose(to_numpy(tiny), 1e10, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_pieces_come_together_again(monkeypatch, dtype):
    monkeypatch.setattr("keras_weissi.model.kernels.PIECE", 16)
    monkeypatch.setattr(apply_factors, "PIECE", 16)
    value = np.arange(35.0).reshape(7, 5)
    for factor in (3.0, 0.5):
        variable = keras.Variable(value, dtype=dtype)
        multiply_all([(variable, factor, dtype)])
        after = to_numpy(keras.ops.cast(variable.value, "float32"))
        np.testing.assert_array_equal(after, factor * value)


def test_state_that_would_overflow_is_refused_and_state_may_vanish():
    for gradient, factor in ((1e10, 1e-15), (1e-15, 1e10)):
        variable, optimizer = variable_and_optimizer(
            lambda: optimizers.Adam(0.1), dtype="float32"
        )
        step(optimizer, variable, 3 * (gradient,))
        before = to_numpy(variable) + 0
        if factor < 1:
            with pytest.raises(ValueError, match="velocity.*range of float32"):
                multiply_all([(variable, factor, "float32")], optimizer)
            np.testing.assert_array_equal(to_numpy(variable), before)
        else:
            multiply_all([(variable, factor, "float32")], optimizer)
            np.testing.assert_allclose(to_numpy(variable), before * factor, rtol=1e-6)


def test_float64_is_scaled_in_float64():
    value = np.random.default_rng(0).normal(size=(2**10, 2**10 + 1))
    with float64():
        large = keras.Variable(value, dtype="float64")
        multiply_all([(large, 3.3, "float64")])
        assert to_numpy(large).dtype == "float64"
        np.testing.assert_allclose(to_numpy(large), value * 3.3, rtol=1e-15)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_what_was_done_is_undone_if_it_is_interrupted(monkeypatch, error):
    variable, optimizer = variable_and_optimizer(lambda: optimizers.Adam(0.1))
    optimizer.apply([keras.ops.convert_to_tensor([1.0, 2.0, 3.0])], [variable])
    other = keras.Variable([5.0])
    watched = [variable, other, *optimizer.variables]
    before = [to_numpy(v).copy() for v in watched]
    multiply, calls = apply_factors._multiply, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise error
        multiply(*arguments)

    monkeypatch.setattr(apply_factors, "_multiply", interrupted)
    with pytest.raises(error):
        multiply_all([(variable, 8.0, "float32"), (other, 3.0, "float32")], optimizer)
    assert len(calls) == 7  # three are undone
    for one, two in zip(before, watched, strict=True):
        np.testing.assert_allclose(one, to_numpy(two), rtol=1e-6)
