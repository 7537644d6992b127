"""What goes wrong in practice: kills, full disks, NaN, threads, edited files."""

import ast
import csv
import errno
import io
import json
import os
import pickletools
import stat
import threading
import warnings
import zipfile

import keras
import numpy as np
import pytest
from helpers import ROOT, norm_of, penalty_of, run_python, to_numpy
from keras import layers

from keras_weissi import WEISSI, NormLogger, ScaleBalancer, regularize

X = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
Y = X[:, :1]


def make_model(log_norm=0.1, optimizer="sgd"):
    weissi = {"kernel_regularizer": WEISSI(log_norm, 0.01)}
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(8, "relu", name="hidden", **weissi),
            layers.Dense(1, name="out", **weissi),
        ]
    )
    model.compile(optimizer, "mse")
    return model


def fit(model, *callbacks, **arguments):
    arguments = {"epochs": 2, "batch_size": 8, "verbose": 0, **arguments}
    return model.fit(X, Y, callbacks=list(callbacks), **arguments)


class Watch(keras.callbacks.Callback):
    """Takes norms and penalty from outside, and counts warnings, at epoch ends."""

    def __init__(self, caught=()):
        super().__init__()
        self.caught = caught
        self.norms, self.penalties, self.warned, self.finite = [], [], [], []

    def on_epoch_end(self, epoch, logs=None):
        kernels = [self.model.get_layer(name).kernel for name in ("hidden", "out")]
        with np.errstate(invalid="ignore"):
            self.norms.append([norm_of(kernel) for kernel in kernels])
        self.penalties.append(penalty_of(self.model))
        self.finite.append([bool(np.isfinite(to_numpy(k)).all()) for k in kernels])
        self.warned.append([str(w.message) for w in self.caught])


def read_csv(path):
    with open(path, newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


@pytest.fixture
def full_disk(tmp_path, monkeypatch):
    """Every write below `tmp_path` fails as on a full disk: it goes to `/dev/full`."""
    if not os.path.exists("/dev/full"):
        pytest.skip("the system has no /dev/full")
    original = open

    def open_on_full_disk(file, mode="r", *arguments, **keywords):
        is_there = str(file).startswith(str(tmp_path))
        if is_there and mode[0] in "wax":
            original(file, mode, *arguments, **keywords).close()
            file = "/dev/full"
        return original(file, mode, *arguments, **keywords)

    def switch(on):
        monkeypatch.setattr("builtins.open", open_on_full_disk if on else original)

    yield switch
    switch(False)


def test_a_full_disk_is_an_error_of_to_csv_with_the_name_of_the_file(
    tmp_path, full_disk
):
    path = tmp_path / "norms.csv"
    logger = trained_logger()
    logger.to_csv(path)
    old = path.read_bytes()
    logger.record.append({**logger.record[-1], "epoch": 2})
    full_disk(True)
    with pytest.raises(OSError) as caught:
        logger.to_csv(path)
    full_disk(False)
    assert caught.value.errno == errno.ENOSPC
    assert str(path) in str(caught.value) and "No space left" in str(caught.value)
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["norms.csv"]


def trained_logger():
    logger = NormLogger()
    fit(make_model(), logger, epochs=1)
    return logger


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    logger = trained_logger()
    for path in (tmp_path, "/dev/null/norms.csv", "/proc/norms.csv"):
        with pytest.raises(OSError) as error:
            logger.to_csv(path)
        assert str(path) in str(error.value) and ".tmp" not in str(error.value)
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_named(tmp_path):
    logger = trained_logger()
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(PermissionError) as error:
        logger.to_csv(tmp_path / "norms.csv")
    tmp_path.chmod(stat.S_IRWXU)
    assert str(tmp_path / "norms.csv") in str(error.value)
    assert ".tmp" not in str(error.value) and not os.listdir(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes")
def test_a_pipe_or_a_device_is_written_to_and_not_replaced(tmp_path):
    logger = trained_logger()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()))
    reader.start()
    logger.to_csv(pipe)
    reader.join(600)
    assert stat.S_ISFIFO(os.stat(pipe).st_mode) and os.listdir(tmp_path) == ["pipe"]
    rows = list(csv.DictReader(io.StringIO(received[0])))
    assert [row["epoch"] for row in rows] == ["0", "1"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "target.csv"
    target.write_text("old")
    (tmp_path / "link.csv").symlink_to(target)
    trained_logger().to_csv(tmp_path / "link.csv")
    assert (tmp_path / "link.csv").is_symlink()
    assert len(read_csv(target)) == 2


@pytest.mark.parametrize("batch_size", [32, 8])
@pytest.mark.parametrize("broken", [1, 2])
def test_a_kernel_that_explodes_is_named_in_that_epoch(broken, batch_size):
    """One step at this rate gives infinity, four give NaN."""
    model = make_model()
    rate = keras.callbacks.LearningRateScheduler(
        lambda e: 3e38 if e == broken else 1e-9
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watch = Watch(caught)
        # The targets are large, so that the gradients are, too.
        history = model.fit(
            X,
            1e4 * Y,
            batch_size=batch_size,
            epochs=broken + 2,
            verbose=0,
            callbacks=[rate, NormLogger(), watch],
        ).history
    for i, name in enumerate(("hidden", "out")):
        finite = [row[i] for row in watch.finite]
        assert finite == [epoch < broken for epoch in range(broken + 2)]
        told = [
            sum(f"'{name}' is no longer finite" in message for message in messages)
            for messages in watch.warned
        ]
        assert told == [int(epoch >= broken) for epoch in range(broken + 2)]
        assert np.isfinite(history[f"norm/{name}"]).tolist() == finite


@pytest.mark.parametrize("balanced", [False, True])
def test_two_fits_in_two_threads_keep_their_records_apart(balanced):
    models = [make_model(optimizer=keras.optimizers.SGD(0.01, 0.5)) for _ in range(2)]
    strengths = (0.05, 0.3)
    starts = [
        [norm_of(m.get_layer(n).kernel) for n in ("hidden", "out")] for m in models
    ]
    loggers = [NormLogger(update_freq=3) for _ in models]
    watches = [Watch() for _ in models]
    together = threading.Barrier(2, timeout=600)
    errors = []

    def train(model, log_norm, logger, watch):
        meet = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: together.wait()
        )
        balancer = [ScaleBalancer(start=False)] if balanced else []
        try:
            regularize(model, WEISSI(log_norm, 0.01))
            fit(model, meet, *balancer, logger, watch, epochs=4)
        except Exception as error:
            together.abort()
            errors.append(error)

    threads = [
        threading.Thread(target=train, args=arguments)
        for arguments in zip(models, strengths, loggers, watches, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert not errors
    for model, log_norm in zip(models, strengths, strict=True):
        for name in ("hidden", "out"):
            kept = model.get_layer(name).kernel_regularizer.get_config()
            assert kept["log_norm"] == log_norm
    for logger, watch, start in zip(loggers, watches, starts, strict=True):
        rows = [row for row in logger.record if row["step"] % 4 == 0]
        for norms in watch.norms:
            assert (norms[0] == pytest.approx(norms[1], rel=1e-6)) == balanced
        index = [(row["epoch"], row["step"]) for row in rows]
        assert index == [(0, 0), (1, 4), (2, 8), (3, 12), (4, 16)]
        for row, norms in zip(rows, [start, *watch.norms], strict=True):
            logged = [row["norm/hidden"], row["norm/out"]]
            assert logged == pytest.approx(norms, rel=1e-6)
        penalties = [row["regularization_loss"] for row in rows[1:]]
        assert penalties == pytest.approx(watch.penalties, rel=1e-5, abs=1e-6)
    assert loggers[0].record[-1]["norm/out"] != loggers[1].record[-1]["norm/out"]


def edited(path, change):
    """Changes the saved WEISSI objects in the `config.json` of a .keras archive."""

    def visit(node):
        if isinstance(node, dict):
            if node.get("class_name") == "WEISSI":
                change(node)
            for value in node.values():
                visit(value)
        elif isinstance(node, list):
            for value in node:
                visit(value)

    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    visit(config)
    members["config.json"] = json.dumps(config).encode()
    new = path.with_name("edited.keras")
    with zipfile.ZipFile(new, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return new


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.keras"
    model = make_model(0.3)
    fit(model, epochs=1)
    model.save(path)
    return path


@pytest.mark.parametrize("name", ["log_norm", "direction_l1", "min_norm"])
@pytest.mark.parametrize(
    "value", [-1, "abc", None, 10**400, float("inf"), float("nan"), True, [], {}, 1e99]
)
def test_a_bad_value_in_a_file_is_named(saved, name, value):
    path = edited(saved, lambda node: node["config"].update({name: value}))
    with pytest.raises((ValueError, TypeError)) as error:
        keras.models.load_model(path)
    assert f"Invalid value for argument `{name}`. Expected " in str(error.value)


@pytest.mark.parametrize(
    "name, default", [("log_norm", 0.01), ("direction_l1", 0.0), ("min_norm", 0.1)]
)
def test_an_argument_that_a_file_leaves_out_has_its_default(saved, name, default):
    path = edited(saved, lambda node: node["config"].pop(name))
    config = keras.models.load_model(path).layers[0].kernel_regularizer.get_config()
    expected = {"log_norm": 0.3, "direction_l1": 0.01, "min_norm": 0.1, name: default}
    assert config == expected


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda node: node["config"].update(strength=1.0), "strength"),
        (lambda node: node.update(config=3), "config"),
        (lambda node: node.update(config=[1]), "config"),
        (
            lambda node: node.update(
                class_name="WEISS", registered_name="keras_weissi>WEISS"
            ),
            "WEISS",
        ),
        (
            lambda node: node.update(
                module="os", class_name="system", registered_name="system"
            ),
            "system",
        ),
    ],
    ids=["unknown key", "a number", "a list", "unknown class", "a function of os"],
)
def test_a_file_that_makes_no_sense_is_refused(saved, change, named):
    path = edited(saved, change)
    with pytest.raises((ValueError, TypeError)) as error:
        keras.models.load_model(path)
    assert named in str(error.value)


def in_layers():
    return make_model(0.2)


def by_regularize():
    model = keras.Sequential(
        [
            keras.Input((6, 4)),
            layers.Bidirectional(layers.LSTM(3, name="lstm")),
            keras.Sequential([keras.Input((6,)), layers.Dense(5, name="inner")]),
            layers.BatchNormalization(),
            layers.Dense(1, name="out"),
        ]
    )
    model.compile("adam", "mse")
    regularize(model, WEISSI(0.02, 0.003, 0.5))
    return model


def is_pickle(content):
    """Whether all of it is a pickle, by Python's own reading of the opcodes."""
    try:
        return sum(1 for _ in pickletools.genops(content)) > 0
    except Exception:
        return False


def test_what_is_saved_loads_safely_elsewhere(tmp_path):
    models = [in_layers(), by_regularize()]
    paths = [tmp_path / f"model-{i}.keras" for i in range(len(models))]
    for model, path in zip(models, paths, strict=True):
        model.save(path)
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        assert set(members) == {"metadata.json", "config.json", "model.weights.h5"}
        assert not any(is_pickle(content) for content in members.values())
        assert members["model.weights.h5"].startswith(b"\x89HDF\r\n\x1a\n")
        assert b"__lambda__" not in members["config.json"]
    program = """
import json, pickle, sys
import keras, keras_weissi

def refuse(*arguments, **keywords):
    raise RuntimeError("unpickled")

pickle.load = pickle.loads = pickle.Unpickler = refuse
for path in sys.argv[1:]:
    model = keras.models.load_model(path, safe_mode=True)
    losses = [float(keras.ops.convert_to_numpy(loss)) for loss in model.losses]
    print("losses:", json.dumps(losses))
"""
    result = run_python("-c", program, *paths)
    assert result.returncode == 0, result.stderr
    loaded = [json.loads(text) for text in result.stdout.split("losses:")[1:]]
    for losses, model in zip(loaded, models, strict=True):
        assert len(losses) == len(model.losses) > 1
        assert sum(losses) == pytest.approx(penalty_of(model), rel=1e-6)


def test_the_reading_of_pickles_sees_one():
    import pickle

    assert is_pickle(pickle.dumps({"a": 1})) and not is_pickle(b"\x89HDF\r\n\x1a\n")


MODULES = sorted((ROOT / "keras_weissi").rglob("*.py"))


@pytest.mark.parametrize(
    "path", MODULES, ids=lambda path: f"{path.parent.name}.{path.stem}"
)
def test_no_module_runs_code_from_a_file(path):
    tree = ast.parse(path.read_text())
    calls, imports = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            calls.add(node.id)
        elif isinstance(node, ast.Attribute):
            calls.add(node.attr)
        elif isinstance(node, ast.Import):
            imports.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imports.add(node.module.split(".")[0])
    # The `compile` of a model, in a docstring, is no code here.
    assert not calls & {"eval", "exec", "__import__", "import_module", "system"}
    assert not calls & {"enable_unsafe_deserialization", "loads", "Unpickler"}
    code = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    assert not imports & (code | {"importlib", "runpy", "subprocess", "ctypes"})


def test_the_modules_are_found():
    assert {"regularizers.py", "norm_logger.py"} <= {path.name for path in MODULES}


def test_a_file_keeps_who_may_read_it(tmp_path):
    path = tmp_path / "norms.csv"
    path.write_text("old")
    path.chmod(0o600)
    trained_logger().to_csv(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.read_text() != "old"


def test_threads_that_write_one_file_leave_a_whole_one(tmp_path):
    logger, path, errors = trained_logger(), tmp_path / "norms.csv", []
    logger.record *= 500

    def write():
        try:
            for _ in range(10):
                logger.to_csv(path)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert not errors and os.listdir(tmp_path) == ["norms.csv"]
    assert len(path.read_text().splitlines()) == 1 + len(logger.record)
