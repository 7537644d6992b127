"""Solves homogeneous linear equations exactly, in fractions."""

from fractions import Fraction


def solve(equations):
    """Solves equations `sum_i c_i * x_i = 0`.

    Args:
        equations: List of dicts from the names of unknowns to ints or fractions.

    Returns:
        Dict from each unknown that is not free to what it equals: a dict from unknowns
        that are free to their coefficients.
    """
    solved: dict = {}
    for equation in equations:
        row = substituted(equation, solved)
        if not row:
            continue
        # The latest unknown, so that what comes first stays free.
        pivot = max(row, key=lambda x: (abs(row[x]) == 1, x))
        factor = Fraction(-1) / row.pop(pivot)
        value = {x: c * factor for x, c in row.items()}
        for other, old in solved.items():
            if pivot in old:
                solved[other] = substituted(old, {pivot: value})
        solved[pivot] = value
    return solved


def substituted(row, solved):
    """Replaces the unknowns in a row that are solved."""
    result: dict = {}
    for x, c in row.items():
        for y, d in solved.get(x, {x: 1}).items():
            result[y] = result.get(y, 0) + c * d
    return {x: c for x, c in result.items() if c}
