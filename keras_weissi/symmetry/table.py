"""A table of the kernels of a model with their norms."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

from keras_weissi._utils.tables import KernelTable
from keras_weissi._utils.user_warnings import listed_names
from keras_weissi.model.kernels import host_norm, kernels_of_built
from keras_weissi.model.selection import path_of
from keras_weissi.model.walk import unbuilt_layers
from keras_weissi.regularizers import WEISSI
from keras_weissi.symmetry.scale_report import ScaleReport, advice


@dataclasses.dataclass(frozen=True)
class NormRow:
    """One row of `norm_table`.

    Attributes:
        name: str, the kernel's name.
        shape: tuple of ints.
        norm: float, the Frobenius norm. NaN for a quantized kernel.
        share: float, the kernel's share of the log norm product. The shares add up to
            1. NaN if they are not all between 0 and 1 (norms above and below 1, or 0),
            and for kernels that are not in the product.
        regularizer: what acts on the kernel, or `None`.
        scale: str, `"shifts"` if scale can be moved to or from the kernel without
            changing the model; otherwise what it is pinned by, normalized by or
            hidden in.
    """

    name: str
    shape: tuple[int, ...]
    norm: float
    share: float
    regularizer: keras.regularizers.Regularizer | None
    scale: str


def norm_table(
    model: keras.Model, print_fn: Callable[[str], object] | None = print
) -> KernelTable[NormRow]:
    """Prints the kernels of a model with their norms, as a table, and returns it.

    Args:
        model: A built `keras.Model`.
        print_fn: Function that takes the table as a string, as in `model.summary`.
            `None` prints nothing. Defaults to `print`.

    Returns:
        `KernelTable` of `NormRow`.

    Raises:
        ValueError: If the model is not built.

    Examples:
        >>> import keras
        >>> from keras_weissi import norm_table
        >>> model = keras.Sequential([
        ...     keras.Input((2,)),
        ...     keras.layers.Dense(2, kernel_initializer="ones", name="first"),
        ...     keras.layers.BatchNormalization(name="bn"),
        ...     keras.layers.Dense(8, kernel_initializer="ones", name="second"),
        ... ])
        >>> for row in norm_table(model, print_fn=None):
        ...     print(row.name, row.norm, round(row.share, 2), row.scale)
        first 2.0 0.33 normalized by bn
        second 4.0 0.67 shifts
    """
    found = [k for k in kernels_of_built(model) if k.counts() or k.kind != "embedding"]
    scales = ScaleReport(model)
    norms = [host_norm(kernel.variable) for kernel in found]
    is_in = np.array([kernel.counts() for kernel in found], bool)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(norms)
        total = float(np.sum(logs[is_in]))
        shares = np.where(is_in, logs / total, np.nan)
    if not np.all((shares[is_in] >= 0) & (shares[is_in] <= 1)):
        shares = np.full(len(norms), np.nan)
    rows = [
        NormRow(
            kernel.name,
            tuple(kernel.variable.shape),
            norm,
            float(share),
            kernel.regularizer,
            str(scales.status_of(kernel)),
        )
        for kernel, norm, share in zip(found, norms, shares, strict=True)
    ]
    by_id = {id(k.variable): norm for k, norm in zip(found, norms, strict=True)}
    product = f"log norm product: {f'{total:.4f}' if any(is_in) else 'no kernels'}"
    ours = np.array([isinstance(kernel.regularizer, WEISSI) for kernel in found], bool)
    if 0 < sum(ours) < sum(is_in):
        with np.errstate(invalid="ignore"):
            part = float(np.sum(logs[ours]))
        product += (
            f" ({part:.4f} for the {sum(ours)} of {sum(is_in)} kernels with WEISSI, "
            "which NormLogger watches)"
        )
    if unnamed := [k.name for k in found if k.kind == "matrix" and not k.counts()]:
        product += f"; without those not named kernel: {listed_names(unnamed)}"
    unbuilt = [path_of(layers) for layers in unbuilt_layers(model)]
    lines = [
        scales.sentence(by_id),
        _advice(found, rows) if any(ours) else "",
        f"not built yet: {listed_names(unbuilt)}" if unbuilt else "",
        product,
    ]
    caption = "\n".join(filter(None, lines))
    table = KernelTable(rows, "name shape norm share regularizer scale", caption)
    if print_fn is not None:
        print_fn(str(table))
    return table


def _advice(found, rows):
    """Returns the `advice` on a model where nearly all is normalized."""
    penalized, normalized = [], []
    for kernel, row in zip(found, rows, strict=True):
        if isinstance(kernel.regularizer, WEISSI):
            penalized.append(kernel)
        elif row.scale.startswith("normalized"):
            normalized.append(kernel)
    return advice(penalized, normalized)
