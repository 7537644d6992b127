"""The models that people fine-tune: every kernel is accounted for."""

import gc
import importlib
import re
import sys

import keras
import numpy as np
import pytest
from helpers import ROOT, files_named, penalty_of, run_example
from keras import layers

from keras_weissi import WEISSI, norm_table, regularize, scale_groups

# The first two take every way through a backend; the others are other graphs.
NAMES = [
    *("MobileNetV2", "ConvNeXtTiny"),
    *(
        pytest.param(name, marks=pytest.mark.one_backend)
        for name in ("ResNet50", "EfficientNetB0", "DenseNet121")
    ),
]


def build(name):
    application = getattr(keras.applications, name)
    return application(
        weights=None, include_top=False, input_shape=(32, 32, 3), pooling="avg"
    )


@pytest.mark.slow
@pytest.mark.one_backend
@pytest.mark.filterwarnings("ignore:regularize put a regularizer on 0 of")
def test_the_counts_of_the_guide():
    text = (ROOT / "docs" / "normalization.md").read_text(encoding="utf-8")
    table = text.split("<!-- counts -->\n")[1].split("<!-- end of counts -->")[0]
    rows = [row.strip("| ").split(" | ") for row in table.splitlines()[2:]]
    assert len(rows) == 5
    for name, *counts in rows:
        model = getattr(keras.applications, name)(weights=None)
        report = regularize(model, WEISSI(0.01))
        assert [int(count) for count in counts] == [
            len(report),
            sum(row.changed for row in report),
            sum(row.scale.startswith("normalized") for row in report),
            scale_groups(model).dimension,
        ], name


def no_loss(y, prediction):
    return 0.0 * keras.ops.mean(prediction)


# All kernels of some are normalized.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:regularize put a regularizer on 0 of")
@pytest.mark.parametrize("name", NAMES)
def test_applications(name, tmp_path):
    model = build(name)
    # Found by their shapes: nothing else in these models has a rank above 1.
    matrices = [w for w in model.weights if len(w.shape) > 1]
    report = regularize(model, WEISSI(0.01))
    assert sorted(row.shape for row in report) == sorted(
        tuple(w.shape) for w in matrices
    )
    assert len({row.name for row in report}) == len(report)
    assert all(row.changed != row.scale.startswith("normalized by") for row in report)
    assert not any(row.note for row in report)
    table = norm_table(model, print_fn=None)
    assert [row.scale for row in table] == [row.scale for row in report]

    report = regularize(model, WEISSI(0.01), include_normalized=True)
    assert all(row.changed for row in report) and len(model.losses) == len(report)
    model.compile(keras.optimizers.SGD(0.1), no_loss)
    x = np.zeros((1, 32, 32, 3), "float32")
    model.fit(x, np.zeros((1, 1), "float32"), verbose=0)
    for before, after in zip(report, norm_table(model, print_fn=None), strict=True):
        assert after.norm < before.norm, before.name

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    assert len(loaded.losses) == len(report)
    assert penalty_of(loaded) == pytest.approx(penalty_of(model), rel=1e-6)


def calls_of_regularize(count):
    """Returns how many calls `regularize` makes on a chain of `count` layers."""
    inputs = keras.Input((4,))
    x = inputs
    for _ in range(count):
        x = layers.Dense(4)(x)
    model = keras.Model(inputs, x)
    calls = 0

    def profile(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    gc.collect()  # it looks at all objects that are alive
    sys.setprofile(profile)
    try:
        report = regularize(model, WEISSI(0.01))
    finally:
        sys.setprofile(None)
    assert sum(row.changed for row in report) == count
    return calls


# Times depend on what else the machine does; the number of calls does not.
@pytest.mark.slow
def test_what_it_takes_grows_with_the_number_of_layers():
    calls_of_regularize(100)  # what is imported or made once
    counts = [calls_of_regularize(count) for count in (100, 200, 400)]
    assert counts[2] - counts[1] < 2.2 * (counts[1] - counts[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "model, kept, left_out",
    [
        pytest.param("VGG16", "14 of 14", None, marks=pytest.mark.one_backend),
        ("MobileNetV2", "1 of 53", "normalized by bn_Conv1"),
    ],
)
def test_finetune_example(model, kept, left_out, tmp_path):
    arguments = ["--model", model, "--epochs", 1, "--images", 20, "--out", tmp_path]
    result = run_example("finetune.py", *arguments)
    assert result.returncode == 0, result.stderr
    assert f"{kept} kernels got the penalty" in result.stdout
    assert left_out is None or left_out in result.stdout
    assert "saved and loaded" in result.stdout
    assert files_named(result.stdout) == {p.name for p in tmp_path.iterdir()}
    assert files_named(result.stdout) == {"norms.png", "model.keras"}


@pytest.mark.slow
@pytest.mark.one_backend
def test_finetune_example_compares(tmp_path):
    arguments = ["--seeds", 1, "--epochs", 2, "--images", 20, "--out", tmp_path]
    result = run_example("finetune.py", *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("One seed shows no clear difference.") == 2
    assert "4 of 4 kernels got the penalty" in result.stdout
    assert "saved and loaded: 4 kernels with a penalty" in result.stdout
    # Of both tasks: an accuracy, a difference, an angle.
    numbers = r"│ +\d+\.\d % │ +[+-]\d+\.\d │ +(\d+)° │"
    for penalty in ("L2 +", r"L2 \+ ScaleBalancer +", r"WEISSI \+ ScaleBalancer +"):
        angles = re.findall(f"│ {penalty}{numbers}", result.stdout)
        assert len(angles) == 2 and all(int(angle) < 90 for angle in angles)
    assert files_named(result.stdout) == {p.name for p in tmp_path.iterdir()}
    assert (tmp_path / "finetune.png").read_bytes().startswith(b"\x89PNG")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    weissi = loaded.get_layer("new").kernel_regularizer
    assert isinstance(weissi, WEISSI) and len(loaded.losses) == 4


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "VGG17"], "argument --model: no 'VGG17' there, but"),
        (["--seeds", "3", "--model", "VGG16"], "--seeds: has an effect only without"),
        (["--size=32"], "argument --size: has an effect only with --model"),
        (["--weights", "random"], "--weights: has an effect only with --model"),
        (["--epochs", "0"], "argument --epochs: expected an int of at least 1"),
        (["--out", "/dev/null/x"], "argument --out: cannot write to"),
    ],
)
def test_finetune_example_names_bad_values(arguments, message):
    result = run_example("finetune.py", *arguments)
    assert result.returncode == 2
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


@pytest.mark.one_backend
def test_finetune_example_concludes_from_the_intervals(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    conclude = importlib.import_module("finetune").conclude
    intervals = {
        "a": "+0.6 ± 1.3",
        "b": "+0.9 ± 0.5",
        "c": "-0.4 ± 0.2",
        "d": "+0.1 ± 0.1",
        "e": "-1.0 ± 1.2",
        "f": "+0.0",
    }
    assert conclude(intervals).splitlines() == [
        "Compared with no penalty:",
        "  better: b",
        "  worse: c",
        "  no clear difference: a, d, e, f",
    ]
    assert "better" not in conclude({"a": "+0.6 ± 1.3"})
