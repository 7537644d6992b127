"""Warnings that are shown every time, and that point to the code of the user."""

import inspect
import warnings


def warn(message):
    """Shows a warning at the line of the user's code that led to it.

    By default, Python shows a repeated warning only once per line of code. But in a
    search over models, the next one may have the same fault, and layers of the same
    names. Filters of warnings see the module `keras_weissi`.
    """
    callers = inspect.stack(context=0)
    caller = next((c for c in callers if not _is_inside(c.frame)), callers[-1])
    warnings.warn_explicit(
        message,
        UserWarning,
        caller.filename,
        caller.lineno,
        module="keras_weissi",
        registry={},
    )


class WarnOnce:
    """Gives each warning once."""

    def __init__(self):
        self._given: set[tuple] = set()

    def __call__(self, kind, name, message):
        """Warns, unless it has warned of this kind and name before."""
        if self.is_first(kind, name):
            warn(message)

    def is_first(self, kind, name):
        """Whether this is the first warning of this kind and name; notes it."""
        is_first = (kind, name) not in self._given
        self._given.add((kind, name))
        return is_first


def _is_inside(frame):
    package = (frame.f_globals.get("__name__") or "").split(".")[0]
    return package in ("keras", "keras_weissi")


def listed(clauses, separator="; "):
    """Joins the first three clauses, and says how many more there are."""
    more = [f"and {len(clauses) - 3} more"] if len(clauses) > 3 else []
    return separator.join([*clauses[:3], *more])


def listed_names(names, most=3, length=32):
    """Lists names in one line, long ones without their middle."""
    short = [shortened(name, length, end=2 * length // 3) for name in names]
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*short[:most], *more])


def shortened(text, length, end=0):
    """Leaves out what a text has too much, but not the last `end` characters."""
    if len(text) <= length:
        return text
    return f"{text[: length - end - 1]}…{text[len(text) - end :]}"
