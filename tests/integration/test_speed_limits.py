"""The limits of `benchmarks/overhead.py` that can be counted, and so are exact."""

import importlib

import pytest
from helpers import ROOT, count_transfers

from keras_weissi import WEISSI, NormLogger

MATRIX = 4 * 2048 * 2048  # bytes of a kernel; the update has four of them
SCALARS = 0.001 * MATRIX


@pytest.fixture
def overhead(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("overhead")


# How often each kernel is gone over. Without a penalty, it and its gradient are read
# and it is written. The norm has to be known before the first element can be written,
# which is one more reading at the least; XLA takes another for the sum of absolute
# values.
@pytest.mark.jax_only
@pytest.mark.parametrize(
    "name, passes", [("none", 3), ("WEISSI (log)", 4), ("WEISSI (both)", 5)]
)
def test_an_update_moves_no_more_bytes_than_it_has_to(overhead, name, passes):
    moved, scratch = overhead.update_cost(overhead.PENALTIES[name])
    assert abs(moved - passes * 4 * MATRIX) < SCALARS
    assert scratch < SCALARS


@pytest.mark.jax_only
def test_the_whole_penalty_costs_no_more_than_those_of_keras(overhead):
    cost = {k: overhead.update_cost(p) for k, p in overhead.PENALTIES.items()}
    assert cost["WEISSI (log)"][0] <= cost["L2"][0]
    assert cost["WEISSI (both)"][0] <= cost["L1L2"][0]


# Counting goes through variables directly, of which NumPy and PyTorch warn.
@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True")
@pytest.mark.parametrize("count", [1, 30])
@pytest.mark.parametrize("update_freq, transfers", [("epoch", 0), (5, 2), (1, 10)])
def test_a_batch_transfers_once_if_it_is_due(
    count, update_freq, transfers, overhead, monkeypatch
):
    model = overhead.branches(WEISSI(0.1, 0.01), count, width=4)
    logger = NormLogger(update_freq=update_freq)
    logger.set_params({"verbose": 0, "epochs": 1, "steps": 10})
    logger.set_model(model)
    logger.on_train_begin()
    logger.on_epoch_begin(0)
    seen = count_transfers(monkeypatch, model.layers[-1].kernel)
    for batch in range(10):
        logger.on_train_batch_end(batch, {})
    assert len(seen) == transfers
    logger.on_epoch_end(0, {})
    assert len(seen) == transfers + 1
