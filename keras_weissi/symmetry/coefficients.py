"""How much of the penalty each kernel has to bear for the sum to be invariant."""

import collections
import dataclasses
from typing import Any

import keras
import numpy as np

from keras_weissi._utils.tables import KernelTable, format_norm
from keras_weissi._utils.validation import check_bool
from keras_weissi.model.eligibility import why_left_out
from keras_weissi.model.graph import Graph
from keras_weissi.model.kernels import kernels
from keras_weissi.symmetry.find_groups import scale_groups
from keras_weissi.symmetry.solvers import GROUND, nearest_flow

_LEFT_OUT = 0.0


@dataclasses.dataclass(frozen=True)
class CoefficientRow:
    """One row of the table of `InvariantCoefficients`.

    Attributes:
        name: str, the name of the kernel, or of the normalization with the gamma.
        coefficient: float; 0 for one that is to be left out.
        note: str, why.
    """

    name: str
    coefficient: float
    note: str


class InvariantCoefficients(dict[str, float]):
    """Coefficients by the names of layers, as `invariant_coefficients` returns them.

    Its items are what bears a penalty, by names that are unique in the model. It can be
    asked by the name of any layer, of a kernel, or by a layer itself; of those to be
    left out, the coefficient is 0. Prints as a table with a plain statement.

    Attributes:
        plain_is_invariant: bool, whether the sum of the log norms of the kernels,
            each with coefficient 1, is invariant on the model.
        statement: str, says so in words, with the reason.
        table: `KernelTable` of `CoefficientRow`.
    """

    def __init__(
        self,
        coefficients: dict[str, float],
        known: dict[str | int, set[float]],
        layers: list[keras.Layer],
        plain_is_invariant: bool,
        statement: str,
        table: KernelTable[CoefficientRow],
    ) -> None:
        super().__init__(coefficients)
        self._known = known
        # By their ids, which no other layer is given as long as they are held.
        self._layers = layers
        self.plain_is_invariant = plain_is_invariant
        self.statement = statement
        self.table = table

    def __getstate__(self):
        # A copy cannot be asked by a layer: that may have been copied, too.
        by_name = {k: v for k, v in self._known.items() if isinstance(k, str)}
        return {**self.__dict__, "_known": by_name, "_layers": []}

    def __getitem__(self, name: str | keras.Layer) -> float:
        found = self._known.get(_key(name), set())
        if len(found) == 1:
            return next(iter(found))
        if found:
            raise KeyError(
                f"several layers are called {name!r}: ask with the layer itself, as in "
                "`coefficients[layer]`"
            )
        raise KeyError(f"no layer with a kernel is called {name!r}")

    def get(self, name: str | keras.Layer, default: Any = None) -> Any:
        """Returns what `[name]` does, or a default if no layer is called so."""
        return self[name] if _key(name) in self._known else default

    def __str__(self):
        return f"{self.table}\n{self.statement}"

    __repr__ = __str__


def invariant_coefficients(
    model: keras.Model, include_normalized: bool = False
) -> InvariantCoefficients:
    """Finds the coefficients with which a penalty on log norms is invariant.

    The sum `sum_l c_l * log(norm(W_l))` is invariant to shifts of scale if, and only
    if, the coefficients of the kernels that lead into a tensor and of those that lead
    out of it sum to the same, wherever the scale of the tensor is free. These are the
    positive ones that are nearest to 1. In a chain of layers, and in a residual network
    with identity shortcuts, all are 1; with projection shortcuts they are not.

    The gamma of a normalization can take up the scale of the kernels behind it. Where
    that makes the penalty on them vary, it gets a coefficient, too; `regularize` puts a
    penalty on it if it is named. Kernels that `regularize` leaves out get none, and are
    not among the items: `deregularize` takes an earlier `WEISSI` off them. All this
    holds for norms above the `min_norm` of `WEISSI`.

    Args:
        model: A built Sequential or Functional `keras.Model`.
        include_normalized: bool, the same as for `regularize`: whether kernels straight
            before a normalization layer bear a penalty. Defaults to `False`.

    Returns:
        `InvariantCoefficients`, a dict from the names of layers to floats. Layers with
        the same name in nested models go by the names of their kernels, such as
        `"backbone/conv"`. It prints as a table, with a statement on whether `WEISSI`
        is invariant on this model without it.

    Raises:
        ValueError: If the model is not built, or a subclassed one, or an argument is
            invalid.

    Example:

    >>> import keras
    >>> from keras_weissi import WEISSI, invariant_coefficients, regularize
    >>> x = inputs = keras.Input((4,))
    >>> x = keras.layers.Dense(4, "relu", name="stem")(x)
    >>> shortcut = keras.layers.Dense(4, name="projection")(x)
    >>> x = keras.layers.Dense(4, name="residual")(x)
    >>> x = keras.layers.Add()([x, shortcut])
    >>> model = keras.Model(inputs, keras.layers.Dense(2, name="logits")(x))
    >>> c = invariant_coefficients(model)
    >>> {name: round(value, 2) for name, value in c.items()}
    {'stem': 1.2, 'residual': 0.6, 'projection': 0.6, 'logits': 1.2}
    >>> c.plain_is_invariant
    False
    >>> report = regularize(model, {k: WEISSI(0.1 * v) for k, v in c.items()})
    """
    check_bool(include_normalized, "include_normalized")
    groups = scale_groups(model)
    graph = Graph(model)
    edges = groups.edges

    def why(kernel):
        name = graph.normalization_of(kernel.layer, kernel.parents)
        return why_left_out(kernel, name, include_normalized)

    left_out = [why(edge.kernel) for edge in edges]
    chosen = np.array([why is None for why in left_out], bool)
    plain = chosen & ~np.array([edge.is_gamma for edge in edges], bool)
    reasons = _unbalanced(groups, chosen, plain)
    if reasons:
        # A gamma that feeds something pinned can take up no scale.
        fed = np.array([groups.groups[edge.target].free for edge in edges], bool)
        count, sources, targets = groups.ends()
        flow = nearest_flow(count, sources, targets, plain | (chosen & fed))
    else:
        flow = plain.astype("float64")
    rows = []
    for edge, coefficient, reason in zip(edges, flow.tolist(), left_out, strict=True):
        note = ""
        if reason:
            note = f"left out: {reason[0]}"
        elif coefficient == _LEFT_OUT and not edge.is_gamma:
            note = "left out: others that are left out can take up its scale"
        elif coefficient == _LEFT_OUT:
            note = "not needed: no kernel behind it bears a penalty"
        if edge.is_gamma:
            note = f"gamma; {note}" if note else "gamma"
        rows.append((edge.kernel, CoefficientRow(edge.kernel.name, coefficient, note)))
    known = {id(edge.kernel.variable) for edge in edges}
    for kernel in kernels(model, everything=True):
        if id(kernel.variable) not in known:
            coefficient, note = 1.0, "its layer lets no scale pass"
            if reason := why(kernel):
                coefficient, note = _LEFT_OUT, f"left out: {reason[0]}"
            rows.append((kernel, CoefficientRow(kernel.name, coefficient, note)))
    bearing = [row for kernel, row in rows if row.coefficient != _LEFT_OUT]
    gammas = [edge for edge, c in zip(edges, flow, strict=True) if edge.is_gamma and c]
    statement = (
        f"{len(bearing) - len(gammas)} of {len(rows) - sum(e.is_gamma for e in edges)} "
        "kernels bear a penalty"
    )
    if bearing:
        statement += f". {_statement(reasons, gammas, include_normalized)}"
    else:
        statement += ": there is nothing to make invariant. The notes above say why."
    table = KernelTable(
        [row for _, row in rows],
        {"name": str, "coefficient": format_norm, "note": str},
    )
    by_name, known = _by_name(rows)
    layers = [kernel.layer for kernel, _ in rows]
    return InvariantCoefficients(by_name, known, layers, not reasons, statement, table)


def _key(name):
    return id(name) if isinstance(name, keras.Layer) else name


def _by_name(rows):
    """Returns a dict of what bears a penalty, and one of all that can be asked."""
    layers = collections.defaultdict(set)
    for kernel, _ in rows:
        layers[kernel.layer.name].add(id(kernel.layer))
    coefficients, known = {}, collections.defaultdict(set)
    for kernel, row in rows:
        name = kernel.layer.name
        if row.coefficient != _LEFT_OUT:
            is_unique = len(layers[name]) == 1
            coefficients[name if is_unique else kernel.name] = row.coefficient
        for key in (name, kernel.name, id(kernel.layer)):
            known[key].add(row.coefficient)
    return coefficients, dict(known)


def _unbalanced(groups, chosen, plain):
    """Lists the groups that as many plain kernels do not lead to as lead away from."""
    _, sources, targets = groups.ends()
    names = [repr(edge.kernel.name) for edge in groups.edges]
    reasons = []
    for node, group in zip(groups.nodes(), groups.groups, strict=True):
        if node == GROUND:
            continue
        enters = (targets == node) & (sources != node)
        leaves = (sources == node) & (targets != node)
        into, out = np.flatnonzero(plain & enters), np.flatnonzero(plain & leaves)
        if len(into) == len(out):
            continue
        reason = (
            f"{_listed(names, into)} to the outputs of {group.layers[0]!r}, but "
            f"{_listed(names, out)} on from them"
        )
        gammas = np.flatnonzero(chosen & ~plain & enters)
        if len(gammas):
            by = _shortened([names[i] for i in gammas])
            reason += f", and the gamma of {by} scales them as well"
        left_out = np.flatnonzero(~chosen & (enters | leaves))
        if len(left_out):
            others = _shortened([names[i] for i in left_out])
            reason += f" (next to {others}, without a penalty)"
        reasons.append(reason)
    return reasons


def _statement(reasons, gammas, include_normalized):
    """Says whether plain WEISSI is invariant, and if not, where, and what to do."""
    if not reasons:
        return "Plain WEISSI, with coefficient 1 on each kernel, is invariant."
    statement = (
        "Plain WEISSI, with coefficient 1 on each kernel, is not invariant: "
        f"{reasons[0]}"
    )
    if reasons[1:]:
        statement += f" (and {len(reasons) - 1} more like it)"
    statement += ". With the coefficients above it is"
    if gammas:
        names = _shortened([repr(gamma.kernel.name) for gamma in gammas])
        statement += (
            f", if the gammas ({names}) bear theirs, too: `regularize` takes them from "
            "a dict by name, or with `layers=list(coefficients)`"
        )
    if include_normalized:
        statement += "; give `regularize` the same `include_normalized=True`"
    return f"{statement}."


def _listed(names, indices):
    """Says how many kernels lead somewhere, and which."""
    if not len(indices):
        return "no kernel leads"
    verb = "kernel leads" if len(indices) == 1 else "kernels lead"
    return f"{len(indices)} {verb} ({_shortened([names[i] for i in indices])})"


def _shortened(names):
    return ", ".join(names[:3]) + (", …" if names[3:] else "")
