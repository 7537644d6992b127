"""The file that a record is kept in: added to, cut back, replaced, read again."""

import copy
import math
import os
import pickle

import pytest
from helpers import run_python
from hypothesis import given
from hypothesis import strategies as st

from keras_weissi.callbacks.record import RecordFile, read_csv, resume, write_csv


def make_rows(count, **more):
    return [
        {"epoch": i // 3, "step": i, "log_norm_product": 1.0 / (i + 3), **more}
        for i in range(count)
    ]


def read(path):
    return read_csv(path, "filename")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "record.csv"


@pytest.fixture
def replaced(monkeypatch):
    """Counts how often a file is replaced, not added to."""
    seen = []

    def replace(*arguments):
        seen.append(None)
        os.rename(*arguments)

    monkeypatch.setattr("keras_weissi.callbacks.record.os.replace", replace)
    return seen


def test_new_rows_are_added_and_the_file_is_not_written_again(path, replaced):
    file, rows = RecordFile(path), []
    for row in make_rows(20):
        rows.append(row)
        file.save(rows)
        assert read(path) == rows
    file.save(rows)
    assert read(path) == rows and len(replaced) == 1


def test_the_time_to_save_does_not_grow_with_the_rows(path, monkeypatch):
    rows = make_rows(1000)
    file = RecordFile(path)
    file.save(rows)
    written = []
    original = open

    class Counting:
        def __init__(self, *arguments, **keywords):
            self.stream = original(*arguments, **keywords)

        def write(self, text):
            written.append(len(text))
            return self.stream.write(text)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.stream.close()

    monkeypatch.setattr("builtins.open", Counting)
    rows.append({"epoch": 400, "step": 1000, "log_norm_product": 2.5})
    file.save(rows)
    assert sum(written) == len("400,1000,2.5\r\n")


def change_last(rows, path):
    rows[-1] = {**rows[-1], "log_norm_product": 7.0}


def pop(rows, path):
    rows.pop()


def clear(rows, path):
    rows[:] = make_rows(1)


def another_column(rows, path):
    rows.append({**make_rows(1)[0], "norm/new": 2.0})


def somebody_writes(rows, path):
    path.write_text("something else")


def somebody_deletes(rows, path):
    path.unlink()


@pytest.mark.parametrize(
    "change",
    [change_last, pop, clear, another_column, somebody_writes, somebody_deletes],
)
def test_what_cannot_be_added_replaces_the_file(change, path, replaced):
    file, rows = RecordFile(path), make_rows(5)
    file.save(rows)
    change(rows, path)
    file.save(rows)
    assert read(path) == rows and len(replaced) == 2


def test_another_folder_in_between_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, rows = RecordFile("record.csv"), make_rows(3)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    file.save(rows)
    assert read(tmp_path / "record.csv") == rows and not os.listdir()


@pytest.mark.parametrize(
    "twin_of", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_a_copy_goes_on(twin_of, path, replaced):
    file, rows = RecordFile(path), make_rows(3)
    file.save(rows)
    file, rows = twin_of((file, rows))
    rows.append(make_rows(4)[-1])
    file.save(rows)
    assert read(path) == rows and len(replaced) == 1


# The kernel's own limit on the size of a file: it writes a part, and then says no.
LIMITED = """
import errno, os, resource, sys
from keras_weissi.callbacks.record import RecordFile, read_csv

path = sys.argv[1]
row = lambda i: {"epoch": i, "step": i, "log_norm_product": 1 / 3}
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
for mode in ("add", "replace"):
    rows = [row(i) for i in range(3)]
    file = RecordFile(path)
    file.save(rows)
    old = open(path, "rb").read()
    rows += [row(i) for i in range(3, 50)]
    if mode == "replace":
        rows[0] = {**rows[0], "new": 1.0}
        rows[2] = dict(rows[2])
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) + 100, hard))
    for _ in range(2):
        try:
            file.save(rows)
            raise SystemExit("saved past the limit: " + mode)
        except OSError as error:
            assert error.errno == errno.EFBIG and error.filename == path, error
        assert open(path, "rb").read() == old, mode
        assert os.listdir(os.path.dirname(path)) == ["record.csv"], mode
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    file.save(rows)
    assert read_csv(path, "filename") == rows, mode
    os.remove(path)
"""


def test_a_file_that_may_not_grow_stays_as_it_was(path):
    pytest.importorskip("resource")
    result = run_python("-c", LIMITED, path)
    assert result.returncode == 0, result.stderr


KILLED = """
import os, random, signal, sys, time
from keras_weissi.callbacks.record import RecordFile, read_csv, write_csv

path, rounds = sys.argv[1], int(sys.argv[2])
row = lambda i: {"epoch": i, "step": i, **{f"norm/{j}": i + j / 7 for j in range(200)},
                 "log_norm_product": 1 / 3}
cut = 0
for number in range(rounds):
    write_csv([row(0)], path)
    child = os.fork()
    if not child:
        file, rows = RecordFile(path), []
        while True:
            rows.append(row(len(rows)))
            file.save(rows)
    time.sleep(random.Random(number).uniform(0.01, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    rows = read_csv(path, "filename")
    assert rows == [row(i) for i in range(len(rows))], number
    assert rows
    cut += len(rows) > 1
assert cut > rounds / 2
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_process_killed_while_it_saves_leaves_rows_that_are_whole(path):
    result = run_python("-c", KILLED, path, 40)
    assert result.returncode == 0, result.stderr


@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {"epoch": st.integers(0), "step": st.integers(0)}
            | {"log_norm_product": st.floats(allow_nan=False)},
            optional={"norm/a,b": st.floats(allow_nan=False), 'norm/"': st.floats(0)},
        ),
        min_size=1,
    )
)
def test_what_is_written_is_read_to_the_last_bit(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    write_csv(rows, path)
    assert read(path) == rows


def test_a_norm_that_is_not_a_number_is_read_as_such(path):
    write_csv(make_rows(1, norm=math.nan), path)
    assert math.isnan(read(path)[0]["norm"])


def test_a_line_that_is_cut_off_is_left_out(path):
    rows = make_rows(3)
    write_csv(rows, path)
    whole = path.read_bytes()
    for missing in (1, 2, 5):  # without its end, a number may be any
        path.write_bytes(whole[:-missing])
        assert read(path) == rows[:2]


def test_empty_lines_say_nothing(path):
    rows = make_rows(3)
    write_csv(rows, path)
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\r\n\r\n"))
    assert read(path) == rows


def test_the_longest_name_that_the_system_takes(tmp_path):
    path = tmp_path / ("n" * 251 + ".csv")
    write_csv(make_rows(2), path)
    assert read(path) == make_rows(2) and len(os.listdir(tmp_path)) == 1


def test_the_line_that_is_not_whole_is_named(path):
    path.write_text("epoch,step,log_norm_product\n0,0,1.0\n0,1\n")
    with pytest.raises(ValueError, match=r"\(line 3 is not whole\)"):
        read(path)


@pytest.mark.parametrize(
    "content",
    [
        "no newline",
        "epoch,loss\r\n0,1.5\r\n",
        "epoch,step,log_norm_product\r\n0,0\r\n",
        "epoch,step,log_norm_product\r\n0,0,1,2\r\n",
        "epoch,step,log_norm_product\r\n0,zero,1.0\r\n",
        "epoch,step,log_norm_product\r\n0.5,0,1.0\r\n",
        "epoch,step,log_norm_product\r\n,0,1.0\r\n",
        "epoch,step,log_norm_product\r\n0,,1.0\r\n",
        b"\x89PNG\r\n\x1a\n\x00\xff\xfe\r\n",
    ],
)
def test_a_file_of_something_else_is_refused(content, path):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = r"Invalid value for argument `it`. Expected .* NormLogger .*record.csv"
    with pytest.raises(ValueError, match=message):
        read_csv(path, "it")


@pytest.mark.parametrize(
    "epochs, epoch, kept",
    [
        # Each number is the epochs completed in a row; a training may have been killed
        # in mid-epoch, at its end before the backup, or right after it.
        ([0, 1, 2], 2, [0, 1, 2]),
        ([0, 1, 2, 2, 2], 2, [0, 1, 2]),
        ([0, 1, 2, 2, 3], 2, [0, 1, 2]),
        ([0, 1, 1, 2, 2, 3], 1, [0, 1]),
        ([0, 1], 2, [0, 1]),
        # Nothing was completed: it starts again.
        ([0, 0, 0], 0, [0]),
        # Another training, that follows, and one that follows and is resumed.
        ([0, 1, 2], 0, [0, 1, 2]),
        ([0, 1, 2, 2], 0, [0, 1, 2, 2]),
        ([0, 1, 2, 0, 0], 0, [0, 1, 2, 0]),
        ([0, 1, 2, 0, 1, 1, 2], 1, [0, 1, 2, 0, 1]),
        ([5, 6], 3, []),
        ([], 0, []),
    ],
)
def test_rows_that_stand_when_a_training_goes_on(epochs, epoch, kept):
    rows = [{"epoch": number, "step": i} for i, number in enumerate(epochs)]
    left, steps, lack = resume(rows, epoch)
    assert [row["epoch"] for row in left] == kept
    assert left == rows[: len(left)] and len(rows) == len(epochs)
    if left and left[-1]["epoch"] >= epoch:
        assert steps == left[-1]["step"] and not lack


@pytest.mark.parametrize(
    "rows, steps, kept, total, lacks",
    [
        # Pairs of the epochs completed and of the step; it goes on after the third.
        # Killed between the backup and the row, also with batches recorded.
        ([(0, 0), (1, 4), (2, 8)], 4, 3, 12, False),
        ([(0, 0), (1, 4), (2, 8)], None, 3, 12, False),
        ([(1, 4), (1, 6), (2, 8), (2, 10), (2, 12)], 4, 4, 12, False),
        ([(1, 4), (1, 6), (2, 8), (2, 10), (2, 12)], None, 4, 12, False),
        # The disk was full for longer.
        ([(0, 0), (1, 4)], 4, 2, 12, True),
        ([(0, 0), (1, 4), (1, 6)], None, 3, 12, True),
        ([(0, 0)], 4, 1, 12, True),
        # A training before this one had as many epochs.
        ([(2, 8), (3, 12), (0, 12), (1, 15), (2, 18)], None, 5, 21, False),
        ([(2, 8), (3, 12), (0, 12), (1, 15), (2, 18)], 3, 5, 21, False),
    ],
)
def test_the_steps_go_on_where_rows_are_lacking(rows, steps, kept, total, lacks):
    rows = [{"epoch": epoch, "step": step} for epoch, step in rows]
    left, batches, lack = resume(rows, 3, steps)
    assert (left, batches) == (rows[:kept], total)
    assert ("goes on after epoch 3" in lack) == lacks
