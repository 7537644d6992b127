"""The search: which rates and strengths are tried, and which pair is chosen.

All methods get the same number of trials: a grid of 5 strengths by 4 rates, then three
times the 8 pairs around the best. They are as far from it as the grid is wide while the
best is at an edge of what was tried, and half as far each time that it is not. A method
without a strength gets as many rates instead, as close to each other as they come.
"""

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
    found = []
    if not strength:
        for n in range(1, 1000):
            for power in (n, -n):
                pair = (best[0] * width**power, 0.0)
                if not _is_among(pair, known) and len(found) < 8:
                    found.append(pair)
        return found
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            pair = (best[0] * width**i, best[1] * width**j)
            if not _is_among(pair, known):
                found.append(pair)
    # Where some were tried before, as many farther away.
    for i, j in ((2, 0), (-2, 0), (0, 2), (0, -2), (2, 2), (-2, -2), (2, -2), (-2, 2)):
        pair = (best[0] * width**i, best[1] * width**j)
        if len(found) < 8 and not _is_among(pair, known):
            found.append(pair)
    return found[:8]


def choose(judged):
    """Returns the pair of the highest accuracy."""
    known = {pair: accuracy for done in judged for pair, accuracy in done.items()}
    return max(known, key=known.get)


def _is_at_edge(pair, known, has_strength):
    axes = (0, 1) if has_strength else (0,)
    return any(
        pair[axis] in (min(values), max(values))
        for axis in axes
        for values in [[other[axis] for other in known]]
    )


def _is_among(pair, known):
    return any(
        all(abs(a - b) <= 1e-5 * b for a, b in zip(pair, other, strict=True))
        for other in known
    )
