"""The CSV file of a record is replaced at once, or stays as it was."""

import csv
import math
import os

import pytest
from helpers import run_python
from hypothesis import given
from hypothesis import strategies as st

from keras_weissi.callbacks.csv_file import write_csv


def make_rows(count, **more):
    return [
        {"epoch": i // 3, "step": i, "log_norm_product": 1.0 / (i + 3), **more}
        for i in range(count)
    ]


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return [
            {
                key: int(cell) if key in ("epoch", "step") else float(cell)
                for key, cell in row.items()
                if cell
            }
            for row in csv.DictReader(file)
        ]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "record.csv"


# With this limit, the operating system writes a part of the file, then raises an error.
LIMITED = """
import errno, os, resource, sys
from keras_weissi.callbacks.csv_file import write_csv

path = sys.argv[1]
row = lambda i: {"epoch": i, "step": i, "log_norm_product": 1 / 3}
rows = [row(i) for i in range(3)]
write_csv(rows, path)
old = open(path, "rb").read()
rows += [row(i) for i in range(3, 50)]
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) + 100, hard))
for _ in range(2):
    try:
        write_csv(rows, path)
        raise SystemExit("saved past the limit")
    except OSError as error:
        assert error.errno == errno.EFBIG and error.filename == path, error
    assert open(path, "rb").read() == old
    assert os.listdir(os.path.dirname(path)) == ["record.csv"]
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
write_csv(rows, path)
assert len(open(path).readlines()) == 51
"""


def test_a_file_that_may_not_grow_stays_as_it_was(path):
    pytest.importorskip("resource")
    result = run_python("-c", LIMITED, path)
    assert result.returncode == 0, result.stderr


KILLED = """
import csv, os, random, signal, sys, time
from keras_weissi import NormLogger

path, rounds = sys.argv[1], int(sys.argv[2])
row = lambda i: {"epoch": i, "step": i, **{f"norm/{j}": i + j / 7 for j in range(200)},
                 "log_norm_product": 1 / 3}

def read():
    with open(path, newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]

for number in range(rounds):
    logger = NormLogger()
    logger.record = [row(0)]
    logger.to_csv(path)
    size = os.path.getsize(path)
    child = os.fork()
    if not child:
        while True:
            logger.record.append(row(len(logger.record)))
            logger.to_csv(path)
    while os.path.getsize(path) == size:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it has ended"
        time.sleep(1e-3)
    time.sleep(random.Random(number).uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    rows = read()
    assert rows and rows == [row(i) for i in range(len(rows))], number
    assert len(rows) > 1
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


def test_the_longest_name_that_the_system_takes(tmp_path):
    path = tmp_path / ("n" * 251 + ".csv")
    write_csv(make_rows(2), path)
    assert read(path) == make_rows(2) and len(os.listdir(tmp_path)) == 1
