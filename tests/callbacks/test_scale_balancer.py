import warnings

import keras
import networks
import numpy as np
import pytest
from helpers import (
    BACKEND,
    norm_of,
    outputs_of,
    relative_error,
    to_numpy,
    weights_of,
)
from keras import layers, optimizers

from keras_weissi import WEISSI, NormLogger, ScaleBalancer, shift_scales

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(64, 8)).astype("float32"), RNG.integers(4, size=64)


def make_model(regularizer=None, rate=0.1, optimizer=None):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,))])
    for i in range(3):
        model.add(
            layers.Dense(32, "relu", kernel_regularizer=regularizer, name=f"d{i}")
        )
    model.add(layers.Dense(4, kernel_regularizer=regularizer, name="logits"))
    model.compile(
        optimizer or optimizers.SGD(rate, momentum=0.5),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def fit(model, epochs, *callbacks, **kwargs):
    return model.fit(
        X, Y, 16, epochs=epochs, verbose=0, callbacks=list(callbacks), **kwargs
    )


def norms_of(model):
    return [norm_of(layer.kernel) for layer in model.layers]


def test_balances_every_so_many_epochs_and_logs_it():
    model = make_model()
    balancer = ScaleBalancer(every=2)
    history = fit(model, 5, balancer, NormLogger())
    shifts = history.history["scale_shift"]
    assert [shift > 0 for shift in shifts] == [False, True, False, True, False]
    assert [row["epoch"] for row in balancer.record] == [0, 2, 4]
    for row in balancer.record:
        factors = [
            row[f"after/{layer.name}"] / row[f"before/{layer.name}"]
            for layer in model.layers
        ]
        assert row["scale_shift"] == pytest.approx(
            np.abs(np.log(factors)).max(), rel=1e-4
        )
    after = [history.history[f"norm/{layer.name}"][3] for layer in model.layers]
    np.testing.assert_allclose(after, after[0], rtol=1e-6)


def test_goes_on_counting_in_the_next_fit():
    model = make_model()
    balancer = ScaleBalancer(every=2)
    fit(model, 1, balancer)
    fit(model, 3, balancer, initial_epoch=1)
    assert [row["epoch"] for row in balancer.record] == [0, 1, 2]


def test_starts_balanced_unless_told_otherwise():
    model = make_model()
    seen = []
    look = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: seen.append(norms_of(model))
    )
    before = norms_of(model)
    fit(model, 1, ScaleBalancer(start=False), look)
    np.testing.assert_array_equal(seen[0], before)
    model = make_model()
    fit(model, 1, ScaleBalancer(), look)
    np.testing.assert_allclose(seen[1], seen[1][0], rtol=1e-6)
    with pytest.raises(ValueError, match="argument `start`. Expected a bool"):
        ScaleBalancer(start=1)


def test_exact_factors_are_powers_of_two():
    model = make_model()
    shift_scales(model, {"d0": 64.0, "d1": 1 / 64.0})
    x = X[:5]
    before = outputs_of(model, x)
    balancer = ScaleBalancer(exact=True)
    balancer.set_model(model)
    balancer.on_train_begin()
    np.testing.assert_array_equal(outputs_of(model, x), before)
    (row,) = balancer.record
    shift = row["scale_shift"] / np.log(2)
    assert shift > 4 and shift == pytest.approx(round(shift), abs=1e-12)
    balancer.on_train_begin()
    assert len(balancer.record) == 1  # there was nothing to do


def test_changes_neither_the_function_nor_what_comes_after():
    """Training goes on just as it does for a network that was balanced by hand."""
    model = make_model()
    fit(model, 1)
    x = X[:5]
    before = outputs_of(model, x)
    seen = []
    check = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(outputs_of(model, x))
    )
    model.optimizer.learning_rate = 0.0  # so that only the balancer moves weights
    for variable in model.optimizer.variables:
        if len(variable.shape):
            variable.assign(keras.ops.zeros_like(variable.value))
    fit(model, 1, ScaleBalancer(), check)
    assert relative_error(seen[0], before) < 1e-5
    np.testing.assert_allclose(norms_of(model), norms_of(model)[0], rtol=1e-6)


def test_keeps_alive_a_layer_that_collapses_without_it():
    # There is nothing to learn but the bias, so the penalty has its way.
    def run(*callbacks):
        model = make_model(WEISSI(0.25, min_norm=0.01), rate=0.05)
        start = norms_of(model)
        logger = NormLogger()
        callbacks = [*callbacks, logger]
        model.fit(X, 0 * Y, 8, epochs=30, verbose=0, callbacks=callbacks)
        norms = {
            layer.name: np.array([row[f"norm/{layer.name}"] for row in logger.record])
            for layer in model.layers
        }
        return start, norms

    start, plain = run()
    least = min(n.min() / s for n, s in zip(plain.values(), start, strict=True))
    assert least < 0.1
    _, balanced = run(ScaleBalancer())
    rows = np.array(list(balanced.values()))[:, 1:]  # all but the one before epoch 1
    np.testing.assert_allclose(rows, rows[:1].repeat(4, axis=0), rtol=1e-5)


def test_a_model_that_is_built_by_its_first_batch():
    model = keras.Sequential([layers.Dense(8, "relu"), layers.Dense(4)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    balancer = ScaleBalancer()
    fit(model, 2, balancer)
    np.testing.assert_allclose(norms_of(model), norms_of(model)[0], rtol=1e-6)
    assert [row["epoch"] for row in balancer.record] == [0, 1, 2]


def test_a_loop_of_ones_own_needs_no_compiled_model():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(16), layers.Dense(4)])
    logs = {}
    balancer = ScaleBalancer(start=False)
    balancer.set_model(model)
    balancer.on_train_begin()
    balancer.on_epoch_end(0, logs)
    np.testing.assert_allclose(norms_of(model), norms_of(model)[0], rtol=1e-6)
    assert logs["scale_shift"] > 0


def test_stands_in_the_logs_of_later_callbacks(tmp_path):
    path = tmp_path / "log.csv"
    fit(make_model(), 2, ScaleBalancer(), keras.callbacks.CSVLogger(path))
    assert "scale_shift" in path.read_text().splitlines()[0]


def test_leaves_a_model_that_has_diverged_to_others():
    model = make_model()
    x = X.copy()
    x[-1] = np.nan
    balancer = ScaleBalancer()
    with pytest.warns(UserWarning, match="left the model as it is after epoch 1.*nan"):
        history = model.fit(
            x, Y, verbose=0, callbacks=[keras.callbacks.TerminateOnNaN(), balancer]
        )
    assert history.history["scale_shift"] == [0.0]
    assert [row["epoch"] for row in balancer.record] == [0]


def test_says_before_training_that_it_can_not_be_done():
    for is_called in (True, False):
        model = networks.OpaqueModel()
        if is_called:
            model(keras.ops.ones((1, 8)))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss)
        with pytest.raises(ValueError, match="Expected a model that can be seen throu"):
            fit(model, 1, ScaleBalancer())
        # On TensorFlow, only the first step builds it.
        is_late = not is_called and BACKEND == "tensorflow"
        assert int(model.optimizer.iterations) == int(is_late)
    model = make_model(optimizer=optimizers.Ftrl(0.1))
    weights = weights_of(model)
    with pytest.raises(ValueError, match="argument `optimizer`.*Received: Ftrl"):
        fit(model, 1, ScaleBalancer())
    for one, two in zip(weights, weights_of(model), strict=True):
        np.testing.assert_array_equal(one, two)
    model = make_model(optimizer=optimizers.Ftrl(0.1))
    fit(model, 1, ScaleBalancer(optimizer=False))
    np.testing.assert_allclose(norms_of(model), norms_of(model)[0], rtol=1e-6)
    with pytest.raises(ValueError, match="argument `optimizer`. Expected a bool"):
        ScaleBalancer(optimizer="sgd")


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "1"])
def test_every_is_a_positive_int(every):
    with pytest.raises(ValueError, match="argument `every`. Expected a positive int"):
        ScaleBalancer(every=every)


def test_can_be_pickled_and_goes_on(tmp_path):
    import pickle

    balancer = ScaleBalancer(every=1)
    model = make_model()
    fit(model, 1, balancer)
    copy = pickle.loads(pickle.dumps(balancer))
    assert copy.record == balancer.record
    fit(model, 1, copy)
    assert len(copy.record) == len(balancer.record) + 1


def test_a_network_with_normalization_and_shortcuts():
    spec = [("projection shortcut", "relu"), ("batch norm", "relu")]
    model = networks.build(spec)
    model.compile("adam", "mse")
    x = RNG.normal(size=(32, networks.WIDTH)).astype("float32")
    balancer = ScaleBalancer()
    model.fit(x, x[:, :3], epochs=2, verbose=0, callbacks=[balancer])
    assert all(row["scale_shift"] > 0 for row in balancer.record)


def test_serves_one_model_after_another():
    balancer = ScaleBalancer()
    for _ in range(2):
        model = make_model()
        fit(model, 1, balancer)
        np.testing.assert_allclose(norms_of(model), norms_of(model)[0], rtol=1e-6)


@pytest.mark.parametrize("carried", [True, False])
def test_the_momentum_is_carried(carried):
    model = make_model()
    momenta = []

    def remember(epoch, logs):
        model.optimizer  # noqa: B018 - on JAX, brings the state to the model
        own = [v for v in model.optimizer.variables if "d0_kernel" in v.path]
        momenta.append(to_numpy(own[0]) + 0)

    watch = [keras.callbacks.LambdaCallback(on_epoch_end=remember) for _ in range(2)]
    balancer = ScaleBalancer(optimizer=carried, start=False)
    fit(model, 1, watch[0], balancer, watch[1])
    row = balancer.record[-1]
    factor = row["after/d0"] / row["before/d0"]
    assert abs(factor - 1) > 0.01
    np.testing.assert_allclose(
        momenta[1], momenta[0] / (factor if carried else 1), rtol=1e-5, atol=1e-9
    )


@pytest.mark.skipif(BACKEND == "jax", reason="Keras's state of training is then off")
def test_a_layer_that_is_frozen_during_fit_is_left_as_it_is():
    model = make_model()
    frozen = model.get_layer("d1")
    kernels = []

    class Freeze(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                frozen.trainable = False
                model.make_train_function(force=True)

        def on_epoch_end(self, epoch, logs=None):
            model = self.model  # on JAX, brings the state of training to the model
            kernels.append(to_numpy(model.get_layer("d1").kernel).copy())

    balancer = ScaleBalancer()
    fit(model, 3, Freeze(), balancer)
    np.testing.assert_array_equal(to_numpy(frozen.kernel), kernels[-1])
    start, first, *others = balancer.record
    assert start["epoch"] == 0
    assert first["before/d1"] != first["after/d1"]
    assert all(row["before/d1"] == row["after/d1"] for row in others)


def test_a_model_without_a_free_scale_is_named_once():
    def make(activation):
        model = keras.Sequential(
            [keras.Input((8,)), layers.Dense(8, activation), layers.Dense(4)]
        )
        model.compile("sgd", "mse")
        return model

    balancer = ScaleBalancer()
    y = np.zeros((64, 4))
    with pytest.warns(UserWarning, match="has nothing to balance") as caught:
        model = make("gelu")
        model.fit(X, y, epochs=3, verbose=0, callbacks=[balancer])
    assert len([w for w in caught if "ScaleBalancer" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "ScaleBalancer")
        balancer = ScaleBalancer(start=False)
        history = make("relu").fit(X, y, verbose=0, callbacks=[balancer])
    assert history.history["scale_shift"][0] > 0


def test_a_device_that_fails_ends_the_fit(monkeypatch):
    """Backends raise a RuntimeError then, as if the scales had not been found."""

    def fail(*arguments):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("keras_weissi.callbacks.scale_balancer.balance", fail)
    model = make_model()
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(model, 1, ScaleBalancer())


def test_the_next_model_without_a_free_scale_is_named_too():
    balancer = ScaleBalancer()
    for _ in range(2):
        model = keras.Sequential([keras.Input((8,)), layers.Dense(4, name="dense")])
        model.compile("sgd", "mse")
        with pytest.warns(UserWarning, match="has nothing to balance") as caught:
            for _ in range(2):
                model.fit(X, np.zeros((64, 4)), verbose=0, callbacks=[balancer])
        assert sum("ScaleBalancer" in str(w.message) for w in caught) == 1
