"""Shifts scale between the kernels of a model without changing what it computes."""

import dataclasses
import math

import keras
import ml_dtypes
import numpy as np

from keras_weissi._utils.tables import KernelTable
from keras_weissi._utils.validation import check_bool
from keras_weissi.model.kernels import host_norm, kernels_and_gammas, named_weights
from keras_weissi.regularizers import WEISSI
from keras_weissi.symmetry.apply_factors import multiply_all
from keras_weissi.symmetry.factors import TOLERANCE, factors_by_edge, group_scales
from keras_weissi.symmetry.find_groups import scale_groups
from keras_weissi.symmetry.optimizer_state import optimizer_of
from keras_weissi.symmetry.solvers import balanced_log_scales, nearest_integers


@dataclasses.dataclass(frozen=True)
class RescalingRow:
    """One row of the report of `shift_scales` and `balance_scales`.

    Attributes:
        name: str, the name of the kernel, or of the normalization with the gamma.
        shape: tuple of ints.
        before: float, the Frobenius norm before the call.
        after: float, the Frobenius norm after it.
        factor: float, what it was multiplied by.
        note: str, what else to know, such as why it was left as it was.
    """

    name: str
    shape: tuple[int, ...]
    before: float
    after: float
    factor: float
    note: str


def shift_scales(
    model: keras.Model,
    factors: dict[str, float],
    optimizer: bool | keras.optimizers.Optimizer = True,
) -> KernelTable[RescalingRow]:
    """Multiplies kernels by factors that do not change what the model computes.

    `kernel_l *= c_l` and `bias_l *= c_1 * c_2 * ... * c_l`, the product of all factors
    on a path from the input of the model. The products must agree wherever two paths
    meet, and must be 1 where something pins the scale: at an output of the model,
    before a normalization, or at an activation that is not homogeneous, such as
    softmax.

    The tensors between the layers are scaled as well. In half precision, large factors
    can make them overflow.

    Args:
        model: A built `keras.Model` that `scale_groups` takes.
        factors: Dict from the names of layers (or of kernels, as `scale_groups` prints
            them) to floats above 0. Others default to 1. The name of a normalization
            means its gamma. A layer's two kernels get the square root of its factor.
        optimizer: Whether to rescale the state of the optimizer that the model is
            compiled with, see `balance_scales`; or the optimizer. Defaults to `True`.

    Returns:
        `KernelTable` of `RescalingRow`. It prints as a table.

    Raises:
        ValueError: If a product is not 1 where it has to be (to within 1e-12), a name
            is unknown, or an argument is invalid. No weight is changed then.

    Examples:
        >>> import keras
        >>> from keras_weissi import shift_scales
        >>> model = keras.Sequential([
        ...     keras.Input((4,)),
        ...     keras.layers.Dense(3, "relu", name="hidden"),
        ...     keras.layers.Dense(2, name="logits"),
        ... ])
        >>> report = shift_scales(model, {"hidden": 8.0, "logits": 0.125})
        >>> [(row.name, row.factor) for row in report]
        [('hidden', 8.0), ('logits', 0.125)]

    Reference:

    - [Liu, Cui & Chan, 2020](https://arxiv.org/abs/2008.02965), section 3. There, a
      bias is multiplied by the factor of its own layer only, which is not exact.
    """
    groups = scale_groups(model)
    edges = {id(edge.kernel.variable): edge.kernel for edge in groups.edges}
    known = {id(k.variable): k for k in kernels_and_gammas(model)} | edges
    candidates = [known[key] for key in named_weights(model) if key in known]
    by_edge = factors_by_edge(factors, groups, candidates)
    scales = group_scales(by_edge, groups)
    return _apply(model, groups, by_edge, scales, {}, optimizer)


def balance_scales(
    model: keras.Model,
    optimizer: bool | keras.optimizers.Optimizer = True,
    *,
    exact: bool = False,
) -> KernelTable[RescalingRow]:
    """Shifts scale between the layers until the sum of squared norms is minimal.

    Minimizes `sum_l norm(W_l) ** 2` over all shifts that do not change what the model
    computes. Unless a kernel has norm 0, there is exactly one minimum. In a chain of
    `L` layers, every norm is then `prod_l norm(W_l) ** (1 / L)`. Where several kernels
    lead into or out of a tensor, their squared norms have the same sum on both sides.
    The gamma of a normalization counts as a kernel. Frozen layers stay as they are.

    A second call changes nothing: differences of a few rounding errors are ignored.

    Args:
        model: A built `keras.Model` that `scale_groups` takes.
        optimizer: bool or `keras.optimizers.Optimizer`. Whether to rescale the state of
            the optimizer that the model is compiled with, or of the one given. If a
            weight is multiplied by `c`, its gradients are divided by `c` from now on,
            and so is its momentum; an average of squared gradients is divided by
            `c ** 2`. Defaults to `True`.
        exact: bool. Whether to round every factor to a power of 2, so that the outputs
            stay the same bit for bit. Norms that would be equal are then within a
            factor of `sqrt(2)` of their mean. Defaults to `False`.

    Returns:
        `KernelTable` of `RescalingRow`, one per kernel. It prints as a table.

    Raises:
        ValueError: If `scale_groups` does not take the model, a norm is not finite, or
            it is not known how the state of the optimizer scales.
        RuntimeError: If norms are so far apart that the scales are not found. In either
            case, no weight is changed.

    Examples:
        >>> import keras
        >>> from keras_weissi import balance_scales
        >>> ones = {"kernel_initializer": "ones"}
        >>> model = keras.Sequential([
        ...     keras.Input((2,)),
        ...     keras.layers.Dense(2, "relu", **ones),
        ...     keras.layers.Dense(32, **ones),
        ... ])
        >>> [(row.before, round(row.after, 3)) for row in balance_scales(model)]
        [(2.0, 4.0), (8.0, 4.0)]

    Reference:

    - [Liu, Cui & Chan, 2020](https://arxiv.org/abs/2008.02965), section 3. The
      formula there has a sum where this one has the product.
    """
    check_bool(exact, "exact")
    return balance(model, scale_groups(model), optimizer, exact)


def balance(model, groups, optimizer=True, exact=False):
    """Balances a model whose groups are known already."""
    norms = [host_norm(edge.kernel.variable) for edge in groups.edges]
    for edge, norm in zip(groups.edges, norms, strict=True):
        if not math.isfinite(norm):
            raise ValueError(
                "Invalid value for argument `model`. Expected kernels of finite norm. "
                f"Received: model={model.name!r}, {edge.kernel.name!r} of norm {norm}"
            )
    with np.errstate(divide="ignore"):
        log_norms = np.log(np.array(norms))
    changes = groups.changes
    z = balanced_log_scales(changes, log_norms)
    dtypes = {edge.kernel.variable.dtype for edge in groups.edges}
    precision = max((float(ml_dtypes.finfo(d).eps) for d in dtypes), default=0.0)
    if exact:
        z = np.log(2.0) * nearest_integers(
            changes, groups.directions, log_norms / np.log(2.0), z / np.log(2.0)
        )
    elif np.abs(changes @ z).max(initial=0.0) <= max(8 * precision, TOLERANCE):
        z = 0 * z
    by_edge = dict(enumerate(_factors(changes @ z, exact)))
    scales = _factors(groups.directions @ z, exact)
    notes = {}
    for i, edge in enumerate(groups.edges):
        if norms[i] == 0.0:
            notes[i] = "its norm is 0"
        elif not changes[i].any():
            is_pinned = not groups.directions[edge.source].any()
            notes[i] = "between pinned groups" if is_pinned else "in a single group"
        elif not (changes[i] @ z) and 0.0 in norms:
            notes[i] = "a kernel of norm 0 stands in the way"
    return _apply(model, groups, by_edge, scales, notes, optimizer)


def _factors(logs, exact):
    # Factors out of range are refused later, unless there is nothing to multiply.
    with np.errstate(over="ignore", under="ignore"):
        if exact:
            return np.exp2(np.round(logs / np.log(2.0))).tolist()
        return np.exp(logs).tolist()


def _apply(model, groups, by_edge, scales, notes, optimizer):
    """Rescales the weights and returns the report.

    `by_edge` and `notes` are dicts from the numbers of edges to the factors of their
    kernels and to what the report says of them; `scales` has the factor of each group.
    """
    factors = []
    for i, edge in enumerate(groups.edges):
        dtype = edge.kernel.layer.compute_dtype
        factors.append((edge.kernel.variable, by_edge.get(i, 1.0), dtype))
    named = named_weights(model)
    for group, scale in zip(groups.groups, scales, strict=True):
        for offset in group.offsets:
            dtype = named[id(offset)].layer.compute_dtype
            factors.append((offset, scale, dtype))
    factor_of = {id(variable): factor for variable, factor, _ in factors}
    index_of = {id(edge.kernel.variable): i for i, edge in enumerate(groups.edges)}
    listed = [
        kernel
        for kernel in named.values()
        if kernel.counts() or id(kernel.variable) in index_of
    ]
    before = [host_norm(kernel.variable) for kernel in listed]
    multiply_all(factors, optimizer_of(model, optimizer))
    rows = []
    for kernel, norm in zip(listed, before, strict=True):
        index = index_of.get(id(kernel.variable))
        factor = factor_of.get(id(kernel.variable), 1.0)
        is_gamma = index is not None and groups.edges[index].is_gamma
        remarks = ["gamma"] if is_gamma else []
        if index in notes:
            remarks.append(notes[index])
        elif index is None and id(kernel.variable) in factor_of:
            remarks.append("scaled by all the factors before it")
        elif index is None:
            remarks.append("no scale can be shifted through its layer")
        after = norm if factor == 1.0 else host_norm(kernel.variable)
        floor = getattr(kernel.regularizer, "min_norm", 0.0)
        if after < floor and isinstance(kernel.regularizer, WEISSI):
            remarks.append(f"below min_norm={floor:g}, where WEISSI is not invariant")
        rows.append(
            RescalingRow(
                kernel.name,
                tuple(kernel.variable.shape),
                norm,
                after,
                factor,
                "; ".join(remarks),
            )
        )
    sums = [sum(getattr(row, x) ** 2 for row in rows) for x in ("before", "after")]
    caption = f"sum of squares: {sums[0]:.4g} before, {sums[1]:.4g} after"
    return KernelTable(rows, "name shape before after factor note", caption)
