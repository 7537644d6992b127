"""Writes CSV files atomically."""

import contextlib
import csv
import errno
import os
import shutil
import threading


def write_csv(rows, path):
    """Writes a list of dicts to a CSV file, and replaces an existing file atomically.

    Args:
        rows: List of dicts, one for each row; they need not have the same keys.
        path: str or path-like.

    Raises:
        OSError: If the file cannot be written. An old one stays as it was.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    path = os.path.abspath(path)
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"Cannot write {path}: there is no folder {folder}")
    if os.path.isdir(path):
        raise IsADirectoryError(f"Cannot write {path}: it is a folder")
    try:
        with (
            _replaced_at_once(path) as target,
            open(target, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        # A full disk does not say which file there is no space for.
        if error.errno is not None:
            raise type(error)(error.errno, error.strerror, path) from None
        raise


@contextlib.contextmanager
def _replaced_at_once(path):
    """Gives the path of a file to write, which then replaces the one at `path`."""
    if os.path.exists(path) and not os.path.isfile(path):
        # A device or a pipe, such as /dev/stdout, must not be replaced by a file.
        yield path
        return
    path = os.path.realpath(path)  # the target of a link, so that the link stays
    if os.path.exists(path) and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "The file is not writable", path)
    folder = os.path.dirname(path)
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, "The folder is not writable", path)
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
