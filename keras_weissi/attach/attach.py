"""Puts a regularizer on the kernels of a model that already exists.

Setting `layer.kernel_regularizer` on a built layer does nothing, and setting the
regularizer of the variable alone is forgotten when the model is saved. Here both are
set, together with what the layers around it write into their own configuration, and a
compiled model is told to make its training step anew.
"""

import dataclasses
import functools

import keras

from keras_weissi._utils.keras_private import regularizers_kept_by
from keras_weissi._utils.tables import (
    Columns,
    KernelTable,
    format_norm,
    format_regularizer,
    format_shape,
)
from keras_weissi._utils.user_warnings import listed, warn
from keras_weissi._utils.validation import check_bool
from keras_weissi.attach.saved_config import (
    check_attention,
    keeps_layers,
    keeps_slots,
    set_all,
    slots_of,
)
from keras_weissi.model.eligibility import why_left_out
from keras_weissi.model.graph import Graph
from keras_weissi.model.kernels import gammas, host_norm, kernels_of_built
from keras_weissi.model.selection import (
    Layers,
    Regularizers,
    names_in,
    regularizers_by_kernel,
    select_kernels,
    validate_selection,
)
from keras_weissi.model.walk import layers_of
from keras_weissi.regularizers import WEISSI

_COLUMNS: Columns = {
    "name": str,
    "shape": format_shape,
    "norm": format_norm,
    "regularizer": format_regularizer,
    "note": str,
}


@dataclasses.dataclass(frozen=True)
class Attachment:
    """One row of the report: what became of a kernel.

    Attributes:
        name: str, the kernel's name.
        shape: tuple of ints.
        norm: float, the Frobenius norm.
        regularizer: what acts on the kernel now, or `None`.
        changed: bool, whether this call put it there, or took one off.
        note: str, why the kernel was left as it was, or what else to know.
    """

    name: str
    shape: tuple[int, ...]
    norm: float
    regularizer: keras.regularizers.Regularizer | None
    changed: bool
    note: str


def regularize(
    model: keras.Model,
    regularizer: Regularizers,
    *,
    layers: Layers | None = None,
    include_normalized: bool = False,
    replace: bool = False,
) -> KernelTable[Attachment]:
    """Puts a regularizer on the kernels of a built model, in place.

    No weight is copied, no layer rebuilt, and the state of the optimizer stays. After
    a `fit` the change takes effect with the next one, without compiling again. It is
    kept by `save` and `clone_model`, as if it had been the layers'
    `kernel_regularizer` from the start.

    Left out are kernels straight before a normalization layer, whose scale is
    normalized away, and embeddings; kernels that have another regularizer; and
    quantized kernels and those with LoRA enabled. The report says so for each, and a
    warning does if the call asked for them. A normalization layer that is named gets
    the regularizer on its gamma, see `invariant_coefficients`.

    Args:
        model: A built `keras.Model`, the one that is compiled and fitted.
        regularizer: A `keras.regularizers.Regularizer`, or its name; or a dict of
            them by the names of layers; or a function from the layer that owns a
            kernel to one, or to `None` to leave the kernel as it is.
        layers: Which layers: names (of layers, nested models, or kernels as the report
            lists them), a class or list of classes, or a function from a layer to a
            bool. Defaults to `None`: all but embeddings.
        include_normalized: bool. Whether to take kernels straight before a
            normalization layer too. Defaults to `False`.
        replace: bool. Whether to replace regularizers other than `WEISSI`. One
            `WEISSI` is always replaced by another. Defaults to `False`.

    Returns:
        `KernelTable` of `Attachment`: every kernel of the model, in order. It prints
        as a table.

    Raises:
        ValueError: If the model is not built, a name matches no kernel, or an argument
            is invalid. The model is then as it was.

    Example:

    >>> import keras
    >>> from keras_weissi import WEISSI, regularize
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> report = regularize(model, WEISSI(0.01))
    >>> [row.changed for row in report], len(model.losses)
    ([True], 1)
    """
    check_bool(include_normalized, "include_normalized")
    check_bool(replace, "replace")
    found = kernels_of_built(model, everything=True)
    found += _named_gammas(model, found, layers, regularizer)
    asked_for = None
    if layers is not None:
        validate_selection(layers)
        asked_for = {kernel.name for kernel in select_kernels(found, layers)}
    wanted = regularizers_by_kernel(regularizer, found)
    by_name = asked_for is not None or isinstance(regularizer, dict)
    graph = Graph(model)
    plan, notes, refused = {}, {}, []
    keeps = functools.cache(keeps_layers)  # it is slow for a large model
    for kernel in found:
        name = kernel.name
        if asked_for is not None and name not in asked_for:
            notes[name] = "not among `layers`"
        elif wanted.get(name) is None:
            notes[name] = "not in `regularizer`"
        else:
            normalization = graph.normalization_of(kernel.layer, kernel.parents)
            why = why_left_out(
                kernel, normalization, include_normalized, replace, by_name
            )
            if why is None:
                plan[name] = wanted[name]
                notes[name] = _note(kernel, normalization, model, keeps)
            else:
                notes[name], is_default = why
                if by_name or not is_default:
                    refused.append(name)
    check_attention(found, plan, notes, refused)
    _check_calls(found, plan)
    # Before the model is changed: a warning may be made an error.
    _warn(found, plan, notes, refused)
    norms = _norms_of(found)
    set_all(
        (owner, name, plan[kernel.name])
        for kernel in found
        if kernel.name in plan
        for owner, name in ((kernel.variable, "regularizer"), *slots_of(kernel))
    )
    _renew_steps(model)
    return _report(found, norms, set(plan), notes)


def deregularize(model: keras.Model) -> KernelTable[Attachment]:
    """Takes every `WEISSI` off a model, in place, as `regularize` put it on.

    Args:
        model: A built `keras.Model`.

    Returns:
        `KernelTable` of `Attachment`, as from `regularize`.

    Raises:
        ValueError: If the model is not built.

    Example:

    >>> import keras
    >>> from keras_weissi import WEISSI, deregularize
    >>> dense = keras.layers.Dense(2, kernel_regularizer=WEISSI(0.01))
    >>> model = keras.Sequential([keras.Input((4,)), dense])
    >>> report = deregularize(model)
    >>> len(model.losses), dense.kernel_regularizer
    (0, None)
    """
    found = kernels_of_built(model, everything=True)
    names = {k.name for k in found if isinstance(k.regularizer, WEISSI)}
    carriers = [
        (owner, name)
        for layer in layers_of(model)
        for owner, name, value in (
            *((v, "regularizer", v.regularizer) for v in layer.weights),
            *((layer, *item) for item in regularizers_kept_by(layer).items()),
        )
        if isinstance(value, WEISSI)
    ]
    norms = _norms_of(found)
    set_all((owner, name, None) for owner, name in carriers)
    _renew_steps(model)
    notes = {name: "WEISSI taken off" for name in names}
    return _report(found, norms, names, notes)


def _named_gammas(model, found, layers, regularizer):
    """Lists the gammas of those normalization layers that the user calls by name."""
    named = [*names_in(layers), *(regularizer if isinstance(regularizer, dict) else ())]
    known = {id(kernel.variable) for kernel in found}
    return [
        gamma
        for gamma in (gammas(model) if named else ())
        if id(gamma.variable) not in known
        and any(name in (gamma.name, gamma.layer.name, gamma.layer) for name in named)
    ]


def _note(kernel, normalization, model, keeps_layers):
    notes = []
    if kernel.regularizer is not None:
        notes.append(f"was {format_regularizer(kernel.regularizer)}")
    if not kernel.variable.trainable:
        notes.append("frozen: counts once it is trainable")
    if normalization == "?":
        notes.append("what it feeds is hidden: may be normalized")
    elif normalization is not None:
        notes.append(f"normalized by {normalization}")
    slots = slots_of(kernel)
    losing = [layer for layer in (model, *kernel.parents) if not keeps_layers(layer)]
    if not keeps_slots(kernel.layer, slots):
        losing.append(kernel.layer)
    if not slots:
        notes.append("not saved: the layer has no argument for it")
    elif losing:
        notes.append(f"not saved unless {type(losing[0]).__name__} saves it")
    return "; ".join(notes)


def _check_calls(found, plan):
    """Raises if a regularizer cannot take a kernel of such a rank."""
    tried = set()
    for kernel in found:
        regularizer = plan.get(kernel.name)
        rank = len(kernel.variable.shape)
        if regularizer is None or (id(regularizer), rank) in tried:
            continue
        tried.add((id(regularizer), rank))
        try:
            regularizer(keras.ops.ones((1,) * rank))
        except Exception as error:
            raise ValueError(
                "Invalid value for argument `regularizer`. Expected one that takes "
                f"kernel {kernel.name!r}, of rank {rank}. Received: "
                f"{format_regularizer(regularizer)}, which raises: {error}"
            ) from error


def _renew_steps(model):
    # Not set to None, as `compile` does: a callback may have called in mid-`fit`.
    for layer in layers_of(model):
        if isinstance(layer, keras.Model):
            if layer.train_function is not None:
                layer.make_train_function(force=True)
            if layer.test_function is not None:
                layer.make_test_function(force=True)


def _warn(found, plan, notes, refused):
    unsaved = [name for name in plan if "not saved" in notes[name]]
    if refused:
        what, names = f"{len(refused)} were left as they were", refused
    elif not plan:
        what, names = "all were left as they were", [kernel.name for kernel in found]
    elif unsaved:
        what = f"{len(unsaved)} may lose their regularizer when the model is saved"
        names = unsaved
    else:
        return
    shown = listed([f"{name!r} ({notes[name]})" for name in names])
    warn(
        f"regularize: of {len(found)} kernels {what}: {shown}. The report that "
        "`regularize` returns has them all."
    )


def _norms_of(found):
    """Reads the norms, before a change that an error must not leave half done."""
    return [host_norm(kernel.variable) for kernel in found]


def _report(found, norms, changed, notes):
    rows = [
        Attachment(
            kernel.name,
            tuple(kernel.variable.shape),
            norm,
            kernel.regularizer,
            kernel.name in changed,
            notes.get(kernel.name, ""),
        )
        for kernel, norm in zip(found, norms, strict=True)
    ]
    caption = f"{len(changed)} of {len(rows)} kernels changed"
    left_out = set(notes) - changed
    normalized = sum(notes[name].startswith("normalized") for name in left_out)
    if normalized:
        caption += f"; include_normalized=True takes the {normalized} normalized ones"
    return KernelTable(rows, _COLUMNS, caption)
