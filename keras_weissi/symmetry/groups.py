"""Scale groups: which tensors of a model have to be multiplied by the same factor.

Every tensor gets a factor; layers tie the factors of their inputs and outputs, or pin
them to 1, or relate them through a kernel. Tensors that are tied make up a group,
and the kernels are the edges between the groups.
"""

import dataclasses
import types
from fractions import Fraction

import keras
import numpy as np

from keras_weissi._utils.tables import KernelTable
from keras_weissi.model.kernels import Kernel


@dataclasses.dataclass(frozen=True)
class ScaleGroup:
    """Tensors that have to be multiplied by the same factor.

    Attributes:
        index: int, the place in `ScaleGroups.groups`.
        layers: tuple of str, the layers whose outputs they are.
        pins: tuple of pairs of str, the layers that pin the factor to 1 and why.
        offsets: tuple of `keras.Variable`, what is added to them and has to be
            multiplied by the same factor: biases and betas.
    """

    index: int
    layers: tuple[str, ...]
    pins: tuple[tuple[str, str], ...]
    offsets: tuple[keras.Variable, ...] = ()

    @property
    def free(self) -> bool:
        """Whether the factor may be chosen."""
        return not self.pins


@dataclasses.dataclass(frozen=True)
class KernelEdge:
    """A kernel, or the gamma of a normalization, between two groups.

    With the factors `s` of the source and `t` of the target, the kernel must be
    multiplied by `t / s`.

    Attributes:
        kernel: `keras_weissi.model.Kernel`.
        source: int, the index of the group of the layer's input. Of an embedding, and
            of what is added, it is a group that is pinned.
        target: int, the index of the group of its output.
    """

    kernel: Kernel
    source: int
    target: int

    @property
    def is_gamma(self) -> bool:
        """Whether it is the gamma of a normalization, or scales like one."""
        return self.kernel.kind == "gamma"


@dataclasses.dataclass(frozen=True)
class ScaleRelation:
    """Free groups whose factors depend on each other, as in attention.

    Attributes:
        powers: tuple of pairs: the index of a group, and a `fractions.Fraction`. The
            product of the factors, raised to these powers, must be 1.
        layer: str, the layer that asks for it.
    """

    powers: tuple[tuple[int, Fraction], ...]
    layer: str

    def __str__(self) -> str:
        return " · ".join(
            f"s{group}" if power == 1 else f"s{group}^{power}"
            for group, power in self.powers
        )


@dataclasses.dataclass(frozen=True)
class ScaleStatus:
    """Whether scale can be shifted to or from a kernel.

    Attributes:
        kind: str, `"shifts"`, `"pinned"`, `"normalized"` or `"hidden"`.
        by: str, what pins or normalizes it, or why it cannot be seen.
    """

    kind: str
    by: str = ""

    def __str__(self) -> str:
        joint = " by " if self.kind == "normalized" else ": "
        return f"{self.kind}{joint}{self.by}" if self.by else self.kind


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class ScaleGroups:
    """The scale groups of a model, as `scale_groups` returns them. Prints as tables.

    Attributes:
        groups: list of `ScaleGroup`.
        edges: list of `KernelEdge`.
        relations: list of `ScaleRelation`, between free groups.
        directions: float64 array of shape (groups, free scales): the logarithms of the
            factors of the groups are `directions @ z`, for any `z`.
        statuses: dict from the names of kernels to `ScaleStatus`.
    """

    groups: list[ScaleGroup]
    edges: list[KernelEdge]
    relations: list[ScaleRelation]
    directions: np.ndarray
    statuses: dict[str, ScaleStatus]

    @property
    def free(self) -> list[ScaleGroup]:
        """The groups whose factor may be chosen."""
        return [group for group in self.groups if group.free]

    @property
    def pinned(self) -> list[ScaleGroup]:
        """The groups whose factor is 1."""
        return [group for group in self.groups if not group.free]

    @property
    def dimension(self) -> int:
        """How many scales may be chosen independently of each other."""
        return self.directions.shape[1]

    @property
    def changes(self) -> np.ndarray:
        """Array of shape (edges, free scales): what `directions` is for the kernels."""
        sources = [edge.source for edge in self.edges]
        targets = [edge.target for edge in self.edges]
        return self.directions[targets] - self.directions[sources]

    def random_factors(
        self, rng: np.random.Generator, spread: float = 2.0
    ) -> dict[str, float]:
        """Draws factors that `shift_scales` takes, for all kernels that can shift.

        Args:
            rng: `numpy.random.Generator`.
            spread: float, the standard deviation of the logarithms of the scales, to
                base 2. Defaults to `2.0`.

        Returns:
            Dict from the names of kernels to floats.
        """
        logs = self.changes @ rng.normal(0.0, spread, self.dimension)
        return {
            edge.kernel.name: float(2.0**log)
            for edge, log in zip(self.edges, logs, strict=True)
        }

    def __str__(self) -> str:
        return "\n".join(map(str, self._tables()))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return "".join(table._repr_html_() for table in self._tables())

    def _tables(self) -> list[KernelTable]:
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
                weight=edge.kernel.kind,
                shape=tuple(edge.kernel.variable.shape),
                source=edge.source,
                target=edge.target,
            )
            for edge in self.edges
        ]
        caption = f"{len(groups)} groups, {len(self.free)} of them free"
        if self.relations:
            names = "; ".join(f"{r} = 1 ({r.layer})" for r in self.relations[:4])
            more = len(self.relations) - 4
            caption += f", {self.dimension} independently of each other, as {names}"
            caption += f"; and {more} more" if more > 0 else ""
        return [
            KernelTable(groups, "group scale pinned_by outputs_of", caption),
            KernelTable(edges, "name weight shape source target"),
        ]


def _shortened(names):
    if len(names) <= 4:
        return ", ".join(names)
    return f"{', '.join(names[:2])}, … {names[-1]} ({len(names)} in all)"
