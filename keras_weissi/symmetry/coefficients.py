"""Coefficients of the kernels with which the penalty is invariant."""

import dataclasses
import functools

import keras
import numpy as np

from keras_weissi._utils.tables import KernelTable, paragraphs
from keras_weissi._utils.user_warnings import listed_names, shortened
from keras_weissi._utils.validation import check_bool
from keras_weissi.model.eligibility import LeftOut, Reason, why_left_out
from keras_weissi.model.kernels import Kernel, attention_around, kernels_and_gammas
from keras_weissi.symmetry.find_groups import graph_and_groups
from keras_weissi.symmetry.solvers import nearest_coefficients


@dataclasses.dataclass(frozen=True)
class CoefficientRow:
    """One row of the table of `InvariantCoefficients`.

    Attributes:
        name: str, the name of the kernel, or of the normalization with the gamma.
        coefficient: float; 0 for a kernel without a penalty.
        note: str, why it has none, or what else to know.
    """

    name: str
    coefficient: float
    note: str


@dataclasses.dataclass(frozen=True, repr=False)
class InvariantCoefficients:
    """What `invariant_coefficients` returns. Prints as a table and a statement.

    Attributes:
        coefficients: dict from the names of kernels, and of normalizations with a
            gamma, to floats: the coefficients of all that is penalized.
        plain_is_invariant: bool, whether the sum of the log norms of the kernels,
            each with coefficient 1, is invariant on the model: `True` also where
            nothing can change it, as no scale is free or no kernel is penalized. `None`
            if it is not known, as some are in layers that cannot be seen through.
        statement: str, says so in words, with the reason, in under 300 characters.
        table: `KernelTable` of `CoefficientRow`, of all kernels: first those that are
            penalized.
    """

    coefficients: dict[str, float]
    plain_is_invariant: bool | None
    statement: str
    table: KernelTable[CoefficientRow]

    def __str__(self) -> str:
        return f"{self.table}\n{self.statement}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table._repr_html_() + paragraphs(self.statement)


@dataclasses.dataclass(frozen=True)
class Share:
    """What one kernel contributes to the invariant penalty."""

    kernel: Kernel
    coefficient: float  # 0 if it has no penalty
    left_out: LeftOut | None  # why it has none
    is_pinned: bool  # whether no scale can be shifted through its layer
    is_unseen: bool  # whether that is because nothing is known of its layer


def invariant_coefficients(
    model: keras.Model, include_normalized: bool = False
) -> InvariantCoefficients:
    """Finds the coefficients with which a penalty on log norms is invariant.

    The sum `sum_l c_l * log(norm(W_l))` is invariant to shifts of scale if and only if,
    at every free group (see `scale_groups`), the coefficients of the incoming kernels
    and those of the outgoing kernels have the same sum. The coefficients returned are
    positive and as close to 1 as possible (in the least-squares sense, if that gives
    positive ones). In a chain of layers, and in a residual network with identity
    shortcuts, all are 1; with projection shortcuts (with a kernel), they are not.

    The gamma of a normalization can absorb the scale of the kernels after it. Where
    that would change the penalty on them, the gamma gets a coefficient, too. Kernels
    that `regularize` leaves out get none. All this holds for norms above `min_norm`.

    Args:
        model: A built `keras.Model` that `scale_groups` takes.
        include_normalized: bool, the same as for `regularize`: whether kernels
            directly before a normalization layer are penalized. Defaults to `False`.

    Returns:
        `InvariantCoefficients`. `regularize(model, WEISSI(...), invariant=True)` uses
        them.

    Raises:
        ValueError: If `scale_groups` does not take the model, or an argument is
            invalid.

    Examples:
        >>> import keras
        >>> from keras_weissi import WEISSI, invariant_coefficients, regularize
        >>> x = inputs = keras.Input((4,))
        >>> x = keras.layers.Dense(4, "relu", name="stem")(x)
        >>> shortcut = keras.layers.Dense(4, name="projection")(x)
        >>> x = keras.layers.Dense(4, name="residual")(x)
        >>> x = keras.layers.Add()([x, shortcut])
        >>> model = keras.Model(inputs, keras.layers.Dense(2, name="logits")(x))
        >>> c = invariant_coefficients(model)
        >>> {name: round(value, 2) for name, value in c.coefficients.items()}
        {'stem': 1.2, 'residual': 0.6, 'projection': 0.6, 'logits': 1.2}
        >>> c.plain_is_invariant
        False
        >>> report = regularize(model, WEISSI(0.1), invariant=True)
        >>> [round(row.regularizer.log_norm, 2) for row in report]
        [0.12, 0.06, 0.06, 0.12]
    """
    check_bool(include_normalized, "include_normalized")
    graph, groups = graph_and_groups(model)
    shares, reasons = find_shares(model, graph, groups, include_normalized)
    bearing = [share for share in shares if share.left_out is None]
    unseen = [share for share in shares if share.is_unseen]
    table = KernelTable(
        [
            CoefficientRow(share.kernel.name, share.coefficient, _note(share))
            for share in sorted(shares, key=lambda share: share.left_out is not None)
        ],
        "name coefficient note",
    )
    return InvariantCoefficients(
        {share.kernel.name: share.coefficient for share in bearing},
        None if unseen and bearing and not reasons else not reasons,
        _statement(shares, bearing, unseen, reasons, groups, include_normalized),
        table,
    )


def find_shares(model, graph, groups, include_normalized, replace=False):
    """Finds what each kernel contributes, given the `Graph` and the `ScaleGroups`.

    The other arguments are those of `regularize`.

    Returns:
        Pair of a list of `Share`, one per kernel, and of a list of the reasons why
        plain `WEISSI` is not invariant: functions that return them as str, given how
        many names to list.
    """
    edges = groups.edges

    def why(kernel):
        name = graph.normalization_of(kernel)
        return why_left_out(kernel, name, include_normalized, replace)

    left_out = [why(edge.kernel) for edge in edges]
    is_gamma = np.array([edge.is_gamma for edge in edges], bool)
    is_bare = np.array([x and x.reason is Reason.EMBEDDING for x in left_out], bool)
    chosen = np.array([why is None for why in left_out], bool)
    plain = chosen & ~is_gamma
    # One that feeds something pinned cannot absorb any scale.
    fed = np.array([groups.groups[edge.target].free for edge in edges], bool)
    chosen |= is_bare
    offsets = {id(v) for group in groups.free for v in group.offsets}
    reasons = _unbalanced(groups, chosen, plain)
    flow = plain.astype("float64")
    if reasons:
        # Keras keeps one regularizer for all kernels of an attention layer.
        around = [attention_around(edge.kernel) or edge for edge in edges]
        tied = np.array([id(thing) for thing in around], "int64")
        flow = nearest_coefficients(groups.changes, plain | (chosen & fed), tied)
    edge_of = {id(edge.kernel.variable): i for i, edge in enumerate(edges)}
    shares = []
    for kernel in kernels_and_gammas(model):
        i = edge_of.get(id(kernel.variable))
        if i is not None:
            coefficient, why_not = float(flow[i]), left_out[i]
            if coefficient > 0.0:
                why_not = None
            elif why_not is None:
                why_not = LeftOut(
                    Reason.NOT_NEEDED if is_gamma[i] else Reason.OTHERS_TAKE_IT
                )
        elif kernel.is_bare_gamma:
            continue
        elif id(kernel.variable) in offsets:
            why_not, coefficient = LeftOut(Reason.OFFSET), 0.0
            reasons.insert(0, functools.partial(_offset, kernel.name))
        else:
            why_not = why(kernel)
            coefficient = 1.0 if why_not is None else 0.0
        is_meant = why_not is None or why_not.reason is Reason.UNNAMED
        matters = i is None and is_meant and kernel.variable.trainable
        is_unseen = matters and groups.statuses[kernel.name].kind == "hidden"
        shares.append(Share(kernel, coefficient, why_not, i is None, is_unseen))
    return shares, reasons


def _note(share):
    notes = ["gamma"] if share.kernel.kind == "gamma" else []
    if share.left_out is not None:
        is_needless = share.left_out.reason is Reason.NOT_NEEDED
        notes.append(f"{'' if is_needless else 'left out: '}{share.left_out}")
    elif share.is_pinned:
        notes.append("no scale can be shifted through its layer")
    return "; ".join(notes)


def _unbalanced(groups, chosen, plain):
    """Finds the groups that plain kernels do not enter and leave in equal number.

    Args:
        groups: `ScaleGroups`.
        chosen: bool array, one element per edge: those that may be penalized.
        plain: bool array, likewise: those that plain `WEISSI` penalizes.

    Returns:
        List of functions that describe one each, given how many names to list.
    """
    names = np.array([repr(edge.kernel.name) for edge in groups.edges], object)
    reasons = []
    for column, direction in zip(groups.changes.T, groups.directions.T, strict=True):
        if abs(column[plain].sum()) < 1e-9:
            continue
        group = groups.groups[int(np.flatnonzero(direction == 1)[0])]
        enters, leaves = column > 0, column < 0
        clauses = (
            _name_of(group),
            names[plain & enters],
            names[plain & leaves],
            names[chosen & ~plain & enters],
            names[~chosen & (enters | leaves)],
        )
        reasons.append(functools.partial(_imbalance, *clauses))
    return reasons


def _imbalance(group, into, out, gammas, left_out, most):
    reason = f"at the output of {listed_names([group])}, "
    reason += f"{_listed(into, 'enter', most)}, but {_listed(out, 'leave', most)}"
    if len(gammas) and most:
        reason += f", and the gamma of {listed_names(gammas, most)} scales it as well"
    if len(left_out) and most > 1:
        names = listed_names(left_out, most)
        reason += f" (not counting {names}, without a penalty)"
    return reason


def _offset(name, most):
    return f"{listed_names([repr(name)])} is scaled by all the factors before it"


# The most characters that a statement has.
_LONGEST = 299


def _statement(shares, bearing, unseen, reasons, groups, include_normalized):
    """Says whether plain WEISSI is invariant, and if not, where, and what to do."""
    for most in (3, 2, 1, 0):  # with fewer names, if it is too long
        text = _say(shares, bearing, unseen, reasons, groups, include_normalized, most)
        if len(text) <= _LONGEST:
            break
    return text


def _say(shares, bearing, unseen, reasons, groups, include_normalized, most):
    gammas = [share for share in bearing if share.kernel.kind == "gamma"]
    count = sum(share.kernel.kind != "gamma" for share in shares)
    some = len(bearing) - len(gammas)
    penalized = f"{some} of {count} kernels {'is' if some == 1 else 'are'} penalized"
    if not bearing:
        return f"{penalized}: there is nothing to make invariant. The notes say why."
    hidden = known = ""
    if unseen:
        names = _in_brackets([repr(share.kernel.name) for share in unseen], most)
        hidden = f"; {len(unseen)} cannot be seen through{names}"
        known = f" as far as the kernels can be seen{hidden}"
    if not groups.free:
        pins = dict.fromkeys(
            ": ".join(p) for group in groups.pinned for p in group.pins
        )
        # The ends of the model only if nothing else pins a scale.
        inner_first = sorted(pins, key=lambda pin: pin.endswith("put of the model"))
        return (
            f"{penalized}{hidden}. No scale is free, so there is nothing to be "
            f"invariant to: {_first(shortened(inner_first[0], 99), inner_first)}."
        )
    plain = f"{penalized}. Plain WEISSI is"
    if not reasons:
        return f"{plain} invariant{known}."
    plain += f" not invariant: {_first(reasons[0](most), reasons)}."
    arguments = "include_normalized=True, " if include_normalized else ""
    how = f" with these coefficients{' (gammas too)' * bool(gammas)}" if most else ""
    call = f"`regularize(..., {arguments}invariant=True)`"
    return f"{plain} {call} makes it so{how}{known}."


def _name_of(group):
    return repr(group.layers[0]) if group.layers else f"group {group.index}"


def _first(text, texts):
    return text + (f" (and {len(texts) - 1} more)" if texts[1:] else "")


def _listed(names, verb, most):
    if not len(names):
        return f"no kernel {verb}s"
    verb = f"kernel {verb}s" if len(names) == 1 else f"kernels {verb}"
    return f"{len(names)} {verb}{_in_brackets(names, most)}"


def _in_brackets(names, most):
    return f" ({listed_names(names, most)})" if most else ""
