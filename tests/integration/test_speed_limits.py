"""The limits of `benchmarks/overhead.py` that can be counted, and so are exact."""

import importlib
import os

import pytest
from helpers import BACKEND, ROOT, count_transfers

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


# What costs on PyTorch with a small kernel is the number of calls, forward and back. Of
# these calls, only those on the whole kernel do much work.
@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch runs call by call")
@pytest.mark.parametrize(
    "weissi, calls",
    [(WEISSI(0.1), 27), (WEISSI(0.0, 0.1), 36), (WEISSI(0.1, 0.1), 51)],
)
def test_a_penalty_makes_few_calls_on_pytorch(weissi, calls):
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.seen += 1
            return function(*args, **(kwargs or {}))

    kernel = torch.randn(3, 3, 32, 64, requires_grad=True)
    with Count() as count:
        torch.autograd.grad(weissi(kernel), kernel)
    assert count.seen <= calls


def process_of(penalty):
    return os.getpid()


@pytest.mark.slow
@pytest.mark.one_backend
def test_each_penalty_is_timed_in_processes_of_its_own(overhead, monkeypatch):
    monkeypatch.setattr(overhead, "PENALTIES", {"none": None, "L2": None})
    jobs = {"first": process_of, "second": process_of}
    times = overhead.job_times(jobs, processes=2, rounds=3)
    assert times["first"] == times["second"]
    seen = [set(processes) for processes in times["first"].values()]
    assert [len(own) for own in seen] == [2, 2] and not seen[0] & seen[1]
    assert all(len(processes) == 6 for processes in times["first"].values())


def test_printed_ratios_are_those_of_the_printed_medians(overhead, capsys):
    # The median of the ratios in a round would be 2, that of the times is 1.
    times = {"L1L2": [1.0, 2.0, 4.0], "WEISSI (log)": [2.0, 4.0, 1.0]}
    limits = {"WEISSI (log)": 0.9}
    overhead._print_times("title", "penalty", times, "L1L2", limits)
    row = capsys.readouterr().out.splitlines()[-2]
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [
        "WEISSI (log)",
        "2000.00",
        "1.000",
        "0.90, MISSED",
    ]
