"""The study of the claims: how rates are searched, what decides, what is trained."""

import csv
import os
import subprocess
import sys
from unittest import mock

import keras
import numpy as np
import pytest
from helpers import BACKEND, ROOT

from keras_weissi import WEISSI, balance_scales

if BACKEND != "jax":
    pytest.skip("runs on JAX alone", allow_module_level=True)
pytest.importorskip("scipy")

EVIDENCE = ROOT / "benchmarks" / "evidence"
RESULTS = ROOT / "benchmarks" / "results" / "claims"
sys.path.insert(0, str(ROOT / "benchmarks"))
with mock.patch.dict(os.environ):
    import jax

    precision = jax.config.jax_default_matmul_precision
    from evidence.claims.claims import CLAIMS, as_markdown, decide, interval
    from evidence.claims.data import FINAL, LENGTH, SEARCH, TEST, TRAIN, VALIDATION
    from evidence.claims.pages import blocks, filled
    from evidence.claims.report import Finals, verdict_text
    from evidence.claims.search import ROUNDS, choose, next_pairs
    from evidence.claims.settings import METHODS, SETTINGS
    from evidence.claims.training import Run, Trainer

    # The study asks for more precision than other tests.
    jax.config.update("jax_default_matmul_precision", precision)


@pytest.fixture(scope="module")
def rows():
    with open(RESULTS / "runs.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def searched(middle, accuracy):
    judged = []
    for _ in range(ROUNDS):
        judged.append({p: accuracy(*p) for p in next_pairs(middle, judged)})
    return judged


@pytest.mark.parametrize("best", [(0.1, 1e-3), (0.13, 3e-4), (2.0, 1e-3), (0.05, 0.1)])
def test_the_search_widens_at_edges_and_finds_the_best(best):
    def accuracy(rate, strength):
        return -np.hypot(np.log(rate / best[0]), np.log(strength / best[1]))

    judged = searched((0.1, 1e-3), accuracy)
    found = choose(judged)
    assert np.abs(np.log2(np.array(found) / best)).max() < 1.01
    pairs = [pair for done in judged for pair in done]
    # In a corner, two of the pairs around the best are known already.
    assert len(set(pairs)) == len(pairs) and len(pairs) in (42, 44)


def test_methods_without_a_strength_get_as_many_trials():
    judged = searched((0.1, 0.0), lambda rate, _: -abs(np.log(rate / 0.03)))
    assert sum(map(len, judged)) == 44
    assert abs(np.log2(choose(judged)[0] / 0.03)) < 0.2


def test_claims_are_decided_as_by_hand():
    count = len(CLAIMS)
    shape = np.tile([-1.0, 1.0], 10) * np.sqrt(19.0 / 20.0)  # standard error 1/sqrt(20)
    t = np.array([3.0, 2.6, 0.0, -2.0, 5.0, 1.0, 2.5, 2.0])[:count]
    verdicts = decide([shape + x / np.sqrt(20) for x in t])
    # From tables of Student's distribution with 19 degrees of freedom, one-sided.
    tables = {5.0: 3.98e-5, 3.0: 3.69e-3, 2.6: 8.78e-3, 2.5: 1.086e-2, 2.0: 3.0e-2}
    tables[1.0] = 0.165
    adjusted, most = {}, 0.0
    for rank, x in enumerate(sorted(t, reverse=True)):
        most = max(most, tables.get(x, 1.0) * (count - rank))
        adjusted[x] = min(most, 1.0)
    for x, verdict in zip(t, verdicts, strict=True):
        assert verdict.p == pytest.approx(adjusted[x], rel=0.02, abs=2e-3)
        assert verdict.holds == (adjusted[x] < 0.05)
        assert verdict.difference == pytest.approx(x / np.sqrt(20))
    # 2.093 is the 97.5th percentile.
    low, high = interval(shape)
    assert high == -low == pytest.approx(2.093 / np.sqrt(20), rel=1e-3)


def test_what_is_committed_follows_from_the_runs(rows):
    claims = (EVIDENCE / "CLAIMS.md").read_text(encoding="utf-8")
    assert claims == as_markdown(SETTINGS, METHODS)
    finals = Finals(rows)
    text = (RESULTS / "VERDICT.md").read_text(encoding="utf-8")
    assert text == verdict_text(rows, finals), "run with --report"
    for (page, name), lines in blocks(rows).items():
        text = (ROOT / page).read_text(encoding="utf-8")
        assert filled(text, name, lines) == text, f"{page}: run with --report"
    assert 2 <= len(CLAIMS) <= 8
    size = sum(path.stat().st_size for path in RESULTS.iterdir())
    assert size < 6e6


def test_all_methods_had_as_many_trials_and_new_seeds(rows):
    counts = {}
    for row in rows:
        key = row["setting"], row["method"], row["stage"]
        counts.setdefault(key, set()).add(
            (row["rate"], row["strength"], int(row["seed"]))
        )
    for name, setting in SETTINGS.items():
        for method in setting.methods:
            trials = len(counts[name, method, "search"])
            assert trials in (42 * len(SEARCH), 44 * len(SEARCH))
            final = counts[name, method, "final"]
            assert {seed for *_, seed in final} == set(FINAL)
            assert len({pair[:2] for pair in final}) == 1
    assert not set(SEARCH) & set(FINAL)


def test_the_claims_are_older_than_their_results():
    def first_commit(path):
        command = ["git", "log", "--diff-filter=A", "--format=%ct", "--", str(path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        return done.stdout.split()

    claims, runs = (
        first_commit(EVIDENCE / "CLAIMS.md"),
        first_commit(RESULTS / "runs.csv"),
    )
    if not (claims and runs):
        pytest.skip("there is no history")
    assert int(claims[-1]) <= int(runs[-1])  # the same in a history of one commit


@pytest.fixture(scope="module")
def trainer():
    """A trainer on random rows."""
    rng = np.random.default_rng(0)
    count = TRAIN + VALIDATION + TEST
    data = {
        "x": rng.normal(size=(2, count, LENGTH)).astype("float32"),
        "y": rng.integers(0, 10, (3, 2, count)).astype("int32"),
    }
    return Trainer("mlp-4", "sgd", data, (0, 1), steps=600)


def test_networks_are_balanced_as_the_package_does(trainer):
    rng = np.random.default_rng(1)
    start = [np.asarray(x[0]) * np.exp(rng.normal()) for x in trainer.starts]
    z = trainer.symmetry.balance(start)
    balanced = trainer.symmetry.shifted(start, z)
    for variable, value in zip(trainer.variables, start, strict=True):
        variable.assign(value)
    balance_scales(trainer.model)
    for variable, value in zip(trainer.variables, balanced, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_run_is_what_keras_would_train(trainer):
    """The same steps by Keras's own loss, penalty, optimizer and balancing."""
    # At usual rates, a rounding error grows to a tenth of the weights.
    run = Run(1, 3e-4, log=0.1, every=20, start=True, rows=500)
    found = trainer.train([run])
    model, penalty = trainer.model, WEISSI(0.1)
    for variable, value in zip(trainer.variables, trainer.starts, strict=True):
        variable.assign(value[1])
    optimizer = keras.optimizers.SGD(momentum=0.9)
    model.compile(optimizer)
    optimizer.build(trainer.variables)
    balance_scales(model)
    x, y = trainer.data["x"][1], trainer.data["y"][0, 1]
    fields = {"new_task": False, "more_rows": False, "seed": 1, "rate": 3e-4}

    def loss(weights, rows):
        logits, _ = model.stateless_call(weights, [], x[rows])
        cross_entropy = keras.losses.sparse_categorical_crossentropy(
            y[rows], logits, from_logits=True
        )
        total = sum(penalty(w) for w in weights if w.ndim == 2)
        return keras.ops.mean(cross_entropy) + total

    gradients_of = jax.jit(jax.grad(loss))
    for t in range(600):
        rows, rate, _ = trainer._schedule({**fields, "rows": 500}, t)
        expected = 3e-4 * 0.5 * (1 + np.cos(np.pi * t / 600))
        assert float(rate) == pytest.approx(expected, abs=1e-7)
        gradients = gradients_of([v.value for v in trainer.variables], rows)
        optimizer.learning_rate = float(rate)
        optimizer.apply(gradients, trainer.variables)
        if (t + 1) % 20 == 0:
            balance_scales(model)
    for variable, value in zip(trainer.variables, found["weights"], strict=True):
        difference = np.abs(variable.numpy() - value[0]).max()
        assert difference < 3e-3 * np.abs(value[0]).max()
