from fractions import Fraction

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize

from keras_weissi.symmetry import elimination, solvers


def changes_of(count, sources, targets):
    """The factors of the edges of a graph, by the scales of all nodes but the first."""
    edges = np.arange(len(sources))
    changes = np.zeros((len(sources), count))
    changes[edges, targets] += 1
    changes[edges, sources] -= 1
    return changes[:, 1:]


def random_graph(seed):
    """A graph in which every node is on a way from the ground to the ground."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 10))
    edges = []
    for node in range(1, count):
        edges.append((rng.integers(0, node), node))
        edges.append((node, rng.integers(node + 1, count + 1) % count))
    for _ in range(rng.integers(0, 6)):
        a, b = sorted(rng.integers(0, count, 2))
        edges.append((a, b) if a != b else (a, 0))
    sources, targets = np.array(edges).T
    return changes_of(count, sources, targets), rng


def random_changes(seed, is_balanced=True):
    """Whole numbers and halves from -2 to 2, as products, powers and roots give.

    If they are to be balanced, there are positive coefficients for all rows.
    """
    rng = np.random.default_rng(seed)
    kernels, scales = rng.integers(2, 9), rng.integers(1, 5)
    changes = rng.integers(-4, 5, (kernels, scales)) / 2
    changes *= rng.random(changes.shape) < 0.7
    if is_balanced:
        for column in changes.T:
            column[rng.integers(kernels)] = 1.0
        total = rng.choice([1, 1, 4], kernels) @ changes
        while total.any():
            row = np.clip(-total, -2, 2)
            changes, total = np.vstack([changes, row]), total + row
    return changes, rng


def test_on_a_chain_all_norms_become_the_geometric_mean():
    norms = np.array([1e-8, 3.0, 1e5, 7.0])
    changes = changes_of(4, np.array([0, 1, 2, 3]), np.array([1, 2, 3, 0]))
    z = solvers.balanced_log_scales(changes, np.log(norms))
    balanced = norms * np.exp(changes @ z)
    np.testing.assert_allclose(balanced, np.prod(norms) ** 0.25, rtol=1e-13)


def check_is_the_minimum(changes, logs, z):
    """Checks each scale relative to the kernels that it changes."""
    squares = np.exp(2 * (changes @ z + logs))
    off = (changes.T @ squares) / (np.abs(changes).T @ squares)
    assert np.abs(off).max() < 1e-12


@pytest.mark.parametrize("make", [random_graph, random_changes])
@pytest.mark.parametrize("seed", range(40))
def test_balanced_scales_are_the_minimum(make, seed):
    changes, rng = make(seed)
    is_narrow = seed % 2 == 0
    spread = 0.5 if is_narrow else (10.0 if make is random_graph else 3.0)
    logs = rng.normal(0, spread, len(changes))
    z = solvers.balanced_log_scales(changes, logs)
    check_is_the_minimum(changes, logs, z)
    if not is_narrow:
        return  # the range is too wide for a general method

    def total(x):
        return np.sum(np.exp(2 * (changes @ x + logs)))

    reference = scipy.optimize.minimize(total, np.zeros(len(z)), method="BFGS")
    assert total(z) <= reference.fun * (1 + 1e-12)
    # The scales themselves are not unique where the changes depend on each other.
    np.testing.assert_allclose(changes @ z, changes @ reference.x, atol=1e-3)


@pytest.mark.parametrize("make", [random_graph, random_changes])
def test_a_second_balancing_changes_nothing(make):
    for seed in range(10):
        changes, rng = make(seed)
        logs = rng.normal(0, 1.0, len(changes))
        logs += changes @ solvers.balanced_log_scales(changes, logs)
        again = changes @ solvers.balanced_log_scales(changes, logs)
        np.testing.assert_allclose(again, 0, atol=1e-12)


def test_a_kernel_of_norm_zero_holds_what_it_cuts_off():
    # 0 -> 1 -> 2 -> 0, with nothing between 1 and 2; and 0 -> 3 -> 0.
    changes = changes_of(4, np.array([0, 1, 2, 0, 3]), np.array([1, 2, 0, 3, 0]))
    logs = np.log([2.0, 1.0, 8.0, 1.0, 4.0])
    logs[1] = -np.inf
    z = solvers.balanced_log_scales(changes, logs)
    np.testing.assert_allclose(z, [0, 0, np.log(2.0)], atol=1e-14)


@pytest.mark.parametrize("seed", range(40))
def test_directions_that_shrink_some_and_let_none_grow_are_held(seed):
    changes, rng = random_changes(seed, is_balanced=False)
    logs = rng.normal(0, 0.5, len(changes))
    logs[rng.random(len(changes)) < 0.2] = -np.inf
    z = solvers.balanced_log_scales(changes, logs)
    chosen = np.isfinite(logs) & changes.any(axis=1)
    is_supported = supported_by_search(changes, chosen)
    held = chosen & ~is_supported
    np.testing.assert_allclose((changes @ z)[held], 0, atol=1e-12)
    # The others have the least sum of squares that is possible then.
    basis = scipy.linalg.null_space(changes[held]) if held.any() else np.eye(len(z))
    rows = (changes @ basis)[is_supported]
    squares = np.exp(2 * (changes @ z + logs))[is_supported]
    np.testing.assert_allclose(rows.T @ squares, 0, atol=1e-10 * (1 + squares.sum()))


def supported_by_search(changes, chosen):
    """Tells for each row by itself if a positive combination of rows is 0 with it."""
    found = np.zeros(len(changes), bool)
    for i in np.flatnonzero(chosen):
        result = scipy.optimize.linprog(
            np.zeros(chosen.sum()),
            A_eq=changes[chosen].T,
            b_eq=np.zeros(changes.shape[1]),
            bounds=[(float(j == i), None) for j in np.flatnonzero(chosen)],
        )
        assert result.status in (0, 2)  # solved, or not possible
        found[i] = result.status == 0
    return found


@pytest.mark.parametrize("seed", range(40))
def test_what_can_have_a_positive_coefficient(seed):
    changes, rng = random_changes(seed, is_balanced=False)
    changes[rng.random(len(changes)) < 0.1] = 0
    chosen = rng.random(len(changes)) < 0.8
    expected = supported_by_search(changes, chosen)
    np.testing.assert_array_equal(solvers.supported(changes, chosen), expected)


@pytest.mark.parametrize("seed", range(40))
def test_on_a_graph_that_is_what_lies_on_cycles(seed):
    changes, rng = random_graph(seed)
    chosen = rng.random(len(changes)) < 0.8
    is_supported = solvers.supported(changes, chosen)
    expected = supported_by_search(changes, chosen)
    np.testing.assert_array_equal(is_supported, expected)
    # The general way finds the same: with a scale of two, it is no graph.
    doubled = solvers.supported(2 * changes, chosen)
    np.testing.assert_array_equal(is_supported, doubled)


def test_both_answers_are_among_the_tested():
    shares = []
    for seed in range(40):
        changes, _ = random_changes(seed, is_balanced=False)
        everything = np.full(len(changes), True)
        shares.append(supported_by_search(changes, everything).mean())
    assert min(shares) == 0 and max(shares) == 1
    assert any(0 < share < 1 for share in shares)


def nearest_of(changes):
    """The projection of (1, 1, ...) on the coefficients that are possible."""
    possible = scipy.linalg.null_space(changes.T)
    return possible, possible @ possible.sum(axis=0)


@pytest.mark.parametrize("make", [random_graph, random_changes])
@pytest.mark.parametrize("seed", range(40))
def test_coefficients_are_the_nearest_to_one(make, seed):
    changes, _ = make(seed)
    everything = np.full(len(changes), True)
    coefficients = solvers.nearest_coefficients(changes, everything)
    assert coefficients.min() > 0
    assert np.abs(changes.T @ coefficients).max() < 1e-9
    possible, nearest = nearest_of(changes)
    if nearest.min() > 1e-6:
        np.testing.assert_allclose(coefficients, nearest, atol=1e-9)
    else:
        # c * log(c) - c is least where log(c) is a difference of potentials.
        logs = np.log(coefficients)
        np.testing.assert_allclose(possible.T @ logs, 0, atol=1e-8)


@pytest.mark.parametrize("seed", range(20))
def test_coefficients_of_the_kernels_that_may_have_one(seed):
    changes, rng = random_changes(seed, is_balanced=False)
    chosen = rng.random(len(changes)) < 0.8
    coefficients = solvers.nearest_coefficients(changes, chosen)
    is_positive = supported_by_search(changes, chosen)
    np.testing.assert_array_equal(coefficients > 0, is_positive)
    np.testing.assert_array_equal(coefficients[~is_positive], 0)
    np.testing.assert_allclose(changes.T @ coefficients, 0, atol=1e-9)
    possible, nearest = nearest_of(changes[is_positive])
    if nearest.size and nearest.min() > 1e-6:
        np.testing.assert_allclose(coefficients[is_positive], nearest, atol=1e-9)
    elif nearest.size:
        logs = np.log(coefficients[is_positive])
        np.testing.assert_allclose(possible.T @ logs, 0, atol=1e-8)


@pytest.mark.parametrize("make", [random_graph, random_changes])
def test_both_kinds_of_nearest_coefficients_are_among_the_tested(make):
    nearest = [nearest_of(make(seed)[0])[1].min() for seed in range(40)]
    assert min(nearest) < 0 < 1e-6 < max(nearest)


def test_the_coefficients_of_a_chain_are_one_to_the_last_bit():
    changes = changes_of(3, np.array([0, 1, 2, 2]), np.array([1, 2, 0, 2]))
    coefficients = solvers.nearest_coefficients(changes, np.full(4, True))
    assert coefficients.tolist() == [1.0, 1.0, 1.0, 1.0]


def test_edges_on_no_chosen_cycle_get_nothing():
    # 0 -> 1 -> 2 -> 0 without its last edge, and 0 -> 2 without 2 -> 0.
    changes = changes_of(3, np.array([0, 1, 2, 0]), np.array([1, 2, 0, 0]))
    chosen = np.array([True, True, False, True])
    coefficients = solvers.nearest_coefficients(changes, chosen)
    assert coefficients.tolist() == [0.0, 0.0, 0.0, 1.0]


def test_loops_and_edges_between_pinned_groups_count_for_nothing():
    # However large: they do not change with the scales.
    for extra in ((1, 1), (0, 0)):
        ends = np.array([0, 1, extra[0]]), np.array([1, 0, extra[1]])
        logs = np.array([0.0, 2.0, 1e3])
        z = solvers.balanced_log_scales(changes_of(2, *ends), logs)
        np.testing.assert_allclose(z, [1.0], atol=1e-14)


def test_a_part_that_is_cut_off_is_balanced_by_itself():
    # 0 -> 3 -> 0, and 1 <-> 2 behind a kernel of norm 0.
    sources, targets = np.array([0, 3, 0, 1, 2, 1]), np.array([3, 0, 1, 2, 1, 0])
    for small, large in ((0.0, 0.0), (0.0, 80.0), (-80.0, 80.0)):
        logs = np.array([small, small + 2, -np.inf, large, large + 4, 0.0])
        z = solvers.balanced_log_scales(changes_of(4, sources, targets), logs)
        np.testing.assert_allclose(z, [0, 2.0, 1.0], atol=1e-14)


def test_norms_beyond_the_range_of_their_squares():
    changes = changes_of(2, np.array([0, 1, 0, 0]), np.array([1, 0, 1, 1]))
    logs = np.array([400.0, 402.0, 399.0, 401.0])
    (z,) = solvers.balanced_log_scales(changes, logs)
    into = np.exp(2 * (z + logs[[0, 2, 3]] - 400)).sum()
    assert into == pytest.approx(np.exp(2 * (logs[1] - z - 400)))


def test_a_solution_that_is_not_found_is_said():
    changes, rng = random_graph(3)
    failures = 0
    for _ in range(20):
        logs = rng.normal(0, 300.0, len(changes))
        try:
            z = solvers.balanced_log_scales(changes, logs)
        except RuntimeError as error:
            assert "Balancing did not converge: norms too far apart" in str(error)
            failures += 1
        else:
            assert np.isfinite(z).all()
    assert failures


def test_nothing_is_found_where_nothing_is_free():
    for kernels in (0, 3):
        changes, everything = np.zeros((kernels, 0)), np.full(kernels, True)
        assert solvers.balanced_log_scales(changes, np.ones(kernels)).shape == (0,)
        ones = [1.0] * kernels
        assert solvers.nearest_coefficients(changes, everything).tolist() == ones
        assert solvers.supported(changes, everything).tolist() == [True] * kernels


@pytest.mark.parametrize("seed", range(40))
def test_elimination_finds_all_solutions(seed):
    changes, rng = random_changes(seed, is_balanced=False)
    rows = changes.T  # fewer equations than unknowns, and more if they repeat
    rows = np.vstack([rows, rows[: seed % 3], rows[:1] - rows[-1:]])
    names = rng.permutation(rows.shape[1]).tolist()
    equations = [
        {name: Fraction(x) for name, x in zip(names, row, strict=True) if x}
        for row in rows.tolist()
    ]
    solved = elimination.solve(equations)
    free = [name for name in names if name not in solved]
    solutions = np.zeros((len(names), len(free)))
    for i, name in enumerate(names):
        for x, c in solved.get(name, {name: Fraction(1)}).items():
            assert c and isinstance(c, (int, Fraction))
            solutions[i, free.index(x)] = c  # which says that x is free
    expected = scipy.linalg.null_space(rows)
    assert solutions.shape == expected.shape
    np.testing.assert_allclose(rows @ solutions, 0, atol=1e-12)
    both = np.hstack([solutions, expected])
    ranks = [np.linalg.matrix_rank(x, tol=1e-9) for x in (solutions, both)]
    assert ranks == [len(free)] * 2


def test_elimination_is_exact():
    third = {"a": Fraction(1), "b": Fraction(-1, 3)}
    others = (
        {"b": Fraction(1), "c": Fraction(-3)},
        {"a": Fraction(1), "c": Fraction(-1)},
    )
    assert elimination.solve([third, *others]) == {"a": {"c": 1}, "b": {"c": 3}}
    # An equation more that says something else, however little, leaves only 0.
    other = {"a": Fraction(1), "c": Fraction(-1, 1) + Fraction(1, 10**30)}
    solved = elimination.solve([third, others[0], other])
    assert solved == {"a": {}, "b": {}, "c": {}}


def test_elimination_of_whole_numbers_is_exact():
    solved = elimination.solve([{"a": 3, "b": 7}, {"b": 3, "c": 49}])
    assert solved == {"b": {"a": Fraction(-3, 7)}, "c": {"a": Fraction(9, 343)}}


def test_substituting_leaves_no_zeros():
    solved = {"a": {"b": Fraction(1, 2)}}
    assert elimination.substituted({"a": 2, "b": -1, "c": 3}, solved) == {"c": 3}
