"""Checks of arguments, and the one form of their errors."""

import numbers
from typing import Any

import keras


def invalid(name: str, expected: str, received: object) -> ValueError:
    """Returns the error for an argument: what was expected, and what was received."""
    return ValueError(
        f"Invalid value for argument `{name}`. Expected {expected}. "
        f"Received: {name}={received!r}"
    )


def check_model(model: object) -> None:
    """Raises a `ValueError` unless `model` is a Keras model, or a layer."""
    if not isinstance(model, keras.Layer):
        raise invalid("model", "a keras.Model", model)


def check_bool(value: object, name: str) -> None:
    """Raises a `ValueError` unless an argument is a bool."""
    if not isinstance(value, bool):
        raise invalid(name, "a bool", value)


def is_count(value: Any) -> bool:
    """Whether a value is an int above 0, and not a bool."""
    is_int = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return bool(is_int and value > 0)


def as_number(value: Any) -> float | None:
    """Returns a value as a float, or `None` if it is not a real number."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:  # an int past the range of floats
        return None
