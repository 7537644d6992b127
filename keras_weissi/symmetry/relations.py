"""Equations between the scales of a model's tensors and weights."""

import dataclasses
from fractions import Fraction
from typing import Any, NamedTuple

import keras

from keras_weissi.model.operations import is_float

# The unknown that stands for all that has no scale, such as integers.
CONSTANT = 0


class Pin(NamedTuple):
    """An unknown that is fixed at 1, the layer that fixes it, and why."""

    unknown: int
    layer: str
    reason: str
    kind: str = "pinned"  # or "normalized", or "hidden"


INTEGERS = Pin(CONSTANT, "integers", "they have no scale")


@dataclasses.dataclass(frozen=True)
class Equation:
    """Powers of unknowns whose product is 1, and the layer that asks for it."""

    powers: dict[int, Fraction]
    layer: str
    reason: str = ""

    @property
    def is_tie(self) -> bool:
        """Whether it says that two unknowns are equal."""
        return len(self.powers) == 2 and sorted(self.powers.values()) == [-1, 1]

    def with_powers(self, powers):
        """Returns one that has other powers."""
        return dataclasses.replace(self, powers=powers)


@dataclasses.dataclass
class System:
    """The scales of a model's tensors and weights as unknowns, and their equations.

    Unknowns have numbers, as the same tensor may be part of two functions, with a
    different value in each.

    Attributes:
        labels: the layers that return the tensors; `None` for what is not shown.
        places: dict from the numbers of other tensors to the layer that they are in.
        equations: list of `Equation`.
        pins: list of `Pin`.
        numbers: dict from the ids of a function and of a tensor, or from `None` and the
            id of a weight, to the number.
        weights: dict from the numbers of weights to the `keras.Variable`.
        alive: list of what has a number, so that no id is used again.
    """

    labels: list[str | None] = dataclasses.field(default_factory=lambda: [None])
    places: dict[int, str] = dataclasses.field(default_factory=dict)
    equations: list[Equation] = dataclasses.field(default_factory=list)
    pins: list[Pin] = dataclasses.field(default_factory=lambda: [INTEGERS])
    numbers: dict[tuple[Any, int], int] = dataclasses.field(default_factory=dict)
    weights: dict[int, keras.Variable] = dataclasses.field(default_factory=dict)
    alive: list[Any] = dataclasses.field(default_factory=list)  # keeps ids unique

    def number_of(self, function, thing):
        """Returns the number of a tensor in a function, or of a weight."""
        is_weight = isinstance(thing, keras.Variable)
        if not is_float(thing.dtype) and not is_weight:
            return CONSTANT
        key = (None if is_weight else id(function), id(thing))
        if key not in self.numbers:
            self.numbers[key] = number = len(self.labels)
            self.labels.append(None)
            self.alive.append(thing)
            if is_weight:
                self.weights[number] = thing
        return self.numbers[key]

    def numbers_of(self, function, things):
        """Returns the numbers of several."""
        return [self.number_of(function, thing) for thing in things]

    def add(self, *powers, layer, reason="", kind="pinned"):
        """Adds an equation, from dicts that are added up."""
        total: dict[int, Fraction] = {}
        for part in powers:
            for unknown, power in part.items():
                total[unknown] = total.get(unknown, Fraction(0)) + power
        total = {x: power for x, power in total.items() if power and x != CONSTANT}
        if len(total) == 1:
            self.pin(total, layer, reason, kind)
        elif total:
            self.equations.append(Equation(total, layer, reason))

    def pin(self, unknowns, layer, reason, kind="pinned"):
        """Pins several unknowns for the same reason."""
        self.pins += [Pin(unknown, layer, reason, kind) for unknown in unknowns]
