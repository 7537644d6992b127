"""The benchmark of the evidence: its protocol, and that it runs and resumes."""

import csv
import dataclasses
import os
import re
import subprocess
import sys
from unittest import mock

import keras
import numpy as np
import pytest
from helpers import BACKEND, ROOT

from keras_weissi import largest_log_norm

if BACKEND != "jax":
    pytest.skip("runs on JAX alone", allow_module_level=True)

BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
# The package sets the environment for its own processes, not for these tests.
with mock.patch.dict(os.environ):
    from evidence.report.limits import largest_pull
    from evidence.report.numbers import Numbers
    from evidence.report.statistics import Evidence, compare
    from evidence.runs import gather
    from evidence.search import Budget, choose, trials
    from evidence.study import calibration_error
    from evidence.tasks import NETWORKS, TASKS, load
    from evidence.training import BATCH, METHODS, Trainer


def test_trials_widen_and_refine_and_are_equally_many():

    for best in (1e-4, 0.01, 0.013, 0.7):
        tried = []

        def judge(strength, best=best, tried=tried):
            tried.append(strength)
            return 0.9, abs(np.log(strength / best))

        chosen, judged = trials(0.01, judge, 1000, grid=7, count=16)
        assert len(tried) == len(set(tried)) == len(judged) == 16
        assert abs(np.log2(chosen / best)) < 0.3
        assert min(judged) < chosen < max(judged)
    assert trials(0.0, lambda s: (1.0, 1.0), 1000, 7, 12) == (0.0, {0.0: (1.0, 1.0)})


def test_trials_find_a_best_that_stands_next_to_the_collapse():
    def judge(strength):
        return (0.1, 2.3) if strength > 0.8 else (0.9, -np.log(max(strength, 0.1)))

    assert 0.65 < trials(0.1, judge, 1000, grid=7, count=12)[0] <= 0.8


def test_of_accuracies_within_the_standard_error_the_least_loss_is_chosen():
    # By hand: sqrt(0.9 * 0.1 / 900) = 0.01.
    judged = {1.0: (0.9, 0.5), 2.0: (0.8901, 0.3), 3.0: (0.8899, 0.1)}
    assert choose(judged, 900) == 2.0
    assert choose(judged, 1000) == 1.0


def test_methods_that_a_task_does_not_compare_are_refused(capsys):
    pytest.importorskip("jinja2")
    from evidence.__main__ import parse_arguments

    arguments = ["--task", "width-64", "--method"]
    assert parse_arguments([*arguments, "none", "l2"]).method == ["none", "l2"]
    with pytest.raises(SystemExit):
        parse_arguments([*arguments, "none"])
    assert "--method: width-64 compares l2, weissi" in capsys.readouterr().err


def test_calibration_error():
    sure = np.array([[0.9, 0.1]] * 10)
    labels = np.array([0] * 9 + [1])
    assert calibration_error(sure, labels) == pytest.approx(0.0)
    assert calibration_error(sure, 1 - labels) == pytest.approx(0.8)


def test_splits_are_drawn_by_the_seed_and_have_no_row_in_common():
    for name in ("digits-noise20", "wine", "breast-cancer", "digits-cnn"):
        task = TASKS[name]
        one, same, other = load(task, 1), load(task, 1), load(task, 2)
        np.testing.assert_array_equal(one.x_test, same.x_test)
        assert not np.array_equal(one.x_test, other.x_test)
        assert len(one.x) == task.train
        rows = [
            {row.tobytes() for row in part}
            for part in (one.x, one.x_validation, one.x_test)
        ]
        assert not rows[0] & rows[2] and not rows[1] & rows[2]
        assert one.x.min() >= 0 and one.x.max() <= 1


def test_a_fifth_of_the_labels_is_wrong_and_none_of_the_test():
    noisy = load(TASKS["digits-noise20"], 0)
    clean = load(dataclasses.replace(TASKS["digits-noise20"], noise=0.0), 0)
    assert np.mean(noisy.y != clean.y) == pytest.approx(0.2, abs=0.04)
    assert np.mean(noisy.y_validation != clean.y_validation) > 0.1
    np.testing.assert_array_equal(noisy.y_test, clean.y_test)


def test_the_network_in_pytorch_is_the_same():
    pytest.importorskip("foolbox")
    torch = pytest.importorskip("torch")
    from evidence.attacks import TorchNetwork

    x = np.random.default_rng(0).random((5, 8, 8, 1)).astype("float32")
    model = NETWORKS["cnn"]((8, 8, 1), 10)
    weights = [np.asarray(w) for w in model.get_weights()]
    for i in range(1, len(weights), 2):
        weights[i] = np.random.default_rng(i).normal(size=weights[i].shape)
        weights[i] = weights[i].astype("float32")
    model.set_weights(weights)
    network = TorchNetwork(weights, strides=(1, 2, 2), scale=3.0)
    outputs = network(torch.tensor(x.transpose(0, 3, 1, 2).copy())).detach().numpy()
    np.testing.assert_allclose(outputs, 3 * np.asarray(model(x)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_step_is_that_of_fit(optimizer):
    """Trains an epoch with L2 as a user would, and by the benchmark."""
    task = dataclasses.replace(TASKS["digits-100"], epochs=1)
    split = load(task, 0)
    trainer = Trainer(task, "l2", optimizer, split)
    trained, _ = trainer.train(split, 0.01, seed=3)

    # The start and the order of the rows, drawn again.
    rng = np.random.default_rng(3)
    start = []
    for variable in trainer.model.trainable_variables:
        make = keras.initializers.Zeros()
        if variable.name == "kernel":
            make = keras.initializers.HeNormal(seed=int(rng.integers(2**31)))
        start.append(np.asarray(make(variable.shape)))
    order = rng.permutation(len(split.x))[: trainer.steps * BATCH]
    model = keras.models.clone_model(trainer.model)
    model.set_weights(start)
    for layer in model.layers:
        layer.kernel.regularizer = keras.regularizers.L2(0.01)
    kind = {"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam}[optimizer]
    momentum = {"momentum": 0.9} if optimizer == "sgd" else {}
    model.compile(
        kind(trainer.rate, **momentum),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(split.x[order], split.y[order], BATCH, shuffle=False, verbose=0)
    for one, two in zip(trained, model.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


def test_the_comparison_is_paired_and_has_the_interval_of_student():
    result = compare([0.6, 0.8, 1.03], [0.5, 0.7, 0.9], ratio=0.5)
    # By hand: differences of 0.1, 0.1, 0.13; t of 2 degrees of freedom is 4.3027.
    half = 4.3027 * np.std([0.1, 0.1, 0.13], ddof=1) / np.sqrt(3)
    assert result.base == pytest.approx(0.7)
    assert result.difference == pytest.approx(0.11)
    assert result.low == pytest.approx(0.11 - half, rel=1e-4)
    assert result.high == pytest.approx(0.11 + half, rel=1e-4)
    assert result.p == pytest.approx(0.00817, abs=2e-4)
    # The variance is (1 / 3 + 0.5) in place of 1 / 3 of that of the differences.
    assert result.corrected == pytest.approx(half * np.sqrt(2.5), rel=1e-4)
    assert (result.verdict(), result.verdict(corrected=True)) == ("win", "win")
    assert compare([0.5, 0.7, 0.9], [0.6, 0.8, 1.03]).verdict() == "loss"
    assert compare([0.5, 0.7, 0.9], [0.6, 0.5, 0.95]).verdict() == "tie"
    same = compare([0.5, 0.7], [0.5, 0.7])
    assert (same.p, same.error, same.verdict()) == (1.0, 0.0, "tie")


def test_the_limit_with_wrong_labels_is_the_maximum_of_its_formula():
    x = np.linspace(0, 30, 300_001)
    p = np.exp(x) / (np.exp(x) + 9)
    for noise in (0.2, 0.4):
        expected = (x * (1 - noise - p)).max()
        assert largest_pull(10, noise) == pytest.approx(expected, abs=1e-6)
    assert largest_pull(3, 0.0) == pytest.approx(largest_log_norm(3), abs=1e-8)


@pytest.fixture(scope="module")
def committed():
    """All runs that the results in the repository are made from."""
    sys.path.insert(0, str(BENCHMARKS))

    return gather(BENCHMARKS / "results")


def test_the_runs_are_those_that_the_protocol_asks_for(committed):
    """Carries out the search again, and takes the results from the table."""
    budget = Budget()
    studies = {}
    for row in committed:
        study = studies.setdefault((row["task"], row["optimizer"], row["method"]), {})
        runs = study.setdefault((row["stage"], f"{row['strength']:.6g}"), {})
        runs[row["seed"]] = row["validation_accuracy"], row["validation_loss"]
    asked = {
        (task.name, optimizer, method)
        for task in TASKS.values()
        for optimizer in ("sgd", "adam")
        for method in task.methods or METHODS
        if not task.online
    }
    assert set(studies) == asked
    rows = {task: len(load(TASKS[task], 0).y_validation) for task, _, _ in studies}
    for (task, _, method), study in studies.items():
        seen = set()

        def judge(strength, study=study, seen=seen):
            key = "search", f"{strength:.6g}"
            assert tuple(study[key]) == budget.search
            seen.add(key)
            return tuple(np.mean(list(study[key].values()), axis=0))

        start = METHODS[method].start
        chosen, judged = trials(
            start, judge, rows[task] * 3, budget.grid, budget.trials
        )
        assert len(judged) == (budget.trials if start else 1)
        final = "final", f"{chosen:.6g}"
        assert set(study) == {*seen, final}
        assert tuple(study[final]) == budget.final


def test_every_number_of_the_report_is_made_from_the_runs(committed):
    pytest.importorskip("jinja2")
    from evidence.report.render import RESULTS, texts

    for name, text in texts(Evidence(committed)).items():
        path = RESULTS / name
        assert path.read_text(encoding="utf-8") == text, f"{name}: run --report"
    pictures = {path.name for path in (RESULTS / "figures").iterdir()}
    assert {"summary.png", "cliff.png", "digits-noise20_sgd.png"} <= pictures
    size = sum(path.stat().st_size for path in RESULTS.rglob("*") if path.is_file())
    assert size < 6e6


def test_what_the_report_says_in_words_is_so(committed):
    numbers = Numbers(Evidence(committed))
    compared = [method for method in METHODS if method != "l2"]
    for method in (*compared, "picked"):
        assert numbers.counts(method, corrected=True)["win"] == 0
    for measures in (["deepfool"], ["test_accuracy", "deepfool"]):
        gains = {
            m: sum(numbers.counts(m, k)["win"] for k in measures) for m in compared
        }
        assert max(gains, key=gains.get) == "l2-balanced"
        assert sorted(gains.values())[-1] > sorted(gains.values())[-2]
    marked = numbers.marked(("breast-cancer", "adam"), "l2-balanced", "deepfool")
    assert marked.endswith("▲†")
    assert numbers.difference("wine", "sgd", "l2-balanced") == "+0.00 [+0.00, +0.00]"


def test_partial_results_are_compared_on_the_seeds_that_both_have(committed):
    setting, left_out = ("wine", "sgd"), ("wine", "sgd", "none", "final", 205)
    keys = ("task", "optimizer", "method", "stage", "seed")
    evidence = Evidence([r for r in committed if tuple(r[k] for k in keys) != left_out])
    found = evidence.against(setting, "none")
    whole = Evidence(committed)
    pairs = zip(whole.finals(setting, "none"), whole.finals(setting, "l2"), strict=True)
    expected = [
        one["test_accuracy"] - two["test_accuracy"]
        for one, two in pairs
        if one["seed"] != 205
    ]
    assert found.difference == pytest.approx(np.mean(expected))
    without = Evidence([row for row in committed if row["method"] != "l2"])
    assert without.settings == []


def test_no_result_is_written_into_the_templates_by_hand():
    pytest.importorskip("jinja2")
    from evidence.report.render import TEMPLATES

    # What is left are levels of confidence, of attacks and of wrong labels.
    allowed = {"95 %", "20 %", "40 %", "5 %", "0.1"}
    for path in TEMPLATES.iterdir():
        text = re.sub(
            r"\{\{.*?\}\}|\{%.*?%\}|`[^`]*`", "", path.read_text(), flags=re.S
        )
        found = set(re.findall(r"\d+\.\d+|\d+ %", text))
        assert found <= allowed, f"{path.name}: {found - allowed}"


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(BENCHMARKS / "evidence"), *arguments],
        capture_output=True,
        text=True,
        timeout=1200,
        env={**os.environ, "KERAS_BACKEND": "jax"},
    )


@pytest.mark.slow
def test_runs_resumes_and_reports(tmp_path):
    pytest.importorskip("foolbox")
    task = ["--task", "digits-100", "--optimizer", "sgd", "--quick"]
    task += ["--method", "none", "l2", "weissi-balanced", "--jobs", "2"]
    out = ["--out", str(tmp_path)]
    result = run(*task, *out)
    tmp_path = tmp_path / "quick"
    assert result.returncode == 0, result.stderr
    files = sorted((tmp_path / "runs").glob("*/*.json"))
    assert len(files) == 3 + 2 * 5  # seeds, and strengths for those that have one
    assert not list(tmp_path.glob("**/*.tmp"))

    assert run("--quick", "--report", *out).returncode == 0
    table = (tmp_path / "runs.csv").read_text()
    text = (tmp_path / "TABLES.md").read_text()
    assert text.count("| weissi-balanced |") == 3
    assert (tmp_path / "figures" / "digits-100_sgd.png").exists()

    # What was killed is run again, what is in the table is not.
    for path in files:
        path.unlink()
    rows = list(csv.DictReader(table.splitlines()))
    kept = [row for row in rows if (row["method"], row["stage"]) != ("l2", "final")]
    with open(tmp_path / "runs.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(kept)
    assert run(*task, *out).returncode == 0
    again = sorted((tmp_path / "runs").glob("*/*.json"))
    assert [path.name.split("_")[0] for path in again] == ["l2", "l2"]
    assert run("--quick", "--report", *out).returncode == 0
    assert (tmp_path / "TABLES.md").read_text() == text
