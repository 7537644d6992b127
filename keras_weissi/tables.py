"""Tables of kernels, to be printed and to be read by a program."""

import dataclasses
import io

# Wide enough for the longest names of `keras.applications`; a terminal may wrap.
_WIDTH = 160


class KernelTable(list):
    """A list of rows, one a kernel, that prints as a table.

    The rows are dataclasses; `to_dicts` gives plain dicts, as for a data frame.

    Args:
        rows: Iterable of dataclass instances of one type.
        columns: Dict from the name of a field to a function that formats it.
        caption: str, a line below the table. Defaults to `""`.
    """

    def __init__(self, rows, columns, caption=""):
        super().__init__(rows)
        self._columns = columns
        self._caption = caption

    def to_dicts(self):
        """Returns the rows as a list of plain dicts."""
        return [
            {f.name: getattr(row, f.name) for f in dataclasses.fields(row)}
            for row in self
        ]

    def __str__(self):
        # Not at the top of the module: printing is rare, and rich takes a while.
        from rich.console import Console
        from rich.table import Table

        table = Table()
        for name in self._columns:
            right = name in ("norm", "share")
            table.add_column(
                name, justify="right" if right else "left", overflow="fold"
            )
        for row in self:
            cells = (fmt(getattr(row, name)) for name, fmt in self._columns.items())
            table.add_row(*cells)
        file = io.StringIO()
        console = Console(file=file, width=_WIDTH, markup=False, highlight=False)
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
    """Formats a norm with four digits."""
    return f"{norm:.4g}"


def format_share(share):
    """Formats a part of a whole in percent."""
    return f"{share:.1%}"


def format_shape(shape):
    """Formats a shape as Keras's summary does."""
    return f"({', '.join(map(str, shape))})"
