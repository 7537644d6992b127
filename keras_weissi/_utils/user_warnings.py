"""Warnings that are shown each time, and that point to the code of the user."""

import inspect
import warnings


def warn(message):
    """Warns of something, at the line outside of Keras that it came from.

    Python shows a warning once a process by default. But the next model, of a search
    for one, may have the same fault, and layers of the same names. All are of module
    `keras_weissi` to the filters of warnings.
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


class Notices:
    """Warns of each thing once."""

    def __init__(self):
        self._seen: set[tuple[str, str]] = set()

    def once(self, what, name, message):
        """Warns, unless it has of `what` and `name`."""
        if self.is_new(what, name):
            warn(message)

    def is_new(self, what, name):
        """Whether there was no notice of `what` and `name` yet; from now on, no."""
        is_new = (what, name) not in self._seen
        self._seen.add((what, name))
        return is_new

    def forget(self, *whats):
        """Lets it warn of these again, as what it has warned of is over."""
        self._seen = {seen for seen in self._seen if seen[0] not in whats}


def _is_inside(frame):
    package = (frame.f_globals.get("__name__") or "").split(".")[0]
    return package in ("keras", "keras_weissi")


def listed(clauses, most=3):
    """Joins the first few clauses, and says how many more there are."""
    more = len(clauses) - most
    return "; ".join(clauses[:most]) + (f"; and {more} more" if more > 0 else "")
