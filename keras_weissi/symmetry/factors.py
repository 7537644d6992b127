"""The factors that a user asks for, followed through the graph of a model."""

import collections
import difflib
import math

from keras_weissi._utils.validation import as_number, invalid
from keras_weissi.model.selection import resolve

# How far from 1 a product of factors may be and still count as 1.
TOLERANCE = 1e-12


def factors_by_edge(factors, groups, candidates):
    """Returns a dict from the numbers of edges to the factors asked for.

    Args:
        factors: What the user passes to `shift_scales`.
        groups: `ScaleGroups`.
        candidates: List of `Kernel`, as from `kernels_and_gammas`.
    """
    if not isinstance(factors, dict):
        raise invalid("factors", "a dict from names of layers to floats", factors)
    edge_of = {edge.kernel.name: i for i, edge in enumerate(groups.edges)}
    by_edge: dict[int, float] = {}
    named_by: dict[int, str] = {}
    for name, factor in factors.items():
        number = as_number(factor)
        if number is None or not 0.0 < number < math.inf:
            raise invalid(f"factors[{name!r}]", "a finite float above 0", factor)
        if name in edge_of:
            matches, owners = [edge_of[name]], {name}
        else:
            kernels, _ = resolve(name, candidates, "factors")
            matches = [edge_of[k.name] for k in kernels if k.name in edge_of]
            owners = {id(kernel.layer) for kernel in kernels}
        if not matches or len(owners) > 1:
            near = difflib.get_close_matches(str(name), list(edge_of), n=3, cutoff=0)
            raise ValueError(
                "Invalid value for argument `factors`. Expected the name of one layer "
                "that `scale_groups(model)` lists among its kernels, such as one of "
                f"{near}. Received: {name!r}"
            )
        for i in matches:
            if i in named_by:
                raise ValueError(
                    "Invalid value for argument `factors`. Expected one factor for a "
                    f"kernel. Received: two for {groups.edges[i].kernel.name!r}, by "
                    f"{named_by[i]!r} and {name!r}"
                )
            named_by[i] = name
            by_edge[i] = number ** (1 / len(matches))
    return by_edge


def group_scales(by_edge, groups):
    """Follows the factors from what is pinned to all groups; raises if they disagree.

    Every free group lies on a path from something pinned, or in a relation with groups
    that do.

    Returns:
        List of floats, the factors of the groups.
    """
    leaving = collections.defaultdict(list)
    for i, edge in enumerate(groups.edges):
        leaving[edge.source].append((i, edge.target, by_edge.get(i, 1.0)))
    scales = {group.index: 1.0 for group in groups.pinned}
    paths: dict[int, tuple[int, ...]] = {group.index: () for group in groups.pinned}
    queue = collections.deque(scales)
    while queue:
        here = queue.popleft()
        for i, there, factor in leaving[here]:
            if there not in scales:
                scales[there] = scales[here] * factor
                paths[there] = (*paths[here], i)
                queue.append(there)
                _check_scale(scales[there], groups.edges[i].kernel.name)
        if not queue:
            queue.extend(_follow_relation(groups.relations, scales, paths))
    if len(scales) < len(groups.groups):
        unknown = next(g for g in groups.groups if g.index not in scales)
        raise ValueError(
            "Invalid value for argument `factors`. Expected a model where all scales "
            "follow from those of the kernels. Received: one with the free group "
            f"{unknown.index} ({', '.join(unknown.layers)}) that no kernel leads to"
        )
    for i, edge in enumerate(groups.edges):
        there = scales[edge.source] * by_edge.get(i, 1.0)
        _check_scale(there, edge.kernel.name)
        if abs(there / scales[edge.target] - 1.0) > TOLERANCE:
            raise ValueError(_disagreement(groups, scales, paths, i, there))
    for relation in groups.relations:
        product = math.prod(scales[group] ** p for group, p in relation.powers)
        if abs(product - 1.0) > TOLERANCE:
            path = [i for group, _ in relation.powers for i in paths[group]]
            raise ValueError(
                "Invalid value for argument `factors`. Expected factors whose product "
                f"is 1 in {relation.layer!r}, where scale only moves from one to the "
                f"other. Received: {product:.12g} along {_named(groups, path)}"
            )
    return [scales[group.index] for group in groups.groups]


def _follow_relation(relations, scales, paths):
    """Finds the scale of a group from a relation that leaves it no choice."""
    for relation in relations:
        unknown = [(group, p) for group, p in relation.powers if group not in scales]
        if len(unknown) == 1:
            ((group, power),) = unknown
            known = [(other, p) for other, p in relation.powers if other != group]
            product = math.prod(scales[other] ** p for other, p in known)
            scales[group] = product ** (-1 / power)
            paths[group] = tuple(
                dict.fromkeys(i for other, _ in known for i in paths[other])
            )
            _check_scale(scales[group], relation.layer)
            return [group]
    return []


def _check_scale(scale, where):
    if not 0.0 < scale < math.inf:
        raise ValueError(
            "Invalid value for argument `factors`. Expected products within the "
            f"range of floats. Received: {scale:g} at {where!r}"
        )


def _disagreement(groups, scales, paths, i, there):
    edge = groups.edges[i]
    target = groups.groups[edge.target]
    path = _named(groups, (*paths[edge.source], i))
    message = "Invalid value for argument `factors`. Expected factors whose product"
    if target.pins:
        name, reason = target.pins[0]
        message += f" is 1 at {name!r}, which pins the scale ({reason})"
        return f"{message}. Received: product {there:.12g} along {path}"
    return (
        f"{message}s agree wherever two paths through the model meet. Received: "
        f"{there:.12g} along {path}, but {scales[edge.target]:.12g} along "
        f"{_named(groups, paths[edge.target])}"
    )


def _named(groups, path):
    return " and ".join(repr(groups.edges[i].kernel.name) for i in path)
