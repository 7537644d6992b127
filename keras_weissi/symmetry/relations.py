"""Constraints on the scales of tensors, collected from the layers."""

import dataclasses
from typing import Any, NamedTuple

import keras


class Call(NamedTuple):
    """One call of a layer."""

    layer: keras.Operation  # without a `TimeDistributed` around it
    node: Any  # the call, as Keras records it
    inputs: list[int]  # the numbers of the tensors that it takes
    outputs: list[int]


class Pin(NamedTuple):
    """A tensor whose scale is fixed at 1, the layer that fixes it, and why."""

    tensor: int
    layer: str
    reason: str


class Edge(NamedTuple):
    """A kernel that leads from one tensor to another, and what is added after it."""

    variable: keras.Variable
    shifts: tuple[keras.Variable, ...]
    source: int
    target: int


@dataclasses.dataclass
class Relations:
    """Constraints on the scales of a model's tensors, collected from its layers.

    Tensors have numbers, as the same tensor may be part of two functions, with a
    different value in each.

    Attributes:
        labels: the layers that return the tensors; `None` for tensors not shown.
        ties: pairs of tensors that have the same scale.
        pins: tensors whose scale is 1.
        edges: kernels between tensors.
        numbers: dict from the ids of a function and of a tensor to the number.
    """

    labels: list[str | None] = dataclasses.field(default_factory=list)
    ties: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    pins: list[Pin] = dataclasses.field(default_factory=list)
    edges: list[Edge] = dataclasses.field(default_factory=list)
    numbers: dict[tuple[int, int], int] = dataclasses.field(default_factory=dict)

    def numbers_of(self, function, tensors):
        """Returns the numbers of tensors in a function; new ones get the next."""
        keys = [(id(function), id(tensor)) for tensor in tensors]
        for key in keys:
            if key not in self.numbers:
                self.numbers[key] = self.new_tensor(None)
        return [self.numbers[key] for key in keys]

    def new_tensor(self, label):
        """Adds a tensor and returns its number."""
        self.labels.append(label)
        return len(self.labels) - 1

    def pin(self, tensors, layer, reason):
        """Pins several tensors for the same reason."""
        self.pins += [Pin(tensor, layer, reason) for tensor in tensors]
