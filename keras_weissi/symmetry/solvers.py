"""Solves for balanced scales and for coefficients, on plain arrays.

The symmetry of a model is described by an array `changes`, of one row per kernel and
one column per free scale: if the logarithms of these are `z`, those of the factors of
the kernels are `changes @ z`. SciPy is imported inside the functions, as importing it
takes longer than importing this package.
"""

import math
from fractions import Fraction

import numpy as np

from keras_weissi.symmetry.elimination import solve

# If least squares gives a smaller coefficient, the other objective is used.
_LEAST_COEFFICIENT = 1e-6
_NEWTON_STEPS = 200


class NotSolvedError(RuntimeError):
    """A minimum was not found."""


def balanced_log_scales(changes, log_norms):
    """Finds the scales that minimize the sum of squared norms.

    Minimizes `sum_e exp(2 * (changes @ z + log_norms)[e])`. It is convex, and the
    factors are unique where no direction lets a kernel shrink without another growing.
    Such directions, which kernels of norm 0 make, are held at 0.

    Args:
        changes: float64 array of shape (kernels, free scales).
        log_norms: float64 array, one element per kernel: the logarithm of the norm,
            `-inf` for a norm of 0.

    Returns:
        Float64 array `z`, one element per free scale.

    Raises:
        NotSolvedError: If the minimum is not found.
    """
    from scipy.linalg import lstsq

    chosen = np.isfinite(log_norms) & changes.any(axis=1)
    used = supported(changes, chosen)
    basis = _basis(changes, chosen & ~used, used)
    incidence = (changes @ basis)[used]
    logs = log_norms[used]
    if not incidence.size:
        return np.zeros(changes.shape[1])
    # The start makes all norms as equal as possible: on a chain, it is the solution.
    ones = -np.ones((len(logs), 1))
    # This driver is three times as fast as the default.
    start = lstsq(np.hstack([incidence, ones]), -logs, lapack_driver="gelsy")[0][:-1]

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
    with np.errstate(all="ignore"):  # norms too far apart end in NaN
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
    return basis @ solution


def nearest_integers(changes, directions, log_norms, solution):
    """Finds scales near a solution for which all factors are powers of 2.

    Their sum of squared norms is such that no single scale, multiplied or divided by
    the least possible power of 2, makes it smaller. All logarithms are to base 2.

    Args:
        changes: float64 array of shape (kernels, free scales).
        directions: float64 array of shape (groups, free scales).
        log_norms: float64 array, one element per kernel.
        solution: float64 array, one element per free scale.

    Returns:
        Float64 array, one element per free scale.
    """
    steps = [
        math.lcm(*(_exact(x).denominator for x in column))
        for column in np.vstack([directions, changes]).T.tolist()
    ]
    moved = solution != 0

    def total(z):
        return np.exp2(2 * (changes @ z + log_norms)).sum()

    def descended(z):
        best = total(z)
        improved = True
        while improved:
            improved = False
            for i in np.flatnonzero(moved):
                for sign in (1, -1):
                    other = z.copy()
                    other[i] += sign * steps[i]
                    if total(other) < best * (1 - 1e-12):
                        z, best, improved = other, total(other), True
        return z

    rounded = descended(np.round(solution / steps) * steps)
    stayed = descended(0 * solution)
    # What is as good already stays as it is.
    return rounded if total(rounded) < total(stayed) * (1 - 1e-12) else stayed


def nearest_coefficients(changes, chosen, tied=None):
    """Finds positive coefficients `c` with `changes.T @ c = 0`.

    They are as close to 1 as possible: the minimizer of `sum_e (c_e - 1) ** 2`, if it
    is positive; otherwise that of `sum_e c_e * log(c_e) - c_e`, which always is.

    Args:
        changes: float64 array of shape (kernels, free scales).
        chosen: bool array, one element per kernel: those that may get a coefficient.
        tied: int array, one element per kernel: those with the same number get the same
            coefficient. Defaults to `None`: each has its own.

    Returns:
        Float64 array, one element per kernel. 0 for those that are not chosen, or that
        cannot be positive.
    """
    tied = np.arange(len(changes)) if tied is None else tied
    _, place = np.unique(tied, return_inverse=True)
    # A kernel for each number, with the sum of the changes.
    count = np.bincount(place[chosen], minlength=place.max(initial=-1) + 1)
    sums = np.zeros((len(count), changes.shape[1]))
    np.add.at(sums, place[chosen], changes[chosen])
    used = supported(sums, count > 0)
    coefficients = np.zeros(len(count))
    roots = np.sqrt(count[used])
    rows = sums[used] / roots[:, None]
    nearest = 1 - rows @ np.linalg.lstsq(rows, roots, rcond=None)[0] / roots
    if nearest.size and nearest.min() < _LEAST_COEFFICIENT:
        # The dual of this objective is balancing kernels of norm 1.
        rows = sums[used] / count[used][:, None]
        nearest = np.exp(2 * (rows @ balanced_log_scales(rows, np.log(roots))))
    coefficients[used] = np.where(np.abs(nearest - 1) < 1e-12, 1.0, nearest)
    return np.where(chosen, coefficients[place], 0.0)


def supported(changes, chosen):
    """Tells which of the chosen kernels can have positive coefficients at once.

    That is: no shift shrinks them unless another chosen kernel grows. If the scales are
    those of the nodes of a graph, they are the edges on cycles.

    Args:
        changes: float64 array of shape (kernels, free scales).
        chosen: bool array, one element per kernel.

    Returns:
        Bool array, one element per kernel.
    """
    rows = changes[chosen]
    is_supported = chosen.copy()
    if not rows.any():
        return is_supported
    is_graph = (np.abs(rows) <= 1).all() and all(
        ((rows == sign).sum(axis=1) <= 1).all() for sign in (1, -1)
    )
    if is_graph and (rows == np.round(rows)).all():
        # Node 0 stands for all that is pinned.
        sources, targets = (
            np.where(ends.any(axis=1), ends.argmax(axis=1) + 1, 0)
            for ends in (rows == -1, rows == 1)
        )
        is_supported[chosen] = _on_cycles(rows.shape[1] + 1, sources, targets)
        return is_supported
    from scipy.optimize import linprog

    # Coefficients t + s, with t of at most 1 and s without a limit: as they may be
    # multiplied by any number, t is 1 wherever they can be positive.
    count = len(rows)
    found = linprog(
        np.concatenate([-np.ones(count), np.zeros(count)]),
        A_eq=np.hstack([rows.T, rows.T]),
        b_eq=np.zeros(rows.shape[1]),
        bounds=[(0, 1)] * count + [(0, None)] * count,
    )
    if found.x is None:
        raise NotSolvedError(f"No coefficients were found: {found.message}")
    is_supported[chosen] = found.x[:count] > 0.5
    return is_supported


def _on_cycles(count, sources, targets):
    """Tells which edges lie on a cycle of directed edges between nodes."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(sources)), (sources, targets)), (count, count))
    _, component = connected_components(graph, connection="strong")
    return component[sources] == component[targets]


def _basis(changes, held, moved):
    """Returns a basis, as columns, of the scales that leave the held kernels alone.

    Without directions that move none of the kernels `moved`.
    """
    basis = _null_space(changes[held])
    # A column that others make up moves nothing by itself.
    return basis[:, sorted(_solved(changes[moved] @ basis))]


def _solved(rows):
    """Solves `rows @ x = 0` exactly, see `elimination.solve`."""
    return solve(
        [{i: _exact(x) for i, x in enumerate(row) if x} for row in rows.tolist()]
    )


def _exact(x):
    return Fraction(x).limit_denominator(10**6)


def _null_space(rows):
    """Returns a basis of the null space of an array of fractions, as columns."""
    count = rows.shape[1]
    solved = _solved(rows)
    free = [i for i in range(count) if i not in solved]
    basis = np.zeros((count, len(free)))
    basis[free, np.arange(len(free))] = 1.0
    for i, value in solved.items():
        for x, c in value.items():
            basis[i, free.index(x)] = float(c)
    return basis
