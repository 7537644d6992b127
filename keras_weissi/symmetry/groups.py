"""Scale groups: which tensors of a model have to be multiplied by the same factor.

Every tensor gets a factor; layers tie the factors of their inputs and outputs, or pin
them to 1, or relate them through a kernel. Tensors that are tied make up a group,
and the kernels are the edges between the groups.
"""

import dataclasses
import itertools
import types

import keras
import numpy as np

from keras_weissi._utils.tables import KernelTable
from keras_weissi.model.kernels import Kernel
from keras_weissi.symmetry.solvers import GROUND


@dataclasses.dataclass(frozen=True)
class ScaleGroup:
    """Tensors that have to be multiplied by the same factor.

    Attributes:
        index: int, the place in `ScaleGroups.groups`.
        layers: tuple of str, the layers whose outputs they are.
        pins: tuple of pairs of str, the layers that pin the factor to 1 and why.
    """

    index: int
    layers: tuple[str, ...]
    pins: tuple[tuple[str, str], ...]

    @property
    def free(self) -> bool:
        """Whether the factor may be chosen."""
        return not self.pins


@dataclasses.dataclass(frozen=True)
class KernelEdge:
    """A kernel, or the gamma of a normalization, between two groups.

    With the factors `s` of the source and `t` of the target, the kernel must be
    multiplied by `t / s`, and what the layer adds to its output by `t`.

    Attributes:
        kernel: `keras_weissi.model.Kernel`.
        shifts: tuple of `keras.Variable`: the bias, or the beta.
        source: int, the index of the group of the layer's input.
        target: int, the index of the group of its output.
    """

    kernel: Kernel
    shifts: tuple[keras.Variable, ...]
    source: int
    target: int

    @property
    def is_gamma(self) -> bool:
        """Whether it is the gamma of a normalization."""
        return self.kernel.kind == "gamma"


@dataclasses.dataclass(frozen=True, repr=False)
class ScaleGroups:
    """The scale groups of a model, as `scale_groups` returns them. Prints as tables.

    Attributes:
        groups: list of `ScaleGroup`.
        edges: list of `KernelEdge`.
    """

    groups: list[ScaleGroup]
    edges: list[KernelEdge]

    @property
    def free(self) -> list[ScaleGroup]:
        """The groups whose factor may be chosen."""
        return [group for group in self.groups if group.free]

    @property
    def pinned(self) -> list[ScaleGroup]:
        """The groups whose factor is 1."""
        return [group for group in self.groups if not group.free]

    def __str__(self) -> str:
        groups = [
            types.SimpleNamespace(
                group=group.index,
                scale="free" if group.free else "1",
                pinned_by="; ".join(f"{name}: {why}" for name, why in group.pins[:1])
                + (f" (and {len(group.pins) - 1} more)" if group.pins[1:] else ""),
                outputs_of=_shortened(group.layers),
            )
            for group in self.groups
        ]
        edges = [
            types.SimpleNamespace(
                name=edge.kernel.name,
                weight="gamma" if edge.is_gamma else "kernel",
                shape=tuple(edge.kernel.variable.shape),
                source=edge.source,
                target=edge.target,
            )
            for edge in self.edges
        ]
        caption = f"{len(groups)} groups, {len(self.free)} of them free"
        return (
            f"{KernelTable(groups, 'group scale pinned_by outputs_of', caption)}\n"
            f"{KernelTable(edges, 'name weight shape source target')}"
        )

    __repr__ = __str__


def _shortened(names):
    if len(names) <= 4:
        return ", ".join(names)
    return f"{', '.join(names[:2])}, … {names[-1]} ({len(names)} in all)"


def solver_graph(groups):
    """Describes the groups as the graph that the functions of `solvers` take.

    Returns:
        Tuple of a list of ints, the node of each group (`GROUND` for pinned ones); of
        the number of nodes; and of two int arrays, the nodes that the edges come from,
        and those that they lead to.
    """
    free = itertools.count(GROUND + 1)
    nodes = [next(free) if group.free else GROUND for group in groups.groups]
    sources = np.array([nodes[edge.source] for edge in groups.edges], "int64")
    targets = np.array([nodes[edge.target] for edge in groups.edges], "int64")
    return nodes, max(nodes, default=GROUND) + 1, sources, targets
