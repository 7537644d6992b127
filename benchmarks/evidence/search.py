"""The search of a strength: what is tried, and which is chosen."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much is tried.

    Attributes:
        grid: int, trials on the first grid of strengths.
        trials: int, trials in all.
        search: seeds of the search.
        final: seeds of the runs that see the test rows: none of the search's.
        epochs: float, what the epochs of a task are multiplied by.
    """

    grid: int = 7
    trials: int = 12
    search: tuple = (0, 1, 2)
    final: tuple = tuple(range(200, 210))
    epochs: float = 1.0


QUICK = Budget(grid=3, trials=3, search=(0,), final=(200, 201), epochs=0.05)


def choose(judged, rows):
    """Chooses a strength.

    Accuracies that are closer than their error say nothing on clean tasks, where most
    strengths do equally well, and little on others; the loss does.

    Args:
        judged: Dict from strengths to pairs of accuracy and loss.
        rows: int, how many rows the accuracies are of.

    Returns:
        The strength with the least loss of those whose accuracy is not below the
        highest by more than the standard error of the highest.
    """
    highest = max(accuracy for accuracy, _ in judged.values())
    enough = highest - (highest * (1 - highest) / rows) ** 0.5
    good = {s: loss for s, (accuracy, loss) in judged.items() if accuracy >= enough}
    return min(good, key=good.get)


def trials(start, judge, rows, grid, count):
    """Tries strengths: a grid first, then next to the best.

    The grid is of powers of 4 around `start`: wide enough for a method whose strengths
    are not known to reach from no effect to collapse. While the best is at an edge, it
    is made wider there; or else finer, between the best and the neighbor that is
    farther off.

    Args:
        start: float, the middle of the grid; 0 for a method without a strength.
        judge: Function from a strength to a pair of accuracy and loss.
        rows: int, how many rows the accuracies are of.
        grid: int, how many strengths are on the grid.
        count: int, how many there are in all.

    Returns:
        Pair of the chosen strength, and of a dict from all strengths to what `judge`
        says of them.
    """
    if not start:
        return 0.0, {0.0: judge(0.0)}
    strengths = [start * 4.0 ** (i - grid // 2) for i in range(grid)]
    judged = {strength: judge(strength) for strength in strengths}
    while len(judged) < count:
        strengths = sorted(judged)
        best = choose(judged, rows)
        place = strengths.index(best)
        if place == 0:
            strength = best / 4
        elif place == len(strengths) - 1:
            strength = best * 4
        else:
            # By turns on both sides: the best may stand close to the collapse.
            below, above = strengths[place - 1], strengths[place + 1]
            gaps = {below: round(best / below, 6), above: round(above / best, 6)}
            neighbor = max(gaps, key=lambda s: (gaps[s], -judged[s][1]))
            strength = (best * neighbor) ** 0.5
        judged[strength] = judge(strength)
    return choose(judged, rows), judged
