"""Tables of kernels, for people and for programs."""

import dataclasses
import io
import shutil
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, TypeVar

# Used where no terminal says how wide it is.
_WIDTH = 160

# Columns of text, which may be broken between words.
_PROSE = ("note", "pinned_by", "outputs_of")


Row = TypeVar("Row")
Columns: TypeAlias = dict[str, Callable[[Any], str]]


class KernelTable(list[Row]):
    """A list of rows, one a kernel, that prints as a table.

    The rows are dataclasses; `to_dicts` gives plain dicts, as for a data frame.

    Args:
        rows: Iterable of dataclass instances of one type.
        columns: Dict from the name of a field to a function that formats it.
        caption: str, a line below the table. Defaults to `""`.
    """

    def __init__(
        self,
        rows: Iterable[Row],
        columns: Columns,
        caption: str = "",
    ) -> None:
        super().__init__(rows)
        self._columns = columns
        self._caption = caption

    def to_dicts(self) -> list[dict[str, Any]]:
        """Returns the rows as a list of plain dicts."""
        rows: list[Any] = list(self)
        return [
            {f.name: getattr(row, f.name) for f in dataclasses.fields(row)}
            for row in rows
        ]

    def __str__(self) -> str:
        # Not at the top of the module: printing is rare, and rich takes a while.
        from rich.console import Console
        from rich.table import Table

        table = Table()
        for name, fmt in self._columns.items():
            justify: Any = "right" if fmt in (format_norm, format_share) else "left"
            # Names and numbers are never broken.
            is_whole = fmt is not format_regularizer and name not in _PROSE
            table.add_column(name, justify=justify, no_wrap=is_whole)
        for row in self:
            cells = (fmt(getattr(row, name)) for name, fmt in self._columns.items())
            table.add_row(*cells)
        file = io.StringIO()
        console = Console(file=file, markup=False, highlight=False)
        width = shutil.get_terminal_size((_WIDTH, 24)).columns
        console.width = 10**6
        console.width = max(width, console.measure(table).minimum)
        console.print(table)
        if self._caption:
            console.print(self._caption, soft_wrap=True)
        return file.getvalue().rstrip()

    __repr__ = __str__


def format_regularizer(regularizer):
    """Formats a regularizer in one short line, such as `L2(l2=0.01)`."""
    if regularizer is None:
        return ""
    try:
        config = regularizer.get_config()
    except (AttributeError, NotImplementedError):
        return getattr(regularizer, "__name__", type(regularizer).__name__)
    config = {
        key: f"{value:g}" if isinstance(value, float) else value
        for key, value in config.items()
        if value
    }
    arguments = ", ".join(f"{key}={value}" for key, value in config.items())
    return f"{type(regularizer).__name__}({arguments})"


def format_norm(norm):
    """Formats a norm, or a factor of one, with four digits."""
    return f"{norm:.4g}"


def format_share(share):
    """Formats a part of a whole in percent; "" for NaN."""
    return "" if share != share else f"{share:.1%}"


def format_shape(shape):
    """Formats a shape as Keras's summary does."""
    return f"({', '.join(map(str, shape))})"
