"""Properties that hold for every kernel and every argument, on random examples.

Each test runs on a part of its examples by default, and on all of them among the slow
tests. They are the same every time.
"""

import fractions
import json
import math

import keras
import numpy as np
import pytest
from helpers import (
    norm_of,
    outputs_of,
    reference_penalty,
    relative_error,
    to_numpy,
    value_and_gradient,
)
from hypothesis import strategies as st
from keras import layers
from random_examples import COUNTS, examples

from keras_weissi import (
    WEISSI,
    NormLogger,
    ScaleBalancer,
    balance_scales,
    largest_log_norm,
    regularize,
    shift_scales,
)

pytestmark = pytest.mark.filterwarnings("ignore:(regularize|The regularizer of) ")


def test_there_are_ten_thousand_examples():
    assert sum(COUNTS[__name__].values()) >= 10_000, COUNTS[__name__]


# Few shapes, as backends compile for each.
SHAPES = [(), (1,), (5,), (2, 3), (2, 1, 3), (1, 2, 2, 2), (2, 1, 2, 1, 2)]
NARROW = ["float32", "float32", "float16", "bfloat16"]
# The distance from 1 to the next number of the gradient's dtype.
EPSILONS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 0.0, "float64": 0.0}
# The square of a larger norm is no float32 number, and the norm counts as this.
LARGEST_NORM = math.sqrt(np.finfo("float32").max)
# Smaller float32 numbers may be taken for 0, squares and reciprocals among them.
TINY = 1.2e-38


class Case:
    """A kernel: `exact` holds what it is in its dtype, in float64."""

    def __init__(self, dtype, w):
        self.dtype = dtype
        self.computed = "float64" if dtype == "float64" else "float32"
        if dtype == "float16":
            w = np.clip(w, -65504, 65504).astype("float16")
            w = np.where(
                np.abs(w) < 6.2e-5, 0, w
            )  # has fewer digits, or is taken for 0
        elif dtype != "float64":
            w = np.asarray(w, "float32")
        if dtype == "bfloat16":
            w = (w.view("uint32") & np.uint32(0xFFFF0000)).view("float32")
        if dtype != "float64":
            w = np.where(np.abs(w) < TINY, 0, w)
        self.exact = np.asarray(w, "float64")
        self.size = self.exact.size
        self.norm = float(np.sqrt(np.sum(self.exact**2)))
        self.one_norm = float(np.abs(self.exact).sum())
        self.rounding = 1e-13 if dtype == "float64" else 1e-6

    def __repr__(self):
        return f"Case({self.dtype!r}, {self.exact!r})"

    def times(self, factor):
        return Case(self.dtype, self.exact * factor)

    def evaluate(self, regularizer):
        """Returns the value and the gradient, in float64."""
        if not (regularizer.log_norm or regularizer.direction_l1):
            # Autodiff has nothing to differentiate.
            return float(to_numpy(regularizer(self.exact))), np.zeros_like(self.exact)
        value, gradient = value_and_gradient(
            lambda x: regularizer(keras.ops.cast(x, self.dtype)),
            self.exact.astype(self.computed),
        )
        assert value.shape == () and value.dtype == self.computed
        assert gradient.shape == self.exact.shape
        return float(value), gradient.astype("float64")

    def lost(self, min_norm):
        """The most that squares taken for 0 can be of the square of `min_norm`."""
        return 0.0 if self.dtype == "float64" else self.size * TINY / min_norm**2


def direction(shape, seed, spread):
    """A kernel of norm 1, some of whose elements may be 0."""
    rng = np.random.default_rng(seed)
    w = rng.choice([-1.0, 1.0], shape) * 10.0 ** (-spread * rng.random(shape))
    if seed % 3 == 0 and w.size > 1:
        w.ravel()[rng.integers(w.size)] = 0.0
    return np.asarray(w / np.sqrt(np.sum(w**2)))


directions = st.builds(
    direction,
    st.sampled_from(SHAPES),
    st.integers(0, 2**32 - 1),
    st.floats(0.0, 3.0),
)


@st.composite
def settings_and_kernels(draw, dtypes):
    """The arguments of a WEISSI, and a kernel of any norm, often near the floor."""
    dtype = draw(st.sampled_from(dtypes))
    low, high = (-4.0, 4.8) if dtype == "float16" else (-38.0, 38.0)
    floor = draw(st.just(-1.0) | st.floats(-18.0, 18.0))
    near = st.floats(max(low, min(floor - 2, high)), min(high, max(floor + 2, low)))
    norm = 10.0 ** draw(near | st.floats(low, high))
    w = draw(directions) * draw(st.sampled_from([norm, norm, norm, norm, 0.0]))
    min_norm = min(max(10.0**floor, 1e-18), 1e18)
    most = math.log10(min(1e12, 1e36 * min_norm**2)) - 1e-9
    coefficients = st.just(0.0) | st.floats(-6.0, most).map(lambda x: 10.0**x)
    return draw(coefficients), draw(coefficients), min_norm, Case(dtype, w)


def expected_value(case, log_norm, direction_l1, min_norm):
    if case.dtype == "float64" or case.norm <= LARGEST_NORM:
        return reference_penalty(case.exact, log_norm, direction_l1, min_norm)
    ratio = min(case.one_norm / LARGEST_NORM, math.sqrt(case.size))
    return log_norm * math.log(LARGEST_NORM) + direction_l1 * ratio


def expected_gradient(case, log_norm, direction_l1, min_norm):
    w, norm = case.exact, max(case.norm, min_norm)
    gradient = log_norm * w / norm**2 + direction_l1 * np.sign(w) / norm
    if case.norm > min_norm:
        gradient = gradient - direction_l1 * case.one_norm * w / norm**3
    return gradient


@examples(
    600,
    wide={"drawn": settings_and_kernels(["float64"])},
    drawn=settings_and_kernels(NARROW),
)
def test_value_and_gradient_are_finite_and_the_closed_form(drawn):
    log_norm, direction_l1, min_norm, case = drawn
    value, gradient = case.evaluate(WEISSI(log_norm, direction_l1, min_norm))
    lost = case.lost(min_norm)
    log = abs(math.log(max(case.norm, min_norm)))
    root = math.sqrt(case.size)
    tolerance = (case.rounding + lost) * (log_norm * (2 + log) + direction_l1 * root)
    expected = expected_value(case, log_norm, direction_l1, min_norm)
    assert math.isfinite(value) and abs(value - expected) <= tolerance

    expected = expected_gradient(case, log_norm, direction_l1, min_norm)
    if case.dtype == "float16" and np.abs(expected).max() > 6e4:
        return  # it is no float16 number
    assert np.isfinite(gradient).all()
    is_beyond = case.dtype != "float64" and case.norm > 0.99 * LARGEST_NORM
    is_at_the_floor = abs(case.norm / min_norm - 1) < 1e-4 + lost
    if is_beyond or (is_at_the_floor and direction_l1):
        return  # the gradient jumps there
    norm = max(case.norm, min_norm)
    largest = np.abs(case.exact).max()
    scale = log_norm * largest / norm**2 + direction_l1 * 2 * root / norm
    tolerance = (10 * case.rounding + 3 * lost) * scale
    tolerance += EPSILONS[case.dtype] * np.abs(expected)
    if case.dtype != "float64":
        weight = 1 + log_norm + direction_l1 * root
        tolerance += 6.2e-5 if case.dtype == "float16" else TINY
        tolerance += 4 * TINY * largest * weight
    assert (np.abs(gradient - expected) <= tolerance).all()


@examples(
    250,
    wide={"drawn": settings_and_kernels(["float64"])},
    drawn=settings_and_kernels(NARROW),
)
def test_the_sign_of_a_kernel_does_not_count(drawn):
    *arguments, case = drawn
    value, gradient = case.evaluate(WEISSI(*arguments))
    opposite_value, opposite_gradient = case.times(-1.0).evaluate(WEISSI(*arguments))
    assert value == opposite_value
    np.testing.assert_array_equal(gradient, -opposite_gradient)


@st.composite
def shifts(draw, dtypes):
    """A kernel above the floor, and a power of 2 that leaves it there, both exact."""
    dtype = draw(st.sampled_from(dtypes))
    low, high = (0.0, 4.0) if dtype == "float16" else (-12.0, 15.0)
    floor = draw(st.floats(low, high - 1))
    before, after = (draw(st.floats(floor + 0.1, high)) for _ in range(2))
    power = math.trunc((after - before) * math.log2(10))
    log_norm = 10.0 ** draw(st.floats(-3.0, 3.0))
    direction_l1 = draw(st.just(0.0) | st.floats(0.0, 1.0))
    w = direction(draw(st.sampled_from(SHAPES)), draw(st.integers(0, 2**32 - 1)), 1.0)
    return log_norm, direction_l1, 10.0**floor, Case(dtype, w * 10.0**before), power


@examples(250, wide={"drawn": shifts(["float64"])}, drawn=shifts(NARROW))
def test_a_power_of_two_adds_its_log_and_divides_the_gradient(drawn):
    log_norm, direction_l1, min_norm, case, power = drawn
    shifted = case.times(2.0**power)
    assert min(case.norm, shifted.norm) > min_norm
    np.testing.assert_array_equal(shifted.exact, case.exact * 2.0**power)
    before, gradient = case.evaluate(WEISSI(log_norm, direction_l1, min_norm))
    after, divided = shifted.evaluate(WEISSI(log_norm, direction_l1, min_norm))
    logs = sum(abs(math.log(c.norm)) for c in (case, shifted))
    tolerance = log_norm * (1 + logs) + direction_l1 * math.sqrt(case.size)
    expected = log_norm * power * math.log(2)
    assert abs(after - before - expected) <= case.rounding * tolerance
    if case.dtype != "float16":  # which is out of numbers
        scale = (log_norm + 2 * direction_l1 * math.sqrt(case.size)) / case.norm
        tolerance = EPSILONS[case.dtype] * np.abs(gradient)
        tolerance += 2 * case.rounding * scale
        assert (np.abs(divided * 2.0**power - gradient) <= tolerance).all()


@st.composite
def kernels_about_the_floor(draw, dtypes):
    dtype = draw(st.sampled_from(dtypes))
    low, high = (0.0, 4.0) if dtype == "float16" else (-14.0, 17.9)
    min_norm = 10.0 ** draw(st.just(-1.0 if low < 0 else 0.0) | st.floats(low, high))
    w = direction(draw(st.sampled_from(SHAPES)), draw(st.integers(0, 2**32 - 1)), 1.0)
    away = 1e-4 + 2 * EPSILONS[dtype]
    pair = [Case(dtype, min_norm * (1 + sign * away) * w) for sign in (-1, 1)]
    log_norm = 10.0 ** draw(st.floats(-1.0, 3.0))
    direction_l1 = draw(st.just(0.0) | st.floats(0.0, 1.0))
    return log_norm, direction_l1, min_norm, pair, away


@examples(
    250,
    wide={"drawn": kernels_about_the_floor(["float64"])},
    drawn=kernels_about_the_floor(NARROW),
)
def test_nothing_jumps_at_the_floor(drawn):
    log_norm, direction_l1, min_norm, (below, above), away = drawn
    assert below.norm < min_norm < above.norm
    root = math.sqrt(below.size)
    one, two = (c.evaluate(WEISSI(log_norm, direction_l1, min_norm)) for c in drawn[3])
    size = log_norm * (2 + abs(math.log(min_norm))) + direction_l1 * root
    tolerance = 4 * away * (log_norm + direction_l1 * root) + below.rounding * size
    assert abs(one[0] - two[0]) <= tolerance
    # The gradient of the direction term does, by its part along the kernel.
    if direction_l1:
        one, two = (c.evaluate(WEISSI(log_norm, 0.0, min_norm)) for c in drawn[3])
    tolerance = 8 * away * log_norm / min_norm
    tolerance += 6.2e-5 if below.dtype == "float16" else 0.0
    assert (np.abs(one[1] - two[1]) <= tolerance).all()


@examples(
    800,
    wide={
        "w": directions,
        "dtype": st.just("float64"),
        "floor": st.floats(-18.0, 17.9),
        "above": st.floats(1e-4, 20.0),
        "power": st.floats(-6.0, 0.0),
    },
    w=directions,
    dtype=st.sampled_from(["float32", "bfloat16"]),
    floor=st.floats(-16.0, 17.9),
    above=st.floats(1e-2, 20.0),
    power=st.floats(-6.0, 4.0),
)
def test_the_direction_term_is_between_1_and_the_root_of_the_size(
    w, dtype, floor, above, power
):
    case = Case(dtype, w * 10.0 ** (floor + above))
    coefficient = 10.0**power
    assert case.norm > 10.0**floor
    x = keras.ops.cast(case.exact.astype(case.computed), dtype)
    value = float(to_numpy(WEISSI(0.0, coefficient, 10.0**floor)(x)))
    most = math.sqrt(case.size)
    rounding = 2 * case.rounding
    assert 1 - rounding <= value / coefficient <= most * (1 + rounding)


@examples(
    1000,
    drawn=settings_and_kernels(["float32"]),
    kind=st.sampled_from([float, np.float64, fractions.Fraction]),
)
def test_a_config_makes_the_same_regularizer_again(drawn, kind):
    arguments = dict(zip(("log_norm", "direction_l1", "min_norm"), drawn, strict=False))
    original = WEISSI(**{name: kind(value) for name, value in arguments.items()})
    assert original.get_config() == arguments
    text = json.dumps(keras.regularizers.serialize(original))
    for copy in (
        WEISSI.from_config(json.loads(json.dumps(original.get_config()))),
        keras.regularizers.deserialize(json.loads(text)),
    ):
        assert type(copy) is WEISSI and vars(copy) == arguments


# From here on: arguments of any kind.


class BoomError(Exception):
    """What a function of the user raises."""


def boom(layer):
    raise BoomError


class Refusing(keras.regularizers.Regularizer):
    def __call__(self, x):
        raise BoomError

    def get_config(self):
        return {}


R = WEISSI(0.1, 0.01, 0.2)
WRONG_CALLS = [len, lambda: True, lambda one, two: True]
FUNCTIONS = [
    *WRONG_CALLS,
    boom,
    lambda layer: layer.name,
    lambda layer: None,
    lambda layer: R if layer.name == "h1" else None,
    lambda layer: 3,
]
CLASSES = [layers.Dense, layers.LSTM, keras.Model, WEISSI, int, object, type, BoomError]
NAMES = ["h0", "h1", "inner", "inner/h2", "h2", "bn", "embedding", "attention", "x", ""]
REGULARIZERS = [
    R,
    WEISSI(0.3),
    keras.regularizers.L2(0.1),
    keras.regularizers.Regularizer(),
    keras.regularizers.OrthogonalRegularizer(),
    Refusing(),
    "l2",
    "WEISSI",
]
numbers = (
    st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), -0.0, 1e308, 5e-324, 1j])
    | st.sampled_from([np.float16(2), np.int8(-128), np.bool_(True), np.longdouble(2)])
    | st.floats()
    | st.fractions()
    | st.just(fractions.Fraction(1, 10**400))
)
json_leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
json_values = st.recursive(
    json_leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=5,
)
leaves = (
    st.none()
    | numbers
    | st.text(max_size=3)
    | st.sampled_from(NAMES)
    | st.sampled_from(REGULARIZERS)
    | st.sampled_from(FUNCTIONS)
    | st.sampled_from(CLASSES)
    | st.sampled_from([b"h0", range(2), ..., np.zeros(2), np.array(["h0"]), {}, ()])
)
junk = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from([*NAMES, 1, None]), inner, max_size=3)
    ),
    max_leaves=5,
)


def contains(value, wanted):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return any(contains(element, wanted) for element in value)
    return any(value is one for one in wanted)


def called(function, *arguments, **named):
    """Returns whether it went well, or else was refused as it is documented."""
    try:
        function(*arguments, **named)
    except ValueError as error:
        message = str(error)
        assert message.startswith(("Cannot multiply ", "Invalid value for argument `"))
        assert "Expected" in message and "Received: " in message, message
        return False
    except (TypeError, BoomError) as error:
        # A function that is called as documented may raise what it likes.
        culprits = [boom] if isinstance(error, BoomError) else WRONG_CALLS
        assert contains([*arguments, *named.values()], culprits), repr(error)
        return False
    return True


@examples(
    2500,
    config=json_values
    | st.dictionaries(
        st.sampled_from(["log_norm", "direction_l1", "min_norm"]),
        st.floats(0.0, 1.0) | numbers | json_values,
    ),
)
def test_any_config_is_taken_or_refused(config):
    names = {"log_norm", "direction_l1", "min_norm"}
    try:
        regularizer = WEISSI.from_config(config)
    except TypeError:
        assert not isinstance(config, dict) or not set(config) <= names
    except ValueError as error:
        name = str(error).split("`")[1]
        assert name in config and f"Received: {name}={config[name]!r}" in str(error)
    else:
        again = json.loads(json.dumps(regularizer.get_config()))
        assert vars(WEISSI.from_config(again)) == vars(regularizer)
        for name, value in config.items():
            assert again[name] == float(value)


def attended():
    """A model with all that `regularize` treats in a way of its own."""
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="h2")], name="inner"
    )
    inputs = keras.Input((3,), dtype="int32")
    x = layers.Embedding(5, 4, name="embedding")(inputs)
    x = layers.Dense(4, "relu", kernel_regularizer="l2", name="h0")(x)
    x = layers.BatchNormalization(name="bn")(x)
    attention = layers.MultiHeadAttention(1, 2, name="attention")
    x = layers.TimeDistributed(inner)(attention(x, x))
    x = layers.Dense(2, kernel_regularizer=WEISSI(0.3), name="h1")(x)
    return keras.Model(inputs, x)


def slots_of(model):
    """Lists everything that says which regularizer acts: owner, attribute, value."""
    owners = [*model._flatten_layers(), *model.weights]
    return [
        (owner, name, getattr(owner, name))
        for owner in owners
        for name in dir(type(owner)) + list(vars(owner))
        if name.endswith("regularizer") and not name.startswith("__")
    ]


MADE = {}


def made(build):
    """Makes a model once, and returns it with what `build` returned with it."""
    if build not in MADE:
        MADE[build] = build()
    return MADE[build]


def regularized():
    model = attended()
    return model, slots_of(model), model.get_weights()


usual = st.sampled_from(REGULARIZERS) | st.dictionaries(
    st.sampled_from(NAMES), st.sampled_from(REGULARIZERS), min_size=1, max_size=2
)
choices = st.none() | st.sampled_from(NAMES[:8]) | st.lists(st.sampled_from(NAMES[:8]))


@examples(
    1200,
    marks=[pytest.mark.one_backend],
    regularizer=usual | junk,
    layers=choices | junk,
    include_normalized=st.booleans() | junk,
    replace=st.booleans() | junk,
    others=st.dictionaries(st.just("layer"), junk),
)
def test_regularize_takes_or_refuses_any_arguments(regularizer, others, **arguments):
    model, slots, weights = made(regularized)
    if others:
        with pytest.raises(TypeError, match="unexpected keyword argument 'layer'"):
            regularize(model, regularizer, **others)
        return
    try:
        if not called(regularize, model, regularizer, **arguments):
            for owner, name, value in slots:
                assert getattr(owner, name) is value, (owner, name)
        else:
            assert type(arguments["include_normalized"]) is bool
            assert type(arguments["replace"]) is bool
            assert not any(isinstance(v.regularizer, Refusing) for v in model.weights)
        for before, after in zip(weights, model.get_weights(), strict=True):
            np.testing.assert_array_equal(before, after)
    finally:
        for owner, name, value in slots:
            if getattr(owner, name) is not value:
                setattr(owner, name, value)


@examples(50, model=junk)
def test_regularize_refuses_what_is_no_model(model):
    assert not called(regularize, model, R)


@examples(1000, classes=st.integers(-5, 10**6) | numbers | junk)
def test_any_number_of_classes_is_taken_or_refused(classes):
    if called(largest_log_norm, classes):
        limit = largest_log_norm(classes)
        # It is Lambert's function of this, in logarithms as it may be large.
        expected = math.log(int(classes) - 1) - 1
        assert limit + math.log(limit) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def two_ways():
    """A model whose ways from the input to the output are of different lengths."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    x = layers.Dense(3, "relu", name="a")(inputs)
    y = layers.Dense(3, "relu", name="b")(inputs)
    y = layers.Dense(3, "relu", name="c")(layers.Dense(3, "relu", name="d")(y))
    x = layers.Dense(3, "relu", name="e")(x)
    model = keras.Model(inputs, layers.Dense(2, name="out")(layers.add([x, y])))
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    model.fit(x, x[:, :2], verbose=0)
    state = [to_numpy(v.value) + 0 for v in model.optimizer.variables]
    return model, x, outputs_of(model, x), model.get_weights(), state


def unchanged(model, weights, state):
    now = [
        *model.get_weights(),
        *(to_numpy(v.value) for v in model.optimizer.variables),
    ]
    for before, after in zip([*weights, *state], now, strict=True):
        np.testing.assert_array_equal(before, after)


factors = st.sampled_from([0.5, 8.0, 1, 1e-200, 1e200, 1e-320]) | numbers | leaves
consistent = st.builds(
    lambda one, two, three: {
        "a": one,
        "e": three / one,
        "b": two,
        "d": 1.0,
        "c": three / two,
        "out": 1 / three,
    },
    *[st.sampled_from([0.25, 1.0, 2.0, 1e30, 1e-30]) for _ in range(3)],
)


@examples(
    600,
    factors=consistent
    | st.dictionaries(st.sampled_from(["a", "b", "c", "d", "e", "out", 1]), factors)
    | junk,
    optimizer=st.booleans() | leaves,
)
def test_shift_scales_takes_or_refuses_any_arguments(factors, optimizer):
    model, x, outputs, weights, state = made(two_ways)
    if not called(shift_scales, model, factors, optimizer):
        unchanged(model, weights, state)
        return
    assert type(optimizer) is bool
    assert relative_error(outputs_of(model, x), outputs) < 1e-5
    model.set_weights(weights)
    for variable, value in zip(model.optimizer.variables, state, strict=True):
        variable.assign(value)


@examples(
    200,
    powers=st.lists(st.floats(-38.0, 37.0), min_size=6, max_size=6)
    | st.lists(st.sampled_from([-38.0, 37.0]), min_size=6, max_size=6)
    | st.lists(st.floats(-3.0, 3.0), min_size=6, max_size=6),
    optimizer=st.booleans() | st.booleans() | leaves,
)
def test_balance_scales_takes_or_refuses_any_arguments(powers, optimizer):
    model, *_, weights, state = made(two_ways)
    kernels = [layer.kernel for layer in model.layers if layer.weights]
    for kernel, power in zip(kernels, powers, strict=True):
        kernel.assign(to_numpy(kernel.value) * np.float32(10.0**power))
    before = model.get_weights()
    total = sum(norm_of(kernel) ** 2 for kernel in kernels)
    if called(balance_scales, model, optimizer):
        assert type(optimizer) is bool
        assert sum(norm_of(kernel) ** 2 for kernel in kernels) <= total * (1 + 1e-5)
    else:
        unchanged(model, before, state)
    model.set_weights(weights)
    for variable, value in zip(model.optimizer.variables, state, strict=True):
        variable.assign(value)


@examples(
    1500,
    layers=choices | junk,
    update_freq=st.just("epoch") | st.integers() | junk,
    progress_bar=st.booleans() | junk,
)
def test_a_logger_takes_or_refuses_any_arguments(layers, update_freq, progress_bar):
    if called(NormLogger, layers, update_freq, progress_bar):
        assert type(progress_bar) is bool
        assert type(update_freq) is not bool
        assert isinstance(update_freq, str) or update_freq >= 1


@examples(1000, every=st.integers() | junk, optimizer=st.booleans() | junk)
def test_a_balancer_takes_or_refuses_any_arguments(every, optimizer):
    if called(ScaleBalancer, every, optimizer):
        assert type(optimizer) is bool and type(every) is not bool and every >= 1
