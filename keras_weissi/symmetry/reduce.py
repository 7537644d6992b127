"""Reduces the equations of a model to its scale groups."""

import collections
import dataclasses
from fractions import Fraction

import numpy as np

from keras_weissi.model.kernels import named_weights
from keras_weissi.symmetry.elimination import solve, substituted
from keras_weissi.symmetry.groups import (
    KernelEdge,
    ScaleGroup,
    ScaleGroups,
    ScaleRelation,
    ScaleStatus,
)
from keras_weissi.symmetry.relations import CONSTANT, INTEGERS
from keras_weissi.symmetry.solvers import supported

# Weights that are added, and follow the scale of what they are added to.
_ADDED = ("other", "lora")


def reduced(model, unknowns):
    """Returns the `Reduction` of the equations of a model."""
    reduction = Reduction(unknowns, named_weights(model))
    while reduction.pin_dead_ends():
        pass
    return reduction


@dataclasses.dataclass
class _Edge:
    """A weight that multiplies: its scale is that of the target over the source's."""

    weight: int
    source: int
    target: int


class Reduction:
    """Unknowns that are equal make a class, which its smallest member stands for."""

    def __init__(self, unknowns, named):
        self.unknowns = unknowns
        self.named = named
        self.parent = list(range(len(unknowns.labels)))
        for equation in unknowns.equations:
            if equation.is_tie:
                self._join(*equation.powers)
        self.pins: dict = {}  # of each class, in order
        for pin in unknowns.pins:
            pins = self.pins.setdefault(self.find(pin.unknown), {})
            pins.setdefault((pin.layer, pin.reason), pin.kind)
        members = collections.Counter(map(self.find, range(len(unknowns.labels))))
        equations = [e for e in unknowns.equations if not e.is_tie]
        self.edges, self.replaced = self._kernel_edges(equations, members)
        self.equations = [
            equation.with_powers(substituted(equation.powers, self.replaced))
            for equation in equations
        ]
        self.values = {}
        self._reduce()

    def find(self, x):
        """Returns the unknown that stands for all that equal this one."""
        while self.parent[x] != x:
            self.parent[x] = x = self.parent[self.parent[x]]
        return x

    def _join(self, one, other):
        one, other = sorted((self.find(one), self.find(other)))
        self.parent[other] = one

    def _kernel_edges(self, equations, members):
        """Finds the weights that multiply, and what to put in their place.

        Returns:
            Pair of a list of `_Edge`, and of a dict from unknowns to what they equal.
        """
        edges, replaced, vectors = [], {}, []
        for weight, variable in self.unknowns.weights.items():
            kind = self.named[id(variable)].kind if id(variable) in self.named else ""
            if self.find(weight) in self.pins or not kind:
                continue
            if members[self.find(weight)] > 1:
                if kind in _ADDED:
                    vectors.append(weight)
                else:
                    edges.append(_Edge(weight, CONSTANT, weight))
                continue
            uses = [e for e in equations if weight in e.powers]
            for equation in uses:
                ends = {x: p for x, p in equation.powers.items() if x != weight}
                targets = [x for x, p in ends.items() if p == 1]
                sources = [x for x, p in ends.items() if p == -1]
                is_kernel = len(targets) == len(sources) == 1 and len(ends) == 2
                if (
                    is_kernel
                    and equation.powers[weight] == -1
                    and not any(x in replaced for x in ends)
                ):
                    edges.append(_Edge(weight, sources[0], targets[0]))
                    replaced[weight] = {
                        targets[0]: Fraction(1),
                        sources[0]: Fraction(-1),
                    }
                    break
            else:
                if uses:
                    edges.append(_Edge(weight, CONSTANT, weight))
        # A vector that is reshaped, for example, and then multiplies.
        reached = {self.find(edge.target) for edge in edges}
        # The first unknown of an equation is what the layer returns.
        reached |= {self.find(next(iter(e.powers))) for e in equations}
        used = {self.find(x) for e in equations for x in e.powers}
        for weight in vectors:
            root = self.find(weight)
            if root in used - reached:
                edges.append(_Edge(weight, CONSTANT, weight))
                reached.add(root)
        return edges, replaced

    def _reduce(self):
        """Pins and joins what the equations leave no choice for."""
        changed = True
        while changed:
            changed, rest = False, []
            for equation in self.equations:
                powers: dict[int, Fraction] = collections.defaultdict(Fraction)
                fixed = []
                for x, power in equation.powers.items():
                    root = self.find(x)
                    if root in self.pins:
                        fixed.append((x, root))
                    else:
                        powers[root] += power
                left = {x: power for x, power in powers.items() if power}
                equation = equation.with_powers(left)
                if len(left) == 1:
                    reason = equation.reason or self._because(fixed)
                    self._pin(next(iter(left)), equation.layer, reason)
                    changed = True
                elif equation.is_tie:
                    self._join(*left)
                    changed = True
                if len(left) > 1 and not equation.is_tie:
                    rest.append(equation)
            self.equations = rest
        self.values = solve([equation.powers for equation in self.equations])
        self._merge_equal()

    def _merge_equal(self):
        """Pins and joins the classes that the equations make so only together."""
        by_value: dict = {}
        for x in sorted({x for e in self.equations for x in e.powers}):
            value = self.values.get(x, {x: Fraction(1)})
            if not value:
                equation = next(e for e in self.equations if x in e.powers)
                self._pin(x, equation.layer, equation.reason or _BY_OTHERS)
            else:
                key = tuple(sorted(value.items()))
                if key in by_value:
                    self._join(by_value[key], x)
                by_value.setdefault(key, x)
        if len(by_value) < len({x for e in self.equations for x in e.powers}):
            self._reduce()

    def _because(self, fixed):
        """Tells why the last unknown of an equation is fixed, given the others."""
        weights = [root for x, root in fixed if x in self.unknowns.weights]
        known = weights or [root for _, root in fixed]
        if weights or len(known) == 1:
            return next(iter(self.pins[known[0]]))[1]
        return _BY_OTHERS

    def _pin(self, root, layer, reason):
        pins = self.pins.setdefault(self.find(root), {})
        pins.setdefault((layer, reason), "pinned")

    def value_of(self, x):
        """Returns the scale of an unknown as powers of those that are free."""
        if x in self.replaced:
            return self._combined(self.replaced[x].items())
        root = self.find(x)
        return {} if root in self.pins else self.values.get(root, {root: Fraction(1)})

    def free_unknowns(self):
        """Returns the set of the unknowns that may be chosen."""
        unknowns = set(range(len(self.parent))) - set(self.replaced)
        roots = {self.find(x) for x in unknowns}
        return {x for root in roots for x in self.value_of(root)}

    def change_of(self, edge):
        """Returns the factor of a weight as powers of the scales that are free."""
        return self._combined([(edge.target, 1), (edge.source, -1)])

    def _combined(self, powers):
        total: dict = collections.defaultdict(Fraction)
        for x, power in powers:
            for y, p in self.value_of(x).items():
                total[y] += power * p
        return {y: p for y, p in total.items() if p}

    def pin_dead_ends(self):
        """Pins what no other kernel can make up for; returns whether there was any.

        An unused output of a nested model has no kernel after it, for example.
        """
        changes = [self.change_of(edge) for edge in self.edges]
        is_supported = supported(_matrix(changes), np.full(len(changes), True))
        dead = [e for e, ok in zip(self.edges, is_supported, strict=True) if not ok]
        if not dead:
            return False
        # The last of a chain first: with its end fixed, the others may shift.
        sources = {self.find(edge.source) for edge in dead}
        last = [e for e in dead if self.find(e.target) not in sources] or dead
        for edge in last:
            ends = [x for x in (edge.target, edge.source) if self.value_of(x)]
            if ends:
                self._pin(ends[0], "the model", "no other kernel makes up for it")
        self._reduce()
        return True

    def groups(self):
        """Returns the `ScaleGroups`."""
        order = {key: place for place, key in enumerate(self.named)}
        weights = self.unknowns.weights
        edges = sorted(self.edges, key=lambda e: order[id(weights[e.weight])])
        numbers: dict[int, int] = {}
        for edge in edges:
            for end in (edge.source, edge.target):
                numbers.setdefault(self.find(end), len(numbers))
        members = collections.defaultdict(list)
        for x in range(len(self.unknowns.labels)):
            members[self.find(x)].append(x)
        is_edge = {edge.weight for edge in edges}
        for root, all_of in members.items():
            # What is pinned inside a custom layer, between no kernels, says nothing.
            is_shown = any(self.unknowns.labels[x] for x in all_of)
            if is_shown or (root not in self.pins and not set(all_of) <= set(weights)):
                numbers.setdefault(root, len(numbers))
        groups, roots = [], list(numbers)
        for root in roots:
            labels = [self.unknowns.labels[x] for x in members[root]]
            if not any(labels):
                places = [self.unknowns.places.get(x) for x in members[root]]
                labels = [place and f"inside {place}" for place in places]
            offsets = [
                weights[x] for x in members[root] if x in weights and x not in is_edge
            ]
            groups.append(
                ScaleGroup(
                    numbers[root],
                    tuple(dict.fromkeys(x for x in labels if x is not None)),
                    tuple(self.pins.get(root, ())),
                    tuple(offsets) if root not in self.pins else (),
                )
            )
        relations = []
        for equation in self.equations:
            powers = sorted((numbers[x], p) for x, p in equation.powers.items())
            sign = 1 if powers[0][1] > 0 else -1
            powers = [(group, sign * power) for group, power in powers]
            relations.append(ScaleRelation(tuple(powers), equation.layer))
        return ScaleGroups(
            groups,
            [
                KernelEdge(
                    self._kernel(edge),
                    numbers[self.find(edge.source)],
                    numbers[self.find(edge.target)],
                )
                for edge in edges
            ],
            list(dict.fromkeys(relations)),
            _matrix([self.value_of(root) for root in roots]),
            self._statuses(),
        )

    def _statuses(self):
        """Tells for each kernel whether its scale can be shifted, and why not."""
        edges = {edge.weight: edge for edge in self.edges}
        statuses = {}
        for key, kernel in self.named.items():
            weight = self.unknowns.numbers.get((None, key))
            edge = edges.get(weight)
            if weight is None:
                status = ScaleStatus("hidden", f"in {kernel.layer.name}")
            elif edge is not None and self.change_of(edge):
                status = ScaleStatus("shifts")
            else:
                ends = (weight,) if edge is None else (edge.target, edge.source)
                status = self._status_of(ends)
            statuses[kernel.name] = status
        return statuses

    def _status_of(self, ends):
        """Finds the pin that says most: the ends of the model only if nothing else."""
        pins: dict = {}
        for end in ends:
            pins |= self.pins.get(self.find(end), {})
        if len(pins) > 1:
            pins.pop((INTEGERS.layer, INTEGERS.reason), None)
        if not pins:
            is_edge = len(ends) == 2
            return ScaleStatus("pinned", _SAME) if is_edge else ScaleStatus("shifts")
        layer, reason = min(pins, key=lambda pin: pin[1].endswith("put of the model"))
        kind = pins[layer, reason]
        return ScaleStatus(kind, reason if kind == "hidden" else f"{layer}: {reason}")

    def _kernel(self, edge):
        kernel = self.named[id(self.unknowns.weights[edge.weight])]
        # Any other weight that multiplies is like a gamma.
        is_other = kernel.kind in _ADDED
        return dataclasses.replace(kernel, kind="gamma") if is_other else kernel


_SAME = "its input and its output have the same scale"
_BY_OTHERS = "all that it is multiplied with is fixed"


def _matrix(rows):
    """Returns rows of powers as an array, with a column for each unknown in them."""
    unknowns = sorted({x for row in rows for x in row})
    place = {x: i for i, x in enumerate(unknowns)}
    matrix = np.zeros((len(rows), len(unknowns)))
    for i, row in enumerate(rows):
        for x, power in row.items():
            matrix[i, place[x]] = float(power)
    return matrix
