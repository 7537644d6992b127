import copy
import csv
import pickle
import re
import warnings

import keras
import numpy as np
import pytest
from helpers import (
    BACKEND,
    count_transfers,
    norm_of,
    penalty_of,
    takes_functions_as_regularizers,
)
from keras import layers

from keras_weissi import WEISSI, NormLogger, regularize
from keras_weissi.model.kernels import kernels
from keras_weissi.symmetry.table import norm_table

X = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
Y = X[:, :1]


def make_model(regularizer=None, depth=2, optimizer="sgd"):
    hidden = [
        layers.Dense(4, activation="relu", kernel_regularizer=regularizer, name=f"h{i}")
        for i in range(depth)
    ]
    model = keras.Sequential([keras.Input((4,)), *hidden, layers.Dense(1, name="out")])
    model.compile(optimizer, "mse")
    return model


class Snapshots(keras.callbacks.Callback):
    """Takes the norms and the penalty the slow way, from outside."""

    def __init__(self):
        super().__init__()
        self.epochs = []
        self.batches = []
        self.logs = []

    def state(self):
        variables = [kernel.variable for kernel in kernels(self.model)]
        return [norm_of(v) for v in variables], penalty_of(self.model)

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append(self.state())

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(self.state())
        self.logs.append(dict(logs))


def fit(model, *callbacks, **arguments):
    arguments = {"epochs": 2, "batch_size": 8, "verbose": 0, **arguments}
    return model.fit(X, Y, callbacks=list(callbacks), **arguments)


def test_logs_are_the_norms_of_the_weights_at_that_moment():
    model = make_model(WEISSI(0.1, 0.01))
    snapshots = Snapshots()
    history = fit(model, NormLogger(), snapshots, validation_split=0.25).history
    for epoch, (expected, penalty) in enumerate(snapshots.epochs):
        expected = np.array(expected[:2])  # "out" has no WEISSI
        logged = [history[f"norm/h{i}"][epoch] for i in (0, 1)]
        np.testing.assert_allclose(logged, expected, rtol=1e-6)
        assert history["norm_product"][epoch] == pytest.approx(
            expected.prod(), rel=1e-6
        )
        assert history["log_norm_product"][epoch] == pytest.approx(
            np.log(expected).sum(), rel=1e-6, abs=1e-6
        )
        assert history["regularization_loss"][epoch] == pytest.approx(penalty, rel=1e-5)
    assert "norm/out" not in history and "val_loss" in history
    assert history["norm/h0"][0] != history["norm/h0"][1]
    # What stands behind the logger in the list has seen the same.
    assert snapshots.logs[-1]["norm/h0"] == history["norm/h0"][-1]


@pytest.mark.parametrize("regularizer", [None, "l2"])
def test_a_baseline_is_watched_whole(regularizer):
    model = make_model(regularizer)
    history = fit(model, NormLogger()).history
    assert {"norm/h0", "norm/h1", "norm/out"} <= set(history)
    assert history["regularization_loss"][-1] == pytest.approx(
        penalty_of(model), rel=1e-5
    )


@pytest.mark.parametrize(
    "choose",
    [
        lambda model: "out",
        lambda model: ["out"],
        lambda model: model.get_layer("out"),
        lambda model: lambda layer: layer.units == 1,
    ],
)
def test_the_user_may_choose(choose):
    model = make_model(WEISSI())
    history = fit(model, NormLogger(choose(model))).history
    assert [key for key in history if key.startswith("norm/")] == ["norm/out"]


def test_a_model_that_fit_builds_is_watched_from_then_on():
    dense = layers.Dense(1, kernel_regularizer=WEISSI(), name="dense")
    model = keras.Sequential([dense])
    model.compile("sgd", "mse")
    logger = NormLogger()
    history = fit(model, logger).history
    assert history["norm/dense"][-1] == pytest.approx(norm_of(dense.kernel), rel=1e-6)
    # TensorFlow builds it in the first step, the others before.
    epochs = [row["epoch"] for row in logger.record]
    assert epochs == ([1, 2] if BACKEND == "tensorflow" else [0, 1, 2])
    model = keras.Sequential([layers.Dense(1, name="dense")])
    model.compile("sgd", "mse")
    seen = Snapshots()
    with pytest.raises(ValueError, match="argument `layers`"):
        fit(model, NormLogger(["dens"]), seen)
    assert not seen.batches


def test_a_wrong_choice_is_an_error_before_the_first_step():
    model = make_model()
    before = norm_of(model.get_layer("h0").kernel)
    with pytest.raises(ValueError, match="such as .*'out'.* Received: 'outt'"):
        fit(model, NormLogger(["outt"]))
    assert norm_of(model.get_layer("h0").kernel) == before


@pytest.mark.parametrize("layers", [3, [], [1], {"a": 1}, ()])
def test_bad_layers(layers):
    with pytest.raises(ValueError, match="Invalid value for argument `layers`"):
        NormLogger(layers)


@pytest.mark.parametrize("update_freq", [0, -1, 1.5, True, None, "batch", np.arange(2)])
def test_bad_update_freq(update_freq):
    with pytest.raises(ValueError, match="Invalid value for argument `update_freq`"):
        NormLogger(update_freq=update_freq)


def test_record_starts_before_the_first_step_and_goes_on():
    model = make_model(WEISSI())
    initial = norm_of(model.get_layer("h0").kernel)
    logger = NormLogger()
    fit(model, logger)
    after = norm_of(model.get_layer("h0").kernel)
    assert logger.record[0]["norm/h0"] == pytest.approx(initial, rel=1e-6)
    assert logger.record[-1]["norm/h0"] == pytest.approx(after, rel=1e-6)
    fit(model, logger, initial_epoch=2, epochs=4)
    index = [(row["epoch"], row["step"]) for row in logger.record]
    assert index == [(0, 0), (1, 4), (2, 8), (3, 12), (4, 16)]
    # Weights changed between two fits are a state of their own.
    model.get_layer("h0").kernel.assign(np.ones((4, 4)))
    fit(model, logger, initial_epoch=4, epochs=5)
    index = [(row["epoch"], row["step"]) for row in logger.record]
    assert index[5:] == [(4, 16), (5, 20)]
    assert logger.record[5]["norm/h0"] == 4.0
    fit(model, logger, epochs=1)
    index = [(row["epoch"], row["step"]) for row in logger.record]
    assert index[7:] == [(0, 20), (1, 24)]


@pytest.mark.parametrize("steps_per_execution", [1, 2])
def test_batches_are_recorded_on_request(steps_per_execution):
    if steps_per_execution > 1 and BACKEND == "torch":
        pytest.skip("Keras takes one step at a time on PyTorch")
    model = make_model(WEISSI())
    model.compile("sgd", "mse", steps_per_execution=steps_per_execution)
    logger, snapshots = NormLogger(update_freq=3), Snapshots()
    fit(model, logger, snapshots, epochs=3)  # 4 batches an epoch
    index = [(row["epoch"], row["step"]) for row in logger.record]
    if steps_per_execution == 1:
        assert index == [(0, 0), (0, 3), (1, 4), (1, 6), (2, 8), (2, 9), (3, 12)]
        for row in logger.record[1:]:
            norms, _ = snapshots.batches[row["step"] - 1]
            assert row["norm/h0"] == pytest.approx(norms[0], rel=1e-6)
    else:
        assert index == [(0, 0), (1, 4), (1, 6), (2, 8), (2, 10), (3, 12)]


def test_csv_holds_the_record(tmp_path):
    model = make_model(WEISSI())
    logger = NormLogger()
    fit(model, logger)
    path = tmp_path / "norms.csv"
    path.write_text("old")
    logger.to_csv(path)
    with open(path, newline="") as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    assert rows == logger.record
    assert [file.name for file in tmp_path.iterdir()] == ["norms.csv"]


def test_a_failed_write_leaves_the_old_csv(tmp_path, monkeypatch):
    logger = NormLogger()
    fit(make_model(WEISSI()), logger)
    path = tmp_path / "norms.csv"
    path.write_text("old")

    def full(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(csv.DictWriter, "writerows", full)
    with pytest.raises(OSError, match="no space left"):
        logger.to_csv(path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["norms.csv"]


def test_csv_errors_say_what_is_missing(tmp_path):
    logger = NormLogger()
    with pytest.raises(ValueError, match="Nothing has been recorded yet"):
        logger.to_csv(tmp_path / "norms.csv")
    fit(make_model(), logger)
    with pytest.raises(FileNotFoundError, match="there is no folder .*none"):
        logger.to_csv(tmp_path / "none" / "norms.csv")
    assert not list(tmp_path.iterdir())


def test_a_fault_that_lasts_is_told_once_whatever_else_changes():
    model = make_model(WEISSI())
    model.get_layer("h0").kernel.assign(np.full((4, 4), np.nan))
    change = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: regularize(model, WEISSI(0.1 + epoch))
    )
    with pytest.warns(UserWarning) as caught:
        fit(model, change, NormLogger(), epochs=4)
    messages = [str(w.message) for w in caught]
    assert sum("kernel 'h0' is no longer finite" in m for m in messages) == 1


def test_other_callbacks_get_the_values(tmp_path):
    model = make_model(WEISSI())
    callbacks = [
        NormLogger(),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.ModelCheckpoint(
            str(tmp_path / "{epoch}-{log_norm_product:.6f}-{norm_product:.6f}.keras")
        ),
        keras.callbacks.EarlyStopping("log_norm_product", mode="max", patience=1),
    ]
    history = fit(model, *callbacks, epochs=50).history
    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    logged = [float(row["norm/h0"]) for row in rows]
    assert logged == history["norm/h0"]
    for epoch, (log, product) in enumerate(
        zip(history["log_norm_product"], history["norm_product"], strict=True)
    ):
        assert (tmp_path / f"{epoch + 1}-{log:.6f}-{product:.6f}.keras").exists()


def test_early_stopping_on_the_product():
    model = make_model(WEISSI(0.5))  # the product falls from the first epoch on
    stop = keras.callbacks.EarlyStopping("log_norm_product", mode="max", patience=2)
    history = fit(model, NormLogger(), stop, epochs=50).history
    assert len(history["loss"]) == 3


def test_empty_logs_are_filled():
    model = make_model(WEISSI())
    logger, logs = NormLogger(), {}
    logger.set_params({"verbose": 0, "epochs": 1, "steps": 1})
    logger.set_model(model)
    logger.on_train_begin()
    logger.on_epoch_begin(0)
    logger.on_epoch_end(0, logs)
    assert set(logs) == {
        "norm/h0",
        "norm/h1",
        "norm_product",
        "log_norm_product",
        "regularization_loss",
    }


@pytest.fixture(scope="module")
def deep():
    """A model of which Keras takes seconds to make a training step, and its weights."""
    model = make_model(WEISSI(), depth=54)
    model.compile("sgd", "mse", metrics=["accuracy"])
    return model, model.get_weights()


@pytest.mark.parametrize("verbose", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 1e8])
def test_the_progress_line_stays_short(deep, verbose, scale, capfd):
    model, weights = deep
    model.set_weights(weights)
    for i in range(54):
        kernel = model.get_layer(f"h{i}").kernel
        kernel.assign(scale * kernel)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The norm of kernel .* is no longer finite")
        history = fit(
            model, NormLogger(), verbose=verbose, validation_data=(X, Y), batch_size=1
        )
    output = capfd.readouterr().out
    lines = re.split(r"[\r\n\b]+", re.sub(r"\x1b\[[0-9;]*m", "", output))
    assert any("log_norm_product" in line for line in lines)
    # With up to 9,999 steps an epoch, Keras writes four more digits twice.
    assert max(map(len, lines)) < 200 - 8
    assert output.count("Epoch 1/2") == 1  # one bar, not two
    assert sum(key.startswith("norm/") for key in history.history) == 54


def test_the_bar_can_be_left_to_another(capfd):
    callbacks = [NormLogger(progress_bar=False), keras.callbacks.ProgbarLogger()]
    fit(make_model(), *callbacks, epochs=2, verbose=1)
    assert capfd.readouterr().out.count("Epoch 1/2") == 1
    fit(make_model(), NormLogger(), verbose=0)
    assert capfd.readouterr().out == ""


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True")
def test_one_transfer_a_measurement(monkeypatch):
    model = make_model(WEISSI(0.1, 0.01), depth=20)
    logger = NormLogger()
    logger.set_params({"verbose": 0, "epochs": 1, "steps": 1})
    logger.set_model(model)
    logger.on_train_begin()
    logger.on_epoch_begin(0)
    kernel = model.get_layer("h0").kernel
    transfers = count_transfers(monkeypatch, kernel)
    logger.on_epoch_end(0, {})
    assert len(transfers) == 1
    keras.ops.convert_to_numpy(kernel)
    np.asarray(keras.ops.stop_gradient(kernel.value))
    float(keras.ops.sum(kernel.value))
    assert len(transfers) == 4  # the count does see what it should


def test_asynchronous_dispatch_stays_on():
    for logger, stays in ((NormLogger(), True), (NormLogger(update_freq=5), False)):
        callbacks = keras.callbacks.CallbackList([logger])
        expected = stays and BACKEND in ("jax", "torch")
        assert callbacks._async_train == expected


def test_all_batches_of_a_long_epoch_are_counted():
    logger = NormLogger()
    logger.set_params({"verbose": 0, "epochs": 1, "steps": 10_000})
    logger.set_model(make_model())
    logger.on_train_begin()
    logger.on_epoch_begin(0)
    for batch in range(10_000):
        logger.on_train_batch_end(batch, {"loss": 0.0})
    logger.on_epoch_end(0, {})
    assert logger.record[-1]["step"] == 10_000


class Interrupt(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:
            raise KeyboardInterrupt


def test_an_interrupted_fit_leaves_the_next_one_right():
    model = make_model(WEISSI())
    logger = NormLogger(update_freq=2)
    with pytest.raises(KeyboardInterrupt):
        fit(model, logger, Interrupt())
    fit(model, logger, epochs=1)
    index = [(row["epoch"], row["step"]) for row in logger.record]
    assert index == [(0, 0), (0, 2), (0, 3), (0, 4), (0, 6), (1, 7)]


def test_a_bare_callback_that_cannot_record_batches_says_so():
    model = make_model(WEISSI())
    logger = NormLogger(update_freq=1)
    if BACKEND == "tensorflow":  # has no threads: it simply works
        model.fit(X, Y, batch_size=8, verbose=0, callbacks=logger)
        assert len(logger.record) == 5
        return
    with pytest.warns(UserWarning, match=r"pass callbacks=\[logger\]"):
        model.fit(X, Y, batch_size=8, verbose=0, callbacks=logger)
    assert [row["epoch"] for row in logger.record] == [0, 1]


def test_a_logger_can_be_copied_and_pickled_after_a_fit():
    logger = NormLogger()
    model = make_model(WEISSI())
    fit(model, logger)
    logger.set_model(None)
    for twin in (copy.deepcopy(logger), pickle.loads(pickle.dumps(logger))):
        assert twin.record == logger.record
        fit(model, twin, epochs=1)
        assert twin.record[-1]["step"] == 12


def test_what_is_compiled_is_kept_until_something_changes():
    logger = NormLogger()
    model = make_model(WEISSI())
    fit(model, logger)
    read = logger._watcher._read
    fit(model, logger)
    assert logger._watcher._read is read
    model.get_layer("h0").kernel.regularizer = WEISSI(7.0)
    model.compile("sgd", "mse")
    history = fit(model, logger, epochs=1).history
    assert history["regularization_loss"][0] == pytest.approx(
        penalty_of(model), rel=1e-5
    )


class Pair(keras.Model):
    """Has a training step but no `call`, so Keras never takes it for built."""

    def __init__(self):
        super().__init__()
        self.first = make_model(WEISSI())

    def train_step(self, *data):
        self.first(X)
        return {"loss": 0.0}


@pytest.mark.skipif(BACKEND != "tensorflow", reason="others refuse such a model")
def test_a_model_that_is_never_built_is_watched_all_the_same():
    model = Pair()
    model.compile("sgd")
    history = fit(model, NormLogger(), epochs=1).history
    assert len([key for key in history if key.startswith("norm/")]) == 2


@pytest.mark.skipif(BACKEND != "tensorflow", reason="others trace or differentiate it")
def test_a_regularizer_that_only_runs_eagerly():
    class ByNumpy(keras.regularizers.Regularizer):
        def __call__(self, x):
            total = np.abs(keras.ops.convert_to_numpy(x)).sum()
            return keras.ops.convert_to_tensor(float(total))

    model = make_model(ByNumpy())
    model.compile("sgd", "mse", run_eagerly=True)
    history = fit(model, NormLogger(), epochs=1).history
    assert history["regularization_loss"][0] == pytest.approx(
        penalty_of(model), rel=1e-5
    )


@pytest.mark.jax_only
def test_the_state_is_not_fetched_between_batches(monkeypatch):
    model = make_model(WEISSI())
    fetched = []
    original = model.jax_state_sync

    def watch():
        if getattr(model, "_jax_state", None) and not model._jax_state_synced:
            fetched.append(True)
        original()

    monkeypatch.setattr(model, "jax_state_sync", watch)
    fit(model, NormLogger(), epochs=1)
    assert len(fetched) <= 1  # by Keras, when the epoch ends
    fit(model, NormLogger(update_freq=1), epochs=1)
    assert len(fetched) >= 4


def test_a_collapsing_layer_is_named_once():
    model = make_model(WEISSI(0.1, min_norm=0.5))
    model.get_layer("h1").kernel.assign(np.full((4, 4), 0.1))  # norm 0.4
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = fit(model, NormLogger(), epochs=4)
    ours = [str(w.message) for w in caught if "at their floor" in str(w.message)]
    assert len(ours) == 1
    assert ": 'h1' (norm 0.4, min_norm=0.5). Reduce `log_norm` if" in ours[0]
    assert len(history.history["loss"]) == 4


def test_many_collapsing_layers_are_one_warning():
    model = make_model(WEISSI(0.1, min_norm=100.0), depth=5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, NormLogger(), epochs=3)
    (ours,) = [str(w.message) for w in caught if "at their floor" in str(w.message)]
    assert "'h0'" in ours and "'h3'" not in ours and "; and 2 more. " in ours


def test_a_norm_that_is_not_finite_is_named_once_and_training_goes_on():
    model = make_model(WEISSI())
    model.get_layer("h0").kernel.assign(np.full((4, 4), np.nan))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = fit(model, NormLogger(), epochs=3)
    ours = [str(w.message) for w in caught if "norm of kernel 'h0'" in str(w.message)]
    assert len(ours) == 1 and "no longer finite: nan" in ours[0]
    assert len(history.history["loss"]) == 3
    assert np.isnan(history.history["norm_product"][0])


def test_a_frozen_kernel_is_not_collapsing():
    model = make_model(WEISSI(0.1))
    model.get_layer("h1").kernel.assign(np.zeros((4, 4)))
    model.get_layer("h1").trainable = False
    model.compile("sgd", "mse")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Norms of kernels")
        fit(model, NormLogger())


def test_a_dead_kernel_gives_minus_infinity_without_noise():
    model = make_model()
    model.get_layer("h0").kernel.assign(np.zeros((4, 4)))
    model.get_layer("h0").trainable = False
    model.compile("sgd", "mse")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        history = fit(model, NormLogger()).history
    assert history["norm_product"] == [0.0, 0.0]
    assert history["log_norm_product"] == [-np.inf, -np.inf]


def test_the_product_of_many_norms_does_not_overflow_its_log():
    model = make_model(WEISSI(), depth=40)
    for i in range(40):
        model.get_layer(f"h{i}").kernel.assign(np.full((4, 4), 1e9))
    logger = NormLogger()
    logger.set_params({"verbose": 0, "epochs": 1, "steps": 1})
    logger.set_model(model)
    logger.on_train_begin()
    logs = {}
    logger.on_epoch_begin(0)
    logger.on_epoch_end(0, logs)
    assert logs["norm_product"] == np.inf
    assert logs["log_norm_product"] == pytest.approx(40 * np.log(4e9), rel=1e-6)


def test_a_model_without_kernels_is_said_to_have_none():
    model = keras.Sequential([keras.Input((4,)), layers.BatchNormalization()])
    model.compile("sgd", "mse")
    with pytest.warns(UserWarning, match="found no kernel to watch"):
        history = fit(model, NormLogger()).history
    assert history["norm_product"] == [1.0, 1.0]


def test_a_regularizer_that_a_callback_puts_on_is_logged_from_then_on():
    model = make_model(WEISSI(0.01), optimizer=keras.optimizers.SGD(0.0))
    change = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: epoch == 1 and regularize(model, WEISSI(1.0))
    )
    logger = NormLogger(update_freq=1)
    history = fit(model, change, logger, epochs=3).history
    log_product = sum(np.log(norm_of(layer.kernel)) for layer in model.layers[:2])
    expected = [strength * log_product for strength in (0.01, 1.0, 1.0)]
    expected = np.array(expected) + [
        0.0,
        *[np.log(norm_of(model.layers[2].kernel))] * 2,
    ]
    logged = history["regularization_loss"]
    np.testing.assert_allclose(logged, expected, rtol=1e-5)
    # What is watched stays the same through a `fit`, for the columns of a log.
    assert {key for key in history if key.startswith("norm/")} == {"norm/h0", "norm/h1"}
    assert {len(values) for values in history.values()} == {3}
    again = fit(model, logger, epochs=1).history
    assert "norm/out" in again
    rows = {row["step"]: row["regularization_loss"] for row in logger.record}
    assert rows[5] == logged[1]


def test_a_coefficient_of_zero_is_logged_as_no_penalty():
    model = make_model(WEISSI(0.0))
    logger = NormLogger()
    fit(model, logger)
    assert [row["regularization_loss"] for row in logger.record] == [0.0] * 3


class LateHead(keras.Model):
    """Its first layers are built, and `fit` builds the last."""

    def __init__(self, trainable=True):
        super().__init__()
        self.body = make_model(WEISSI())
        self.head = layers.Dense(1, name="head", kernel_regularizer=WEISSI())
        self.head.trainable = trainable

    def call(self, x):
        return self.head(self.body(x))


@pytest.mark.parametrize("choice", [None, "head"])
@pytest.mark.parametrize("trainable", [True, False])
def test_layers_that_fit_builds_are_watched_with_those_that_are(choice, trainable):
    model = LateHead(trainable)
    model.compile("sgd", "mse")
    logger = NormLogger(choice, update_freq=2)
    history = fit(model, logger, epochs=2).history
    norm = norm_of(model.head.kernel)
    assert history["norm/head"][-1] == pytest.approx(norm, rel=1e-6)
    body = f"norm/{model.body.name}/h0"
    assert (body in history) == (choice is None)
    # All rows are of the same kernels. TensorFlow knows them after the first step.
    assert len({tuple(row) for row in logger.record}) == 1
    steps = [0] * (BACKEND != "tensorflow") + [2, 4, 6, 8]
    assert [row["step"] for row in logger.record] == steps


def test_a_norm_of_0_beside_an_infinite_one_makes_no_noise():
    model = make_model()
    model.get_layer("h0").kernel.assign(np.zeros((4, 4)))
    model.get_layer("h1").kernel.assign(np.full((4, 4), np.inf))
    with pytest.warns(UserWarning, match="is no longer finite"):
        history = fit(model, NormLogger()).history
    norm_table(model, print_fn=None)
    assert np.isnan(history["log_norm_product"]).all()


def test_a_state_that_is_not_a_number_is_recorded_once():
    model = make_model()
    model.get_layer("h0").kernel.assign(np.full((4, 4), np.nan))
    logger = NormLogger()
    with pytest.warns(UserWarning, match="is no longer finite: nan"):
        fit(model, logger, epochs=1)
        fit(model, logger, initial_epoch=1, epochs=2)
    assert [row["epoch"] for row in logger.record] == [0, 1, 2]


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (None, ["dense", "inner/dense", "out"]),
        ("dense", ["dense"]),  # not the one inside
        ("inner", ["inner/dense"]),
        (["bn", "emb"], ["emb", "bn"]),
        # Only a name stands for an embedding or a gamma.
        (lambda layer: True, ["dense", "inner/dense", "out"]),
        (layers.Layer, ["dense", "inner/dense", "out"]),
    ],
)
def test_names_mean_what_they_mean_to_regularize(named, expected):
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="dense")], name="inner"
    )
    model = keras.Sequential(
        [
            keras.Input((2,), dtype="int32"),
            layers.Embedding(3, 2, name="emb"),
            layers.Flatten(),
            layers.Dense(4, name="dense"),
            layers.BatchNormalization(name="bn"),
            inner,
            layers.Dense(1, name="out"),
        ]
    )
    model.compile("sgd", "mse")
    x = np.ones((4, 2), "int32")
    history = model.fit(x, x[:, :1], verbose=0, callbacks=[NormLogger(named)]).history
    assert [k for k in history if k.startswith("norm/")] == [
        f"norm/{name}" for name in expected
    ]
    if isinstance(named, (str, list)):
        report = regularize(model, WEISSI(), layers=named, include_normalized=True)
        assert [row.name for row in report if row.changed] == expected


def test_a_name_of_several_layers_is_refused():
    def inner(name):
        stack = [keras.Input((4,)), layers.Dense(4, name="dense")]
        return keras.Sequential(stack, name=name)

    model = keras.Sequential([keras.Input((4,)), inner("a"), inner("b")])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"`layers`.*'a/dense' or 'b/dense'.*'dense'"):
        model.fit(X, X, verbose=0, callbacks=[NormLogger("dense")])


@pytest.mark.parametrize("params", [{}, {"epochs": 2}, {"steps": 2}, {"verbose": 0}])
@pytest.mark.parametrize("progress_bar", [True, False])
def test_a_loop_need_not_pass_all_params(params, progress_bar, capfd):
    logger, model = NormLogger(progress_bar=progress_bar), make_model(WEISSI())
    callbacks = keras.callbacks.CallbackList([logger], model=model, **params)
    callbacks.on_train_begin()
    for epoch in range(2):
        callbacks.on_epoch_begin(epoch)
        for batch in range(2):
            callbacks.on_train_batch_begin(batch)
            callbacks.on_train_batch_end(batch, {"loss": 1.0})
        callbacks.on_epoch_end(epoch, {"loss": 1.0})
    callbacks.on_train_end()
    assert [row["step"] for row in logger.record] == [0, 2, 4]
    is_drawn = progress_bar and params.get("verbose") != 0
    assert ("log_norm_product" in capfd.readouterr().out) == is_drawn


@pytest.mark.parametrize("interrupted", [False, True])
def test_evaluate_and_predict_draw_a_bar_after_a_fit(interrupted, capfd):
    model, logger = make_model(), NormLogger()
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            fit(model, logger, Interrupt())
    else:
        fit(model, logger)
    assert capfd.readouterr().out == ""
    arguments = {"batch_size": 8, "verbose": 1, "callbacks": [logger]}
    model.evaluate(X, Y, **arguments)
    assert "loss" in capfd.readouterr().out
    model.predict(X, **arguments)
    assert "4/4" in capfd.readouterr().out
    # The validation inside of a `fit` stays silent.
    fit(model, logger, epochs=1, verbose=2, validation_data=(X, Y))
    assert capfd.readouterr().out.count("step") == 1


def test_the_next_model_is_warned_of_again():
    logger = NormLogger()
    for _ in range(2):  # folds, with layers of the same names
        model = make_model(WEISSI(0.1, min_norm=100.0))
        model.get_layer("h0").kernel.assign(np.full((4, 4), np.nan))
        for _ in range(2):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                fit(model, logger)
            told = " ".join(str(w.message) for w in caught)
            is_first = logger.record[-1]["step"] in (8, 24)
            assert ("'h0' is no longer finite" in told) == is_first
            assert ("at their floor" in told) == is_first


class Constant(keras.metrics.Mean):
    def update_state(self, *arguments, **options):
        super().update_state(123.0)


@pytest.mark.parametrize("key", ["regularization_loss", "norm_product", "norm/h0"])
def test_a_key_that_a_metric_has_taken_is_warned_of(key):
    model = make_model(WEISSI())
    model.compile("sgd", "mse", metrics=[Constant(name=key)])
    with pytest.warns(UserWarning, match=f"NormLogger replaces '{key}' in") as caught:
        history = fit(model, NormLogger(), epochs=3).history
    assert len([w for w in caught if "NormLogger replaces" in str(w.message)]) == 1
    assert 123.0 not in history[key]


@pytest.mark.parametrize("key", ["norm/mine", "norm/h9", "norm_products"])
def test_a_metric_with_a_similar_name_stays_in_the_bar(key, capfd):
    model = make_model(WEISSI())
    model.compile("sgd", "mse", metrics=[Constant(name=key)])
    assert fit(model, NormLogger(), epochs=1, verbose=2).history[key] == [123.0]
    assert f"{key}: 123" in capfd.readouterr().out


def test_a_loop_may_pass_the_same_logs_every_epoch():
    logger, logs = NormLogger(), {"loss": 1.0}
    callbacks = keras.callbacks.CallbackList([logger], model=make_model(), verbose=0)
    callbacks.on_train_begin()
    for epoch in range(3):
        callbacks.on_epoch_begin(epoch)
        callbacks.on_epoch_end(epoch, logs)


@pytest.mark.parametrize("run_eagerly", [True, False])
@pytest.mark.parametrize(
    "make, attribute",
    [
        (lambda: WEISSI(0.01, 0.01), "log_norm"),
        (lambda: WEISSI(0.01, 0.01), "direction_l1"),
        (lambda: WEISSI(0.01, min_norm=0.5), "min_norm"),
        (lambda: keras.regularizers.L2(0.01), "l2"),
    ],
)
def test_a_coefficient_that_is_changed_in_place_is_followed(
    make, attribute, run_eagerly
):
    alike = [make(), make()]
    stack = [layers.Dense(4, kernel_regularizer=one) for one in alike]
    model = keras.Sequential([keras.Input((4,)), *stack])
    model.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=run_eagerly)
    for layer in stack:
        layer.kernel.assign(np.full((4, 4), 0.1))  # a norm of 0.4

    def change(epoch, logs):
        setattr(alike[1], attribute, 0.1 * (epoch + 1))

    schedule = keras.callbacks.LambdaCallback(on_epoch_begin=change)
    snapshots = Snapshots()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "These kernels are at their floor")
        history = fit(model, schedule, NormLogger(), snapshots, epochs=3).history
    expected = [penalty for _, penalty in snapshots.epochs]
    np.testing.assert_allclose(history["regularization_loss"], expected, rtol=1e-5)
    assert attribute == "min_norm" or len(set(expected)) == 3


class Held(WEISSI):
    """Multiplies the penalty by a number that is kept in something else."""

    def __init__(self, holder, read):
        super().__init__(0.01)
        self.holder, self.read = holder, read

    def __call__(self, x):
        return self.read(self.holder) * super().__call__(x)


class Slotted(Held):
    __slots__ = ("strength",)

    def __init__(self, strength):
        super().__init__(None, None)
        self.strength = strength

    def __call__(self, x):
        return WEISSI.__call__(self, x) * self.strength


class Holding:
    """A penalty that is no `Regularizer`, and holds one."""

    def __init__(self, inside):
        self.inside = [inside, self]

    def __call__(self, x):
        return self.inside[0](x)


# name -> what makes a regularizer, and what changes it in place
HELD = {
    "array": (
        lambda: Held(np.ones(2), lambda a: float(a[1])),
        lambda r, value: r.holder.__setitem__(1, value),
    ),
    "array of no dimension": (
        lambda: Held(np.ones(()), float),
        lambda r, value: r.holder.fill(value),
    ),
    "list": (
        lambda: Held([1.0], lambda a: a[0]),
        lambda r, value: r.holder.__setitem__(0, value),
    ),
    "list in a dict": (
        lambda: Held({"a": [1.0]}, lambda a: a["a"][0]),
        lambda r, value: r.holder["a"].__setitem__(0, value),
    ),
    "variable": (
        lambda: Held(keras.Variable(1.0), lambda a: a.value),
        lambda r, value: r.holder.assign(value),
    ),
    "slot": (lambda: Slotted(1.0), lambda r, value: setattr(r, "strength", value)),
    "another regularizer": (
        lambda: Held(WEISSI(1.0), lambda a: a.log_norm),
        lambda r, value: setattr(r.holder, "log_norm", value),
    ),
    "WEISSI itself": (
        lambda: WEISSI(1.0),
        lambda r, value: setattr(r, "log_norm", np.array(value)),
    ),
}
if takes_functions_as_regularizers():
    HELD["in what is none"] = (
        lambda: Holding(WEISSI(1.0)),
        lambda r, value: setattr(r.inside[0], "log_norm", value),
    )


@pytest.mark.parametrize("name", HELD)
def test_a_strength_that_is_kept_elsewhere_is_followed(name):
    make, change = HELD[name]
    regularizer = make()
    model = make_model(regularizer, optimizer=keras.optimizers.SGD(0.0))
    schedule = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: change(regularizer, 0.5 + epoch)
    )
    snapshots, logger = Snapshots(), NormLogger()
    history = fit(model, schedule, logger, snapshots, epochs=3).history
    expected = [penalty for _, penalty in snapshots.epochs]
    np.testing.assert_allclose(history["regularization_loss"], expected, rtol=1e-5)
    assert len(set(expected)) == 3
    read = logger._watcher._read
    fit(model, logger)
    assert logger._watcher._read is read  # nothing has changed


@pytest.mark.parametrize("value", [1.0, np.nan, np.inf])
def test_two_loggers_say_the_same(value):
    model = make_model(WEISSI(), optimizer=keras.optimizers.SGD(0.0))
    model.get_layer("h0").kernel.assign(np.full((4, 4), value))
    loggers = NormLogger(), NormLogger(progress_bar=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The norm of kernel .* is no longer")
        fit(model, *loggers)
    np.testing.assert_equal(loggers[0].record, loggers[1].record)
    with pytest.warns(UserWarning, match="replaces '.*norm_product' in") as caught:
        fit(make_model(WEISSI()), NormLogger("h0"), NormLogger(["h0", "h1"]))
    assert sum("NormLogger replaces" in str(w.message) for w in caught) == 2


def test_a_weissi_before_a_normalization_is_warned_of_once():
    def conv(name, regularizer):
        return layers.Conv1D(4, 1, kernel_regularizer=regularizer, name=name)

    model = keras.Sequential(
        [
            keras.Input((4, 1)),
            conv("first", WEISSI()),
            layers.BatchNormalization(name="bn"),
            conv("second", WEISSI(0.0, 0.1)),  # a penalty on the direction alone
            layers.LayerNormalization(),
            conv("third", "l2"),
            layers.LayerNormalization(),
            conv("fourth", WEISSI()),
            layers.LayerNormalization(),
            conv("free", WEISSI()),
        ]
    )
    model.get_layer("fourth").trainable = False
    model.compile("sgd", "mse")
    x = np.ones((8, 4, 1), "float32")
    logger = NormLogger()
    with pytest.warns(UserWarning, match="normalized away") as caught:
        for _ in range(2):
            model.fit(x, x, epochs=2, verbose=0, callbacks=[logger])
    messages = [str(w.message) for w in caught]
    (message,) = [m for m in messages if "normalized away" in m]
    assert "away by the layer after them: 'first' (by 'bn'). There" in message
    assert "If you do not want that, leave them out" in message


def test_a_file_is_no_layer_and_the_error_says_what_writes_one():
    with pytest.raises(ValueError, match=r"`layers`.*CSVLogger\('norms.csv'\) after"):
        fit(make_model(), NormLogger("norms.csv"))
    with pytest.raises(ValueError) as error:
        fit(make_model(), NormLogger("norms"))
    assert "CSVLogger" not in str(error.value)
