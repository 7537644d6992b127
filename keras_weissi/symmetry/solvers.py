"""Solves for balanced scales and for coefficients, on plain arrays.

The scale groups of a model make a graph: one node, `GROUND`, for all pinned groups, one
for each free group, and an edge for each kernel. SciPy is imported inside the
functions, as importing it takes longer than importing this package.
"""

import numpy as np

# The node that stands for everything that is pinned.
GROUND = 0
# If least squares gives a smaller coefficient, the other objective is used.
_LEAST_COEFFICIENT = 1e-6
_NEWTON_STEPS = 200


class NotSolvedError(RuntimeError):
    """A minimum was not found."""


def balanced_log_scales(count, sources, targets, log_norms):
    """Finds the scales of the nodes that minimize the sum of squared norms.

    Minimizes `sum_e exp(2 * (a[target_e] - a[source_e] + log_norms[e]))` with
    `a[GROUND] = 0`. It is convex, and has one minimum over the nodes that lie on a
    cycle with `GROUND`. Other nodes, cut off by kernels of norm 0, are held at 0.

    Args:
        count: int, the number of nodes.
        sources: int array, one element per edge.
        targets: int array, one element per edge.
        log_norms: float64 array, one element per edge: the logarithm of the norm of the
            kernel, `-inf` for a norm of 0.

    Returns:
        Pair of arrays, one element per node: the float64 logarithms of the scales, and
        bools that are true for nodes that are held, including `GROUND`.

    Raises:
        NotSolvedError: If the minimum is not found.
    """
    chosen = np.isfinite(log_norms) & (sources != targets)
    _, is_free = on_cycles(count, sources, targets, chosen)
    is_free[GROUND] = False
    held = ~is_free
    scales = np.zeros(count)
    edges = chosen & (is_free[sources] | is_free[targets])
    incidence = _incidence(count, sources[edges], targets[edges])[is_free].T
    logs = log_norms[edges]
    if not incidence.size:
        return scales, held
    # The start makes all norms as equal as possible: on a chain, it is the solution.
    ones = -np.ones((len(logs), 1))
    start = np.linalg.lstsq(np.hstack([incidence, ones]), -logs, rcond=None)[0][:-1]

    def weights(x):
        exponents = 2 * (incidence @ x + logs)
        largest = exponents.max()
        weights = np.exp(exponents - largest)
        return weights / weights.sum(), largest + np.log(weights.sum())

    # The logarithm of the sum: it has the same minimum, and no exponent is too large.
    def value(x):
        return weights(x)[1]

    def gradient(x):
        return 2 * incidence.T @ weights(x)[0]

    def hessian(x):
        p = weights(x)[0]
        slope = incidence.T @ p
        return 4 * (incidence.T @ (p[:, None] * incidence) - np.outer(slope, slope))

    solution = start
    if np.abs(gradient(start)).max() > 1e-12:
        from scipy.optimize import minimize

        solution = minimize(
            value, start, jac=gradient, hess=hessian, method="trust-exact"
        ).x
    # Rounding hides the imbalance of groups with small norms in the total. These
    # Newton steps therefore measure each group relative to its own kernels.
    with np.errstate(invalid="ignore"):  # 0 / 0 of norms too far apart ends in NaN
        for _ in range(_NEWTON_STEPS):
            p = weights(solution)[0]
            size = np.abs(incidence.T) @ p
            excess = incidence.T @ p
            off = np.abs(excess / size).max()
            if off < 1e-14:
                break
            root = np.sqrt(size)
            scaled = np.sqrt(p)[:, None] * incidence / root
            try:
                step = np.linalg.solve(2 * scaled.T @ scaled, excess / root) / root
            except np.linalg.LinAlgError:
                break
            solution = solution - np.clip(step, -1.0, 1.0)
    if not off < 1e-9:
        raise NotSolvedError(
            f"Balancing did not converge: norms too far apart (imbalance {off:.1e})"
        )
    scales[is_free] = solution
    return scales, held


def nearest_flow(count, sources, targets, chosen):
    """Finds positive coefficients with equal sums into and out of each node.

    They are as close to 1 as possible: the minimizer of `sum_e (c_e - 1) ** 2`, if it
    is positive; otherwise that of `sum_e c_e * log(c_e) - c_e`, which always is.

    Args:
        count: int, the number of nodes. Nothing is asked of node `GROUND`.
        sources: int array, one element per edge.
        targets: int array, one element per edge.
        chosen: bool array, one element per edge: those that may get a coefficient.

    Returns:
        Float64 array, one element per edge. 0 for those that are not chosen, or on no
        cycle of chosen ones, so that they cannot be positive.
    """
    used, _ = on_cycles(count, sources, targets, chosen)
    flow = np.zeros(len(sources))
    incidence = _incidence(count, sources[used], targets[used])[GROUND + 1 :]
    ones = np.ones(incidence.shape[1])
    potentials = np.linalg.lstsq(incidence.T, ones, rcond=None)[0]
    nearest = ones - incidence.T @ potentials
    if nearest.size and nearest.min() < _LEAST_COEFFICIENT:
        # The dual of this objective is balancing kernels of norm 1.
        a, _ = balanced_log_scales(count, sources[used], targets[used], 0 * ones)
        nearest = np.exp(2 * (a[targets[used]] - a[sources[used]]))
    flow[used] = np.where(np.abs(nearest - 1) < 1e-12, 1.0, nearest)
    return flow


def on_cycles(count, sources, targets, chosen):
    """Tells which of the chosen edges lie on a cycle of chosen edges.

    A path from something pinned to something pinned is a cycle through `GROUND`.

    Args:
        count: int, the number of nodes.
        sources: int array, one element per edge.
        targets: int array, one element per edge.
        chosen: bool array, one element per edge.

    Returns:
        Pair of bool arrays: one element per edge, and one per node: whether it is on a
        cycle with `GROUND`.
    """
    ends = np.stack([sources, targets], 1)[chosen]
    component = components(count, ends, "strong")
    return (
        chosen & (component[sources] == component[targets]),
        component == component[GROUND],
    )


def components(count, ends, connection):
    """Numbers the connected parts of a graph in the order of their first node.

    Args:
        count: int, the number of nodes.
        ends: Array-like of ints of shape (edges, 2), or empty.
        connection: `"weak"` or `"strong"`.

    Returns:
        Int array, one element per node.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.array(ends, "int64").reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), (count, count))
    _, labels = connected_components(graph, connection=connection)
    order = {label: i for i, label in enumerate(dict.fromkeys(labels.tolist()))}
    return np.array([order[label] for label in labels.tolist()])


def _incidence(count, sources, targets):
    """Returns the matrix of +1 where an edge enters a node and -1 where it leaves."""
    matrix = np.zeros((count, len(sources)))
    edges = np.arange(len(sources))
    np.add.at(matrix, (targets, edges), 1.0)
    np.add.at(matrix, (sources, edges), -1.0)
    return matrix
