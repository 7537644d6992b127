"""The rows that a logger has measured, in a CSV file that outlives the process.

A file is never left half written: it is replaced in one go, or cut back to where it
ended before.
"""

import contextlib
import csv
import errno
import io
import os
import shutil
import threading

import numpy as np

from keras_weissi._utils.validation import invalid

# Columns of whole numbers; what is in the others is real.
_COUNTS = ("epoch", "step")


class RecordFile:
    """A CSV file that follows a list of rows that grows.

    New rows are added at its end, so that a long list takes no longer to save than a
    short one. What could not be saved is saved with what comes next.

    Args:
        path: str or path-like.

    Raises:
        ValueError: If it is of something that is not read again as it was written.
    """

    def __init__(self, path):
        # A folder may come and go, and is left to `save`.
        if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
            expected = "the path of a file, not of a pipe or a device"
            raise invalid("filename", expected, path)
        self.path = os.path.abspath(path)
        self._columns = []
        self._count = 0
        self._last = None
        self._size = 0

    def save(self, rows):
        """Brings the file up to date.

        Args:
            rows: List of dicts, a row each.

        Raises:
            OSError: If the file cannot be written. It is as it was then.
        """
        if not self._is_up_to_date_with(rows):
            write_csv(rows, self.path)
            self._columns = _columns_of(rows)
        elif rows[self._count :]:
            with _named_in_errors(self.path):
                self._add(rows[self._count :])
        self._count = len(rows)
        self._last = rows[-1] if rows else None
        self._size = os.path.getsize(self.path)

    def _is_up_to_date_with(self, rows):
        """Whether the file has just the first of the rows, and room for the others."""
        if not 0 < self._count <= len(rows) or rows[self._count - 1] is not self._last:
            return False
        if not set(_columns_of(rows[self._count :])) <= set(self._columns):
            return False
        return os.path.isfile(self.path) and os.path.getsize(self.path) == self._size

    def _add(self, rows):
        try:
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerows(rows)
        except BaseException:
            with contextlib.suppress(OSError):
                os.truncate(self.path, self._size)
            raise


def write_csv(rows, path):
    """Writes a list of dicts to a CSV file, which is replaced in one go.

    Args:
        rows: List of dicts, a row each; they need not have the same keys.
        path: str or path-like.

    Raises:
        OSError: If the file cannot be written. An old one is left whole.
    """
    columns = _columns_of(rows)
    path = os.path.abspath(path)
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"Cannot write {path}: there is no folder {folder}")
    if os.path.isdir(path):
        raise IsADirectoryError(f"Cannot write {path}: it is a folder")
    with (
        _named_in_errors(path),
        _replaced_in_one_go(path) as target,
        open(target, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path, argument):
    """Reads the rows of a file that a `NormLogger` has written.

    Args:
        path: str or path-like.
        argument: str, what the caller calls `path`.

    Returns:
        List of dicts of numbers. The last line is left out if it is not whole, as it
        may be if the process that wrote it was killed.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it holds something else.
    """
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        text = file.read()
    whole = text[: text.rfind("\n") + 1]
    try:
        lines = list(csv.reader(io.StringIO(whole, newline=""), strict=True))
        if not text:
            return []
        header = lines.pop(0) if lines else []
        if not {*_COUNTS, "log_norm_product"} <= set(header):
            raise ValueError(f"it has the columns {header[:5]}")
        return [
            _row_of(header, line, number)
            for number, line in enumerate(lines, start=2)
            if line
        ]
    except (ValueError, csv.Error) as error:
        expected = f"a CSV file that a NormLogger has written ({error})"
        raise invalid(argument, expected, os.fspath(path)) from None


def is_same(row, other):
    """Whether two rows say the same, but for rounding (of another machine)."""
    return row.keys() == other.keys() and np.allclose(
        list(row.values()),
        [other[key] for key in row],
        rtol=1e-5,
        atol=0.0,
        equal_nan=True,
    )


def resume(rows, epoch, steps=None):
    """Finds what stands of a record when a training goes on with an epoch.

    Args:
        rows: List of dicts.
        epoch: int, the number of epochs completed. From 0, it is another training that
            follows, unless the last one came to no end of an epoch.
        steps: int, the number of batches of an epoch. Defaults to `None`: as many as
            of the last one in the rows.

    Returns:
        Triple of the rows without those of later epochs, which are done once more,
        and of a part of this one; of the number of batches before the epoch; and of a
        str that says which rows are lacking, "" if none.
    """
    kept = list(rows)
    while kept and kept[-1]["epoch"] > epoch > 0:
        kept.pop()
    while kept[1:] and kept[-1]["epoch"] == kept[-2]["epoch"] == epoch:
        kept.pop()
    if not kept or kept[-1]["epoch"] >= epoch:
        return kept, kept[-1]["step"] if kept else 0, ""

    # The process ended between the backup and the row of the epoch, or could not save.
    last = kept[-1]["epoch"]
    starts = [  # the first row of an epoch is from its beginning
        row["step"]
        for i, row in enumerate(kept)
        if i == 0 or kept[i - 1]["epoch"] != row["epoch"]
    ]
    if steps is None:
        steps = starts[-1] - starts[-2] if starts[1:] else 0
    total = starts[-1] + (epoch - last) * steps
    while len(kept) > 1 and kept[-1]["step"] >= total:
        kept.pop()  # the last batch, of an epoch that was complete but for its own row
    if last == epoch - 1:  # the state that it ended with is restored, and measured
        return kept, total, ""
    lack = (
        f"ends with epoch {last}, and training goes on after epoch {epoch}: the rows "
        "in between are lacking, as where the disk was full or the process was killed"
    )
    return kept, total, lack


def _row_of(header, line, number):
    if len(line) != len(header) or not all(line[header.index(c)] for c in _COUNTS):
        raise ValueError(f"line {number} is not whole")
    return {
        name: int(cell) if name in _COUNTS else float(cell)
        for name, cell in zip(header, line, strict=True)
        if cell
    }


def _columns_of(rows):
    return list(dict.fromkeys(key for row in rows for key in row))


@contextlib.contextmanager
def _replaced_in_one_go(path):
    """Gives the path of a file to write, which then takes the place of another."""
    if os.path.exists(path) and not os.path.isfile(path):
        # A device or a pipe, such as /dev/stdout, must not be replaced by a file.
        yield path
        return
    path = os.path.realpath(path)  # what a link stands for, not the link
    if os.path.exists(path) and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "The file may not be written", path)
    folder = os.path.dirname(path)
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, "Its folder may not be written to", path)
    # Another thread may write to the same folder.
    name = f".{os.getpid()}.{threading.get_ident()}.tmp"
    temporary = os.path.join(folder, name)
    try:
        yield temporary
        if os.path.exists(path):
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except BaseException:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def _named_in_errors(path):
    try:
        yield
    except OSError as error:
        # A full disk does not say which file there is no space for.
        if error.errno is not None:
            raise type(error)(error.errno, error.strerror, path) from None
        raise
