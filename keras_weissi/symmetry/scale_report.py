"""What reports say of the scales of a model's kernels."""

import math

import numpy as np

from keras_weissi.model.graph import Graph
from keras_weissi.model.kernels import host_norm, kernels
from keras_weissi.symmetry.find_groups import UnseenError, graph_and_groups
from keras_weissi.symmetry.groups import ScaleStatus
from keras_weissi.symmetry.solvers import NotSolvedError, balanced_log_scales


class ScaleReport:
    """What a report says of the scales of a model, which is looked at once.

    Args:
        model: A built `keras.Model`.

    Attributes:
        graph: the `Graph` of the model.
        groups: its `ScaleGroups`, or `None` if it cannot be seen through.
    """

    def __init__(self, model):
        self._model = model
        try:
            self.graph, self.groups = graph_and_groups(model)
        except (UnseenError, NotSolvedError):
            self.graph, self.groups = Graph(model), None

    def status_of(self, kernel):
        """Returns the `ScaleStatus` of a kernel.

        It is "normalized" only if its scale is meaningless, whatever can be shifted.
        """
        name = self.graph.normalization_of(kernel)
        if name not in (None, "?"):
            return ScaleStatus("normalized", name)
        if self.groups is None:
            why = self.graph.hidden.get(id(self._model))
            where = f"in {self._model.name}"
            return ScaleStatus("hidden", f"{where} ({why})" if why else where)
        status = self.groups.statuses[kernel.name]
        if status.kind == "normalized":  # but its output is also used elsewhere
            return ScaleStatus("pinned", status.by)
        if name == "?" and status.kind != "hidden":
            return ScaleStatus("hidden", "the layer that it feeds cannot be seen")
        return status

    def sums_of_squares(self, norms):
        """Finds what balancing would do to the sum of squared norms.

        Args:
            norms: dict from the ids of variables to their norms, which are not read
                again.

        Returns:
            Pair of floats, the sum before and after, of what `balance_scales` reports
            on. `None` if it is not known.
        """
        if self.groups is None:
            return None
        edges = [edge.kernel.variable for edge in self.groups.edges]
        others = {id(k.variable): k.variable for k in kernels(self._model)}
        for variable in edges:
            others.pop(id(variable), None)

        def squares(variables):
            found = [
                norms[id(v)] if id(v) in norms else host_norm(v) for v in variables
            ]
            return np.square(np.array(found))

        moved, kept = squares(edges), squares(others.values()).sum()
        changes = self.groups.changes
        with np.errstate(all="ignore"):
            try:
                z = balanced_log_scales(changes, np.log(moved) / 2)
            except NotSolvedError:
                return None
            sums = [kept + np.sum(moved * np.exp(2 * x)) for x in (0.0, changes @ z)]
        return sums if np.isfinite(sums).all() else None

    def sentence(self, norms):
        """Says how many scales are free, and what balancing would do.

        The argument is that of `sums_of_squares`. Returns "" if nothing is known.
        """
        if self.groups is None:
            return ""
        count = self.groups.dimension
        if not count:
            return "No scale can be shifted without changing the model."
        text = f"{count} scale{'s' * (count > 1)} can be shifted without changing the "
        sums = self.sums_of_squares(norms)
        if sums is None:
            return f"{text}model."
        before, after = map(_formatted, sums)
        if before == after:
            return f"{text}model; {'they are' if count > 1 else 'it is'} balanced."
        text += "model: balance_scales would lower the sum of squares from "
        return f"{text}{before} to {after}."


def advice(penalized, normalized):
    """Says what to do if WEISSI acts on next to nothing, or returns "".

    That is, on less than a tenth of the kernels or of their elements.

    Args:
        penalized: list of `Kernel`, those that have it.
        normalized: list of `Kernel`, those that do not, as a normalization layer makes
            their scale meaningless.
    """
    counts, sizes = [], []
    for found in (penalized, normalized):
        shapes = [k.variable.shape for k in found if k.kind in ("kernel", "matrix")]
        counts.append(len(shapes))
        sizes.append(sum(map(math.prod, shapes)))
    if all(9 * few >= rest for few, rest in (counts, sizes)):
        return ""
    return (
        "WEISSI does next to nothing here, as normalization layers undo the scale of "
        "the other kernels. `regularize` adds these with include_normalized=True, and "
        "the gammas with invariant=True; or keep L2."
    )


def _formatted(number):
    return f"{number:.0f}" if 1000 <= number < 1e9 else f"{number:.4g}"
