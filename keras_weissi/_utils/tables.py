"""Tables that print and convert to dicts."""

import html
import io
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

# Width if there is no terminal.
_WIDTH = 160

# Columns of text, which may wrap.
_PROSE = ("note", "pinned_by", "outputs_of", "regularizer", "scale")


Row = TypeVar("Row")


class KernelTable(list[Row]):
    """A list of rows that prints as a table.

    The rows are dataclasses; `to_dicts` gives plain dicts, as for a data frame. A
    notebook shows it as an HTML table if it is the last expression of a cell. `print`
    gives text, which is as wide as the terminal.

    Args:
        rows: Iterable of dataclass instances of one type.
        columns: str, the names of the fields to print, separated by spaces.
        caption: str, a line below the table. Defaults to `""`.
    """

    def __init__(self, rows: Iterable[Row], columns: str, caption: str = "") -> None:
        super().__init__(rows)
        self._columns = columns.split()
        self._caption = caption

    def to_dicts(self) -> list[dict[str, Any]]:
        """Returns the rows as a list of plain dicts."""
        return [dict(vars(row)) for row in self]

    def __str__(self) -> str:
        # Not at the top of the module: printing is rare, and rich takes a while.
        from rich.console import Console
        from rich.table import Table

        table = Table()
        for name in self._columns:
            justify: Any = _side(name)
            # Names and numbers are never broken; of the rest, nothing is left out.
            is_prose = name in _PROSE
            table.add_column(
                name, justify=justify, no_wrap=not is_prose, overflow="fold"
            )
        for cells in self._cells():
            table.add_row(*cells)
        file = io.StringIO()
        # In a notebook, rich would show the table instead of writing it to the file,
        # and kernels set FORCE_COLOR.
        console = Console(
            file=file,
            markup=False,
            highlight=False,
            force_jupyter=False,
            color_system=None,
            emoji=False,
        )
        width = shutil.get_terminal_size((_WIDTH, 24)).columns
        console.width = 10**6
        console.width = max(width, console.measure(table).minimum)
        console.print(table)
        if self._caption:
            console.print(self._caption, soft_wrap=True)
        return file.getvalue().rstrip()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        # Notebooks align all cells to the right. Only names and numbers stay whole.
        styles = [
            f"text-align: {_side(name)}" + "; white-space: normal" * (name in _PROSE)
            for name in self._columns
        ]

        def line(tag, cells):
            return "".join(
                f'<{tag} style="{style}">{html.escape(cell)}</{tag}>'
                for style, cell in zip(styles, cells, strict=True)
            )

        rows = "".join(f"<tr>{line('td', cells)}</tr>" for cells in self._cells())
        # The class keeps notebooks from reading mathematics into names with a `$`.
        return (
            '<div class="tex2jax_ignore" style="overflow-x: auto">'
            '<table style="white-space: nowrap">'
            f"<thead><tr>{line('th', self._columns)}</tr></thead>"
            f"<tbody>{rows}</tbody></table></div>{paragraphs(self._caption)}"
        )

    def _cells(self) -> Iterator[list[str]]:
        for row in self:
            yield [_cell(name, getattr(row, name)) for name in self._columns]


def paragraphs(text):
    """Makes a paragraph of HTML of each line of a text."""
    return "".join(
        f'<p class="tex2jax_ignore">{html.escape(line)}</p>'
        for line in text.splitlines()
    )


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
        if isinstance(value, np.ndarray) or value
    }
    arguments = ", ".join(f"{key}={value}" for key, value in config.items())
    return f"{type(regularizer).__name__}({arguments})"


def _side(name):
    return "right" if name in _NUMBERS else "left"


def _cell(name, value):
    if name in _NUMBERS:
        return "" if value != value else _NUMBERS[name](value)
    if name == "regularizer":
        return format_regularizer(value)
    if name == "shape":  # as in Keras's summary
        return f"({', '.join(map(str, value))})"
    return str(value)


# Columns of numbers, and how they are printed.
_NUMBERS: dict[str, Callable[[float], str]] = dict.fromkeys(
    ("norm", "before", "after", "factor", "coefficient"), "{:.4g}".format
)
_NUMBERS["share"] = "{:.1%}".format
