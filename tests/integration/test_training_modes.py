"""Every way to train: precision, compilation, optimizers, loops of one's own."""

import contextlib
import re

import keras
import numpy as np
import pytest
from helpers import BACKEND, ROOT, float64, reference_penalty, to_numpy
from keras import layers

from keras_weissi import WEISSI, NormLogger, ScaleBalancer

X = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
Y = X[:, :1] - 0.5 * X[:, 1:2]
# The rate is a float32 number, as Keras keeps it, also in float64.
RATE, LOG_NORM, DIRECTION = 0.0625, 0.1, 0.01
EPOCHS, BATCH = 2, 8


def make_model(dtype=None, model_class=keras.Sequential):
    regularizer = WEISSI(LOG_NORM, DIRECTION)
    model = model_class(
        [
            keras.Input((4,), dtype=dtype and dtype.removeprefix("mixed_")),
            layers.Dense(8, "relu", name="hidden", kernel_regularizer=regularizer),
            layers.Dense(1, name="out", kernel_regularizer=regularizer),
        ]
    )
    # Biases that are not 0 from the start.
    for name, value in (("hidden", 0.1), ("out", -0.2)):
        bias = model.get_layer(name).bias
        bias.assign(np.full(bias.shape, value))
    return model


def wide(variable):
    dtype = "float64" if variable.dtype == "float64" else "float32"
    value = to_numpy(keras.ops.cast(variable.value, dtype))
    return value.astype("float64")


def values_of(model):
    return [wide(v) for v in model.trainable_variables]


def gradient_by_hand(weights, x, y, log_norm, direction):
    """The gradient of mse plus penalties of a two-layer ReLU network, in float64."""
    a, a0, b, b0 = weights
    hidden = np.maximum(x @ a + a0, 0.0)
    error = 2.0 * (hidden @ b + b0 - y) / y.size
    back = (error @ b.T) * (hidden > 0)
    gradients = [x.T @ back, back.sum(0), hidden.T @ error, error.sum(0)]
    for i in (0, 2):
        w, norm = weights[i], np.linalg.norm(weights[i])
        gradients[i] = gradients[i] + log_norm * w / norm**2
        slope = np.sign(w) / norm - np.abs(w).sum() * w / norm**3
        gradients[i] = gradients[i] + direction * slope
    return gradients


def train_by_hand(
    weights,
    x=X,
    y=Y,
    batch=BATCH,
    epochs=EPOCHS,
    rate=RATE,
    log_norm=LOG_NORM,
    direction=DIRECTION,
    accumulate=1,
    momentum=None,
    overwrite=None,
):
    """SGD in NumPy; returns the weights after each epoch, and their EMA."""
    weights = [np.array(w, "float64") for w in weights]
    x, y = x.astype("float64"), y.astype("float64")
    total, average, after = 0, None, []
    step = 0
    for _ in range(epochs):
        for start in range(0, len(x), batch):
            part = slice(start, start + batch)
            step += 1
            new = gradient_by_hand(weights, x[part], y[part], log_norm, direction)
            total = new if total == 0 else [t + g for t, g in zip(total, new)]  # noqa: B905
            if step % accumulate == 0:
                weights = [
                    w - rate * t / accumulate
                    for w, t in zip(weights, total, strict=True)
                ]
                total = 0
            if momentum is not None:
                old = weights if average is None else average
                average = [
                    momentum * o + (1 - momentum) * w
                    for o, w in zip(old, weights, strict=True)
                ]
                if overwrite and step % overwrite == 0:
                    weights = average
        after.append(weights)
    return after, average


def expected_of(weights, log_norm=LOG_NORM, direction=DIRECTION):
    norms = [np.linalg.norm(weights[i]) for i in (0, 2)]
    penalty = sum(reference_penalty(weights[i], log_norm, direction) for i in (0, 2))
    return {
        "norm/hidden": norms[0],
        "norm/out": norms[1],
        "norm_product": norms[0] * norms[1],
        "log_norm_product": np.log(norms).sum(),
        "regularization_loss": penalty,
    }


def assert_logged(rows, after, tolerance, **coefficients):
    """The rows of a log are those of the weights after each epoch."""
    assert len(rows) == len(after)
    for row, weights in zip(rows, after, strict=True):
        for key, value in expected_of(weights, **coefficients).items():
            assert row[key] == pytest.approx(value, rel=tolerance, abs=tolerance), key


class Weights(keras.callbacks.Callback):
    """Takes copies of the weights at the end of every epoch."""

    def on_train_begin(self, logs=None):
        self.after = []

    def on_epoch_end(self, epoch, logs=None):
        self.after.append(values_of(self.model))


def fit(model, x=X, y=Y):
    logger, weights = NormLogger(), Weights()
    model.fit(
        x,
        y,
        batch_size=BATCH,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[logger, weights],
    )
    return logger.record[1:], weights.after


@contextlib.contextmanager
def precision(policy, floatx="float32"):
    old = keras.config.dtype_policy()
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)
    try:
        with float64() if floatx == "float64" else contextlib.nullcontext():
            yield
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy(old)


# The second figure is how far eight steps may lead away from those in float64. All
# norms, whatever the dtype of the weights, are those of these weights to the first.
PRECISIONS = {
    # On PyTorch, Keras takes them in less, also without any regularizer.
    "float64": (1e-13, 1e-8 if BACKEND == "torch" else 1e-12),
    "float32": (1e-6, 1e-5),
    "bfloat16": (1e-6, 3e-2),
    "float16": (1e-6, 5e-3),
    "mixed_bfloat16": (1e-6, 5e-3),
    "mixed_float16": (1e-6, 1e-3),
}


@pytest.mark.parametrize("policy", PRECISIONS)
def test_the_log_is_right_in_every_precision(policy):
    of_its_weights, of_the_steps = PRECISIONS[policy]
    floatx = "float64" if policy == "float64" else "float32"
    with precision(policy, floatx):
        model = make_model(policy)
        optimizer = keras.optimizers.SGD(RATE)
        if policy == "mixed_float16":
            # The scale that Keras starts with overflows, and steps are left out.
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, 256.0)
        model.compile(optimizer, "mse")
        start = values_of(model)
        rows, after = fit(model, X.astype(floatx), Y.astype(floatx))
        stored = policy if "mixed" not in policy else "float32"
        assert model.get_layer("out").kernel.dtype == stored
    assert_logged(rows, after, of_its_weights)
    assert_logged(rows, train_by_hand(start)[0], of_the_steps)


# Without its own switch, JAX keeps float64 variables in float32, and says so.
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype float64:UserWarning")
@pytest.mark.parametrize("regularizer", ["l2", WEISSI(0.1, 0.01)])
def test_float64_layers_with_a_float32_loss_go_as_far_as_with_l2(regularizer):
    """On TensorFlow, Keras does not add a float64 penalty to a float32 loss."""
    with precision("float64"):
        dense = layers.Dense(1, kernel_regularizer=regularizer, name="dense")
        model = keras.Sequential([keras.Input((4,)), dense])
        model.compile("sgd", "mse")
        if BACKEND == "tensorflow":
            # `keras.config.set_floatx("float64")` is what helps, see above.
            with pytest.raises(TypeError, match="float64.*to.*float32"):
                model.fit(X, Y, verbose=0)
            return
        logger = NormLogger()
        model.fit(X, Y, verbose=0, callbacks=[logger])
        expected = np.linalg.norm(wide(dense.kernel))
    tolerance = 1e-6 if BACKEND == "jax" else 1e-14
    assert logger.record[-1]["norm/dense"] == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("floatx", ["float16", "bfloat16"])
@pytest.mark.parametrize("weissi", [WEISSI(0.1, 0.01), WEISSI(0.0)])
def test_losses_in_half_precision_take_the_penalty(floatx, weissi):
    with precision(floatx, floatx):
        dense = layers.Dense(1, kernel_regularizer=weissi, name="dense")
        model = keras.Sequential([keras.Input((4,)), dense])
        model.compile("sgd", "mse")
        (penalty,) = model.losses
        assert keras.backend.standardize_dtype(penalty.dtype) == floatx
        kernel = wide(dense.kernel)
        norm = np.linalg.norm(kernel)
        expected = weissi.log_norm * np.log(norm)
        expected += weissi.direction_l1 * np.abs(kernel).sum() / norm
        value = to_numpy(keras.ops.cast(penalty, "float32"))
        assert value == pytest.approx(expected, rel=8e-3)
        logger = NormLogger()
        x, y = X[:16, :4].astype(floatx), Y[:16, :1].astype(floatx)
        model.fit(x, y, verbose=0, callbacks=[logger])
        assert not np.array_equal(wide(dense.kernel), kernel)
        expected = np.linalg.norm(wide(dense.kernel))
    assert logger.record[-1]["norm/dense"] == pytest.approx(expected, rel=1e-6)


MODES = {
    "as Keras chooses": {},
    "no compilation": {"jit_compile": False},
    "eagerly": {"run_eagerly": True},
    "two steps at a time": {"steps_per_execution": 2},
    "three steps at a time": {"steps_per_execution": 3},
    "an epoch at a time": {"steps_per_execution": 4},
}
COMPILED = pytest.param(
    {"jit_compile": True},
    id="compiled",
    # The first compilation by PyTorch takes a minute.
    marks=[pytest.mark.slow] if BACKEND == "torch" else [],
)


@pytest.mark.parametrize(
    "mode", [*(pytest.param(v, id=k) for k, v in MODES.items()), COMPILED]
)
def test_every_mode_of_compile_takes_the_same_steps(mode):
    model = make_model()
    optimizer = keras.optimizers.SGD(RATE)
    model.compile(optimizer, "mse", **mode)
    if BACKEND == "torch" and "steps_per_execution" in mode:
        with (
            pytest.warns(UserWarning, match="Your input ran out of data"),
            pytest.raises(ValueError, match="must be 1 with the PyTorch backend"),
        ):
            model.fit(X, Y, verbose=0)
        pytest.skip("Keras takes one step at a time on PyTorch")
    start = values_of(model)
    rows, after = fit(model)
    by_hand, _ = train_by_hand(start)
    assert_logged(rows, after, 1e-6)
    assert_logged(rows, by_hand, 1e-5)
    assert [row["step"] for row in rows] == [4, 8]


@pytest.mark.parametrize("steps", [2, 3, 4])
def test_accumulated_gradients(steps):
    """With 3, an update takes gradients of two epochs, and two are left over."""
    model = make_model()
    optimizer = keras.optimizers.SGD(RATE, gradient_accumulation_steps=steps)
    model.compile(optimizer, "mse")
    start = values_of(model)
    rows, _ = fit(model)
    assert_logged(rows, train_by_hand(start, accumulate=steps)[0], 1e-5)


@pytest.mark.parametrize("overwrite", [None, 3, 4])
def test_moving_averages(overwrite):
    """An epoch's log is of the weights trained on; `fit` ends with their average."""
    model = make_model()
    optimizer = keras.optimizers.SGD(
        RATE, use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=overwrite
    )
    model.compile(optimizer, "mse")
    start = values_of(model)
    rows, _ = fit(model)
    after, average = train_by_hand(start, momentum=0.8, overwrite=overwrite)
    assert_logged(rows, after, 1e-5)
    for value, expected in zip(values_of(model), average, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    # The next `fit` starts with the average, and its log too. On JAX, Keras has lost
    # the optimizer's averages by now.
    model.compile("sgd", "mse")
    logger = NormLogger()
    model.fit(X, Y, batch_size=BATCH, verbose=0, callbacks=[logger])
    assert_logged(logger.record[:1], [average], 1e-5)


def test_swapped_averages_are_logged_by_a_logger_behind_the_swap():
    model = make_model()
    model.compile(keras.optimizers.SGD(RATE, use_ema=True, ema_momentum=0.8), "mse")
    start = values_of(model)
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    logger = NormLogger()
    model.fit(
        X,
        Y,
        batch_size=BATCH,
        epochs=1,
        shuffle=False,
        verbose=0,
        callbacks=[swap, logger],
    )
    _, average = train_by_hand(start, epochs=1, momentum=0.8)
    assert_logged(logger.record[1:], [average], 1e-5)


class OwnStep(keras.Sequential):
    """Takes its steps by itself, as the guides of Keras have it."""

    if BACKEND == "tensorflow":

        def train_step(self, data):
            import tensorflow as tf

            x, y = data
            with tf.GradientTape() as tape:
                error = self(x, training=True) - y
                loss = tf.reduce_mean(error**2) + tf.add_n(self.losses)
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply(gradients, self.trainable_variables)
            return {"loss": loss}

    elif BACKEND == "jax":

        def train_step(self, state, data):
            import jax

            weights, others, slots, metrics = state
            x, y = data

            def loss_of(weights):
                out, new, penalties = self.stateless_call(
                    weights, others, x, training=True, return_losses=True
                )
                return jax.numpy.mean((out - y) ** 2) + sum(penalties), new

            gradient_of = jax.value_and_grad(loss_of, has_aux=True)
            (loss, others), gradients = gradient_of(weights)
            weights, slots = self.optimizer.stateless_apply(slots, gradients, weights)
            return {"loss": loss}, (weights, others, slots, metrics)

    else:

        def train_step(self, data):
            import torch

            x, y = data
            self.zero_grad()
            error = self(x, training=True) - y
            loss = torch.mean(error**2) + sum(self.losses)
            loss.backward()
            gradients = [v.value.grad for v in self.trainable_weights]
            with torch.no_grad():
                self.optimizer.apply(gradients, self.trainable_weights)
            return {"loss": loss}


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_a_custom_train_step(run_eagerly):
    model = make_model(model_class=OwnStep)
    model.compile(keras.optimizers.SGD(RATE), run_eagerly=run_eagerly)
    start = values_of(model)
    rows, after = fit(model)
    assert_logged(rows, after, 1e-6)
    assert_logged(rows, train_by_hand(start)[0], 1e-5)


def documented_loop():
    """What all loops of the document begin with, and the one of this backend."""
    text = (ROOT / "docs" / "loops.md").read_text()
    first, *loops = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    own = {"tensorflow": "import tensorflow", "jax": "import jax", "torch": "import to"}
    assert len(loops) == 3
    (loop,) = [loop for loop in loops if loop.startswith(own[BACKEND])]
    return first, loop


def test_a_documented_loop_balances_as_fit_does():
    first, loop = documented_loop()
    loops = []
    for _ in range(2):
        keras.utils.set_random_seed(0)
        scope = {"ScaleBalancer": ScaleBalancer}
        changed = first.replace("SGD(0.05)", "SGD(0.05, momentum=0.9)")
        changed = changed.replace("[logger,", "[ScaleBalancer(), logger,")
        assert changed.count("momentum") == changed.count("ScaleBalancer") == 1
        exec(changed, scope)
        loops.append(scope)
    own, fitted = loops
    own["model"].compile(own["optimizer"])
    exec(loop, own)
    fitted["model"].compile(fitted["optimizer"], "mse")
    fitted["model"].fit(
        fitted["x"],
        fitted["y"],
        16,
        fitted["epochs"],
        verbose=0,
        shuffle=False,
        callbacks=fitted["callbacks"].callbacks,
    )
    assert own["history"].history["scale_shift"][0] > 0.01
    keys = ("loss", "scale_shift", "norm/hidden", "norm/out", "regularization_loss")
    for key in keys:
        np.testing.assert_allclose(
            own["history"].history[key], fitted["history"].history[key], 1e-4, 1e-6
        )
    for one, other in zip(*(values_of(s["model"]) for s in loops), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_the_documented_loops_train_and_log():
    first, loop = documented_loop()
    scope = {}
    exec(first, scope)
    start = values_of(scope["model"])
    x, y = scope["x"], scope["y"]
    exec(loop, scope)
    coefficients = {"log_norm": 0.05, "direction": 0.01}
    after, _ = train_by_hand(start, x, y, batch=16, epochs=3, rate=0.05, **coefficients)
    rows = scope["logger"].record
    assert [(r["epoch"], r["step"]) for r in rows] == [(0, 0), (1, 4), (2, 8), (3, 12)]
    assert_logged(rows, [start, *after], 1e-5, **coefficients)
    history = scope["history"].history
    assert history["norm/out"] == [row["norm/out"] for row in rows[1:]]
    assert len(history["loss"]) == 3
    for value, expected in zip(values_of(scope["model"]), after[-1], strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)
