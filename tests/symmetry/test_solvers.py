import numpy as np
import pytest
import scipy.linalg
import scipy.optimize

from keras_weissi.symmetry import solvers


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
    return count, sources, targets, rng


def excess(count, sources, targets, weights):
    """What flows into each node but the ground, less what flows out of it."""
    flow = np.zeros(count)
    np.add.at(flow, targets, weights)
    np.add.at(flow, sources, -weights)
    return flow[1:]


def test_on_a_chain_all_norms_become_the_geometric_mean():
    norms = np.array([1e-8, 3.0, 1e5, 7.0])
    sources, targets = np.array([0, 1, 2, 3]), np.array([1, 2, 3, 0])
    a, held = solvers.balanced_log_scales(4, sources, targets, np.log(norms))
    balanced = norms * np.exp(a[targets] - a[sources])
    np.testing.assert_allclose(balanced, np.prod(norms) ** 0.25, rtol=1e-13)
    assert held.tolist() == [True, False, False, False]


@pytest.mark.parametrize("seed", range(40))
def test_balanced_scales_are_the_minimum(seed):
    count, sources, targets, rng = random_graph(seed)
    logs = rng.normal(0, [0.5, 10.0][seed % 2], len(sources))
    a, _ = solvers.balanced_log_scales(count, sources, targets, logs)
    squares = np.exp(2 * (a[targets] - a[sources] + logs))
    at_node = np.bincount(targets, squares, count) + np.bincount(
        sources, squares, count
    )
    off = excess(count, sources, targets, squares) / at_node[1:]
    assert np.abs(off).max() < 1e-12
    if seed % 2:
        return  # the range is too wide for a general method

    def total(x):
        x = np.concatenate([[0.0], x])
        return np.sum(np.exp(2 * (x[targets] - x[sources] + logs)))

    reference = scipy.optimize.minimize(total, np.zeros(count - 1), method="BFGS")
    assert total(a[1:]) <= reference.fun * (1 + 1e-12)
    np.testing.assert_allclose(a[1:], reference.x, atol=1e-3)


def test_a_kernel_of_norm_zero_holds_what_it_cuts_off():
    # 0 -> 1 -> 2 -> 0, with nothing between 1 and 2; and 0 -> 3 -> 0.
    sources, targets = np.array([0, 1, 2, 0, 3]), np.array([1, 2, 0, 3, 0])
    logs = np.log([2.0, 1.0, 8.0, 1.0, 4.0])
    logs[1] = -np.inf
    a, held = solvers.balanced_log_scales(4, sources, targets, logs)
    np.testing.assert_allclose(a, [0, 0, 0, np.log(2.0)], atol=1e-14)
    assert held.tolist() == [True, True, True, False]


@pytest.mark.parametrize("seed", range(40))
def test_the_flow_is_the_nearest_to_one(seed):
    count, sources, targets, _ = random_graph(seed)
    everything = np.full(len(sources), True)
    flow = solvers.nearest_flow(count, sources, targets, everything)
    assert flow.min() > 0
    assert np.abs(excess(count, sources, targets, flow)).max() < 1e-9
    incidence = np.array(
        [excess(count, sources, targets, row) for row in np.eye(len(sources))]
    ).T
    flows = scipy.linalg.null_space(incidence)
    nearest = flows @ flows.sum(axis=0)  # the projection of (1, 1, ...)
    if nearest.min() > 1e-6:
        np.testing.assert_allclose(flow, nearest, atol=1e-9)
    else:
        # c * log(c) - c is least where log(c) is a difference of potentials.
        np.testing.assert_allclose(flows.T @ np.log(flow), 0, atol=1e-8)


def test_both_kinds_of_nearest_flow_are_among_the_tested():
    nearest = []
    for seed in range(40):
        count, sources, targets, _ = random_graph(seed)
        incidence = np.array(
            [excess(count, sources, targets, row) for row in np.eye(len(sources))]
        ).T
        flows = scipy.linalg.null_space(incidence)
        nearest.append((flows @ flows.sum(axis=0)).min())
    assert min(nearest) < 0 < 1e-6 < max(nearest)


def test_the_flow_of_a_chain_is_one_to_the_last_bit():
    sources, targets = np.array([0, 1, 2, 2]), np.array([1, 2, 0, 2])
    flow = solvers.nearest_flow(3, sources, targets, np.full(4, True))
    assert flow.tolist() == [1.0, 1.0, 1.0, 1.0]


def test_edges_on_no_chosen_cycle_get_nothing():
    # 0 -> 1 -> 2 -> 0 without its last edge, and 0 -> 2 without 2 -> 0.
    sources, targets = np.array([0, 1, 2, 0]), np.array([1, 2, 0, 0])
    chosen = np.array([True, True, False, True])
    flow = solvers.nearest_flow(3, sources, targets, chosen)
    assert flow.tolist() == [0.0, 0.0, 0.0, 1.0]


def test_components_are_numbered_in_order_of_their_first_node():
    assert solvers.components(4, [(3, 1)], "weak").tolist() == [0, 1, 2, 1]
    assert solvers.components(4, [], "weak").tolist() == [0, 1, 2, 3]
    strong = solvers.components(4, [(1, 2), (2, 1), (2, 3)], "strong")
    assert strong.tolist() == [0, 1, 1, 2]


def test_loops_and_edges_between_pinned_groups_count_for_nothing():
    # However large: they do not change with the scales.
    for extra in ((1, 1), (0, 0)):
        sources, targets = np.array([0, 1, extra[0]]), np.array([1, 0, extra[1]])
        logs = np.array([0.0, 2.0, 1e3])
        a, _ = solvers.balanced_log_scales(2, sources, targets, logs)
        np.testing.assert_allclose(a, [0.0, 1.0], atol=1e-14)


def test_a_part_that_is_cut_off_counts_for_nothing():
    # 0 -> 3 -> 0, and 1 <-> 2 behind a kernel of norm 0.
    sources, targets = np.array([0, 3, 0, 1, 2, 1]), np.array([3, 0, 1, 2, 1, 0])
    logs = np.array([0.0, 2.0, -np.inf, 1e3, 1e3, 0.0])
    a, _ = solvers.balanced_log_scales(4, sources, targets, logs)
    np.testing.assert_allclose(a, [0, 0, 0, 1.0], atol=1e-14)


def test_norms_beyond_the_range_of_their_squares():
    sources, targets = np.array([0, 1, 0, 0]), np.array([1, 0, 1, 1])
    logs = np.array([400.0, 402.0, 399.0, 401.0])
    a, _ = solvers.balanced_log_scales(2, sources, targets, logs)
    into = np.exp(2 * (a[1] + logs[[0, 2, 3]] - 400)).sum()
    assert into == pytest.approx(np.exp(2 * (logs[1] - a[1] - 400)))


def test_a_solution_that_is_not_found_is_said():
    count, sources, targets, rng = random_graph(3)
    failures = 0
    for _ in range(20):
        logs = rng.normal(0, 300.0, len(sources))
        try:
            a, _ = solvers.balanced_log_scales(count, sources, targets, logs)
        except RuntimeError as error:
            assert "Balancing did not converge: norms too far apart" in str(error)
            failures += 1
        else:
            assert np.isfinite(a).all()
    assert failures
