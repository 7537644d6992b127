"""The search: which rates and strengths are tried, and which pair is chosen.

All methods get the same number of trials: a grid of 5 strengths by 4 rates, then three
times the 8 pairs around the best. They are as far from it as the grid is wide while the
best is at an edge of what was tried, and half as far each time that it is not. A method
without a strength gets as many rates instead, as close to each other as they come.
"""

import itertools

RATES = {"sgd": 0.1, "adam": 2e-3}  # the middle of the grid
STEP = 4.0
ROUNDS = 4


def next_pairs(middle, judged):
    """Lists the pairs of the next round.

    Args:
        middle: pair of floats, the middle of the grid: the rate and the strength, which
            is 0 for a method without one.
        judged: list, one per round that is done, of dicts from pairs to floats, the
            accuracy.

    Returns:
        List of pairs of rate and strength.
    """
    rate, strength = middle
    if not judged:
        if not strength:
            return [(rate * STEP ** (n / 4), 0.0) for n in range(-10, 10)]
        return [
            (rate * STEP**i, strength * STEP**j)
            for i in (-1.5, -0.5, 0.5, 1.5)
            for j in range(-2, 3)
        ]
    known = {pair: accuracy for done in judged for pair, accuracy in done.items()}
    best = choose(judged)
    width = STEP if strength else STEP**0.25
    for n in range(1, len(judged) + 1):
        before = {pair: a for done in judged[:n] for pair, a in done.items()}
        if not _is_at_edge(max(before, key=before.get), before, bool(strength)):
            width **= 0.5
    if strength:
        near = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        # Where some of these were tried before, as many farther away.
        far = [(2, 0), (-2, 0), (0, 2), (0, -2), (2, 2), (-2, -2), (2, -2), (-2, 2)]
        steps = iter(near + far)
    else:
        steps = ((n * sign, 0) for n in itertools.count(1) for sign in (1, -1))
    pairs = ((best[0] * width**i, best[1] * width**j) for i, j in steps)
    return list(itertools.islice((p for p in pairs if not _is_among(p, known)), 8))


def choose(judged):
    """Returns the pair of the highest accuracy."""
    known = {pair: accuracy for done in judged for pair, accuracy in done.items()}
    return max(known, key=known.get)


def _is_at_edge(pair, known, has_strength):
    for axis in (0, 1) if has_strength else (0,):
        values = [other[axis] for other in known]
        if pair[axis] in (min(values), max(values)):
            return True
    return False


def _is_among(pair, known):
    return any(
        all(abs(a - b) <= 1e-5 * b for a, b in zip(pair, other, strict=True))
        for other in known
    )
