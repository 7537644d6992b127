"""The search for a strength: which strengths are tried, and which one is chosen."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much is tried.

    Attributes:
        grid: int, trials on the first grid of strengths.
        trials: int, trials in all.
        search: seeds of the search.
        final: seeds of the runs that see the test rows. The search uses none of them.
        epochs: float, the factor of a task's epochs.
    """

    grid: int = 7
    trials: int = 12
    search: tuple = (0, 1, 2)
    final: tuple = tuple(range(200, 210))
    epochs: float = 1.0


QUICK = Budget(grid=3, trials=3, search=(0,), final=(200, 201), epochs=0.05)


def choose(judged, rows):
    """Chooses a strength.

    On clean tasks most strengths do equally well, so accuracies that differ by less
    than their error cannot decide. The loss can.

    Args:
        judged: Dict from strengths to pairs of accuracy and loss.
        rows: int, the number of rows behind each accuracy.

    Returns:
        The strength with the smallest loss among those whose accuracy is within one
        standard error of the highest.
    """
    highest = max(accuracy for accuracy, _ in judged.values())
    enough = highest - (highest * (1 - highest) / rows) ** 0.5
    good = {s: loss for s, (accuracy, loss) in judged.items() if accuracy >= enough}
    return min(good, key=good.get)


def trials(start, judge, rows, grid, count):
    """Tries strengths: first a grid, then near the best.

    The grid holds powers of 4 around `start`, wide enough to reach from no effect to
    collapse. While the best strength is at an edge, the next one is beyond that edge.
    Otherwise it is between the best and its farther neighbor.

    Args:
        start: float, the middle of the grid, or 0 for a method without a strength.
        judge: Function from a strength to a pair of accuracy and loss.
        rows: int, the number of rows behind each accuracy.
        grid: int, the number of strengths on the grid.
        count: int, the number of strengths in all.

    Returns:
        Pair of the chosen strength and a dict from each strength to its judgement.
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
            # The sides take turns, as the best may be close to the collapse.
            below, above = strengths[place - 1], strengths[place + 1]
            gaps = {below: round(best / below, 6), above: round(above / best, 6)}
            neighbor = max(gaps, key=lambda s: (gaps[s], -judged[s][1]))
            strength = (best * neighbor) ** 0.5
        judged[strength] = judge(strength)
    return choose(judged, rows), judged
