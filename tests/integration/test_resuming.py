"""A training that is killed and resumed keeps its norms, as `docs/logs.md` says."""

import csv
import re
import signal

import pytest
from helpers import ROOT, run_python

from keras_weissi.plotting import plot_norms

EPOCHS = 5


def documented_program():
    text = (ROOT / "docs" / "logs.md").read_text(encoding="utf-8")
    programs = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (program,) = (code for code in programs if "BackupAndRestore" in code)
    return program


def read_csv(path):
    with open(path, newline="") as file:
        # CSVLogger fills in columns for a validation that there was not.
        return [
            {k: float(v) for k, v in row.items() if not k.startswith("val_")}
            for row in csv.DictReader(file)
        ]


def drawn_by(path):
    """The epochs and the norms that `plot_norms` draws, by the name of the kernel."""
    lines = plot_norms(path).get_lines()
    return {line.get_label(): line.get_xydata().T.tolist() for line in lines}


def assert_rows_equal(rows, expected):
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-6)


def test_the_documented_program_runs(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    for trainings in (1, 2):  # the second time, it is another training
        scope = {}
        exec(documented_program(), scope)
        rows = read_csv("norms.csv")
        assert [row["epoch"] for row in rows] == [*range(EPOCHS)] * trainings
        last = scope["callbacks"][1].record[-1]
        assert rows[-1]["norm/out"] == last["norm/out"]
        assert (tmp_path / "norms.png").stat().st_size > 1000
        epochs, norms = drawn_by("norms.csv")["out"]
        assert epochs == list(range(1, EPOCHS * trainings + 1))
        assert norms == [row["norm/out"] for row in rows]


KILL = """
import os, signal, sys

kill_epoch, moment = int(sys.argv[1]), sys.argv[2]


class Kill(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (kill_epoch, 1) and moment == "batch":
            os.kill(os.getpid(), signal.SIGKILL)

    def on_epoch_end(self, epoch, logs=None):
        if epoch == kill_epoch and moment != "batch":
            os.kill(os.getpid(), signal.SIGKILL)


if moment == "backup first":
    callbacks.insert(2, callbacks.pop())
callbacks.insert(len(callbacks) - (moment != "batch"), Kill())
"""


def start(folder, kill_epoch, moment):
    """Runs the documented program in a folder, until it ends or kills itself."""
    folder.mkdir(exist_ok=True)
    # Each process would shuffle in another order.
    program = documented_program().replace("model.fit(", f"{KILL}\nmodel.fit(")
    program = program.replace("=callbacks)", "=callbacks, shuffle=False, verbose=0)")
    result = run_python("-c", program, kill_epoch, moment, cwd=folder)
    killed = kill_epoch >= 0
    assert result.returncode == (-signal.SIGKILL if killed else 0), result.stderr


needs_sigkill = pytest.mark.skipif(
    not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL"
)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The rows of a training that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    start(folder, -1, "batch")
    rows = read_csv(folder / "norms.csv")
    assert [row["epoch"] for row in rows] == list(range(EPOCHS))
    return rows


@pytest.mark.slow
@needs_sigkill
def test_a_killed_training_continues_without_a_gap_or_a_repeat(tmp_path, expected):
    pytest.importorskip("matplotlib")
    # In the first epoch, before there is a backup, and in two later ones.
    for kill_epoch in (0, 2, 3, -1):
        start(tmp_path, kill_epoch, "batch")
        if kill_epoch >= 0:
            rows = read_csv(tmp_path / "norms.csv")
            assert_rows_equal(rows, expected[:kill_epoch])
    assert_rows_equal(read_csv(tmp_path / "norms.csv"), expected)
    assert not (tmp_path / "backup").exists()
    epochs, norms = drawn_by(tmp_path / "norms.csv")["hidden"]
    assert epochs == list(range(1, EPOCHS + 1))
    assert norms == pytest.approx([row["norm/hidden"] for row in expected], rel=1e-6)


@pytest.mark.slow
@needs_sigkill
@pytest.mark.parametrize(
    "moment, epochs",
    [("backup last", [0, 1, 2, 2, 3, 4]), ("backup first", [0, 1, 3, 4])],
)
def test_a_kill_between_row_and_backup(moment, epochs, tmp_path, expected):
    pytest.importorskip("matplotlib")
    start(tmp_path, 2, moment)
    start(tmp_path, -1, moment)
    rows = read_csv(tmp_path / "norms.csv")
    assert [row["epoch"] for row in rows] == epochs
    assert_rows_equal(rows, [expected[epoch] for epoch in epochs])
    drawn, _ = drawn_by(tmp_path / "norms.csv")["hidden"]
    assert drawn == sorted({epoch + 1 for epoch in epochs})
