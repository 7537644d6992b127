"""Puts a regularizer on the kernels of a model that already exists.

Setting `layer.kernel_regularizer` on a built layer does nothing, and setting the
regularizer of the variable alone is forgotten when the model is saved. Here both are
set, together with what the layers around it write into their own configuration, and a
compiled model is told to make its training step anew.
"""

import dataclasses
import warnings

import keras

from keras_weissi.graph import Graph
from keras_weissi.norms import (
    host_norm,
    kernels,
    select_kernels,
    validate_selection,
)
from keras_weissi.regularizers import WEISSI
from keras_weissi.tables import KernelTable, format_regularizer, format_shape

_COLUMNS = {
    "name": str,
    "shape": format_shape,
    "norm": lambda norm: f"{norm:.4g}",
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
    shape: tuple
    norm: float
    regularizer: object
    changed: bool
    note: str


def regularize(
    model, regularizer, *, layers=None, include_normalized=False, replace=False
):
    """Puts a regularizer on the kernels of a built model, in place.

    No weight is copied, no layer rebuilt, and the state of the optimizer stays. After
    a `fit` the change takes effect with the next one, without compiling again. It is
    kept by `save` and `clone_model`, as if it had been the layers'
    `kernel_regularizer` from the start.

    Left out are kernels straight before a normalization layer, whose scale is
    normalized away, and embeddings; kernels that have another regularizer; and
    quantized kernels and those with LoRA enabled. The report says so for each, and a
    warning does if the call asked for them.

    Args:
        model: A built `keras.Model`, the one that is compiled and fitted.
        regularizer: A `keras.regularizers.Regularizer`, or its name; or a dict of
            them by the names of layers; or a function from the layer that owns a
            kernel to one, or to `None` to leave the kernel as it is.
        layers: Which layers: names (of layers, nested models, or kernels as the report
            lists them), a class or tuple of classes, or a function from a layer to a
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
    found = _all_kernels(model)
    if layers is not None:
        validate_selection(layers)
        chosen = select_kernels(found, layers)
        asked_for = {kernel.name for kernel in chosen}
    else:
        asked_for = None
    wanted = _regularizers_by_kernel(regularizer, found)
    if isinstance(regularizer, dict):
        asked_for = set(wanted) if asked_for is None else asked_for & set(wanted)
    graph = Graph(model)
    plan, notes, refused = {}, {}, []
    for kernel in found:
        new = wanted.get(kernel.name)
        if asked_for is not None and kernel.name not in asked_for:
            notes[kernel.name] = "not among `layers`"
            continue
        if new is None:
            notes[kernel.name] = "`regularizer` gave None"
            continue
        why = _why_not(kernel, graph, include_normalized, replace, asked_for)
        if why is None:
            plan[kernel.name] = new
            notes[kernel.name] = _note(kernel, graph, include_normalized)
            continue
        notes[kernel.name], is_default = why
        if not is_default or asked_for is not None:
            refused.append(kernel.name)
    _check_attention(found, plan)
    for kernel in found:
        if kernel.name in plan:
            _set(kernel, plan[kernel.name])
    _renew_steps(model)
    if refused or not plan:
        _warn(found, notes, refused)
    return _report(found, set(plan), notes)


def deregularize(model):
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
    found = _all_kernels(model)
    ours = [kernel for kernel in found if isinstance(kernel.regularizer, WEISSI)]
    for kernel in ours:
        _set(kernel, None)
    _renew_steps(model)
    names = {kernel.name for kernel in ours}
    notes = {name: "WEISSI taken off" for name in names}
    return _report(found, names, notes)


def _all_kernels(model):
    if not isinstance(model, keras.Layer):
        raise ValueError(
            "Invalid value for argument `model`. Expected a keras.Model. "
            f"Received: model={model!r}"
        )
    found = kernels(model, everything=True) if model.built else []
    if not found:
        raise ValueError(
            "Invalid value for argument `model`. Expected a built model with kernels: "
            "call it on data, or `model.build(input_shape)`, before. "
            f"Received: model={model.name!r}, built={model.built}"
        )
    return found


def _regularizers_by_kernel(regularizer, found):
    """Returns a dict from the names of kernels to regularizers or `None`."""
    if isinstance(regularizer, dict):
        wanted = {}
        # The longer a name, the more it says: "backbone/conv" goes before "backbone".
        for name in sorted(regularizer, key=lambda name: len(str(name))):
            value = _as_regularizer(regularizer[name], f"regularizer[{name!r}]")
            for kernel in select_kernels(found, [name], "regularizer"):
                wanted[kernel.name] = value
        return wanted
    if isinstance(regularizer, (str, keras.regularizers.Regularizer)):
        value = _as_regularizer(regularizer, "regularizer")
        return {kernel.name: value for kernel in found}
    if callable(regularizer) and not isinstance(regularizer, type):
        return {
            kernel.name: _as_regularizer(
                regularizer(kernel.layer),
                f"regularizer, called on layer {kernel.layer.name!r}",
                or_none=True,
            )
            for kernel in found
        }
    raise ValueError(
        "Invalid value for argument `regularizer`. Expected a "
        "keras.regularizers.Regularizer, a dict of them by layer name, or a function "
        f"from a layer to one. Received: regularizer={regularizer!r}"
    )


def _as_regularizer(value, name, or_none=False):
    if value is None and or_none:
        return None
    if isinstance(value, str):
        value = keras.regularizers.get(value)
    if not isinstance(value, keras.regularizers.Regularizer):
        raise ValueError(
            f"Invalid value for argument `{name}`. Expected a "
            f"keras.regularizers.Regularizer. Received: {value!r}"
        )
    return value


def _why_not(kernel, graph, include_normalized, replace, asked_for):
    """Returns the reason to leave a kernel out and whether it is a default one."""
    layer = kernel.layer
    if getattr(layer, "lora_enabled", False):
        return "LoRA is enabled: the kernel is frozen, its update is elsewhere", False
    mode = getattr(layer, "quantization_mode", None)
    if mode is not None or not keras.backend.is_float_dtype(kernel.variable.dtype):
        return f"quantized to {mode or kernel.variable.dtype}", False
    if kernel.variable.name == "embeddings" and asked_for is None:
        return "an embedding: name it in `layers` to take it", True
    old = kernel.regularizer
    if old is not None and not isinstance(old, WEISSI) and not replace:
        return f"has {format_regularizer(old)} already: replace=True", False
    normalization = graph.normalization_of(layer, kernel.parents)
    if normalization not in (None, "?") and not include_normalized:
        return f"normalized by {normalization}", True
    return None


def _note(kernel, graph, include_normalized):
    notes = []
    if kernel.regularizer is not None:
        notes.append(f"was {format_regularizer(kernel.regularizer)}")
    if not kernel.variable.trainable:
        notes.append("frozen: counts once it is trainable")
    normalization = graph.normalization_of(kernel.layer, kernel.parents)
    if normalization == "?" and not include_normalized:
        notes.append("what it feeds is hidden: may be normalized")
    elif normalization not in (None, "?"):
        notes.append(f"normalized by {normalization}")
    if not _slots(kernel):
        notes.append("not saved: the layer has no argument for it")
    return "; ".join(notes)


def _slots(kernel):
    """Lists the attributes that go into the saved configuration."""
    stem = kernel.variable.name
    names = [f"{stem}_regularizer", f"{stem.removesuffix('_kernel')}_regularizer"]
    if stem == "kernel":
        names.append("depthwise_regularizer")  # DepthwiseConv calls it that
    slots = [(kernel.layer, name) for name in names if hasattr(kernel.layer, name)][:1]
    attention = _attention_around(kernel)
    if attention is not None:
        # They make their inner layers anew from an argument of their own.
        for name in ("kernel_regularizer", "_kernel_regularizer"):
            if hasattr(attention, name):
                slots.append((attention, name))
    return slots


def _attention_around(kernel):
    kinds = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)
    if kernel.parents and isinstance(kernel.parents[-1], kinds):
        return kernel.parents[-1]
    return None


def _check_attention(found, plan):
    """Raises if the kernels of an attention layer would not all be served alike."""
    targets = {}
    for kernel in found:
        attention = _attention_around(kernel)
        if attention is not None:
            new = plan.get(kernel.name, kernel.regularizer)
            config = None if new is None else (type(new), str(new.get_config()))
            targets.setdefault(id(attention), (attention, set()))[1].add(config)
    for attention, configs in targets.values():
        if len(configs) > 1:
            raise ValueError(
                "Invalid value for argument `layers` or `regularizer`. Expected the "
                f"same regularizer for every kernel of layer {attention.name!r}, which "
                "saves only one for all of them. Received: different ones"
            )


def _set(kernel, regularizer):
    kernel.variable.regularizer = regularizer
    for owner, name in _slots(kernel):
        setattr(owner, name, regularizer)


def _renew_steps(model):
    # As Keras does when a model is quantized: the next `fit` or `evaluate` makes these
    # anew, and with them the penalties.
    for name in ("train_function", "test_function"):
        if getattr(model, name, None) is not None:
            setattr(model, name, None)


def _warn(found, notes, refused):
    names = refused or [kernel.name for kernel in found]
    shown = "; ".join(f"{name!r} ({notes[name]})" for name in names[:3])
    more = f"; and {len(names) - 3} more" if len(names) > 3 else ""
    what = "were left as they were" if refused else "all were left as they were"
    warnings.warn(
        f"regularize: of {len(found)} kernels {what}: {shown}{more}. The report that "
        "`regularize` returns has them all.",
        stacklevel=3,
    )


def _report(found, changed, notes):
    rows = [
        Attachment(
            kernel.name,
            tuple(kernel.variable.shape),
            host_norm(kernel.variable),
            kernel.regularizer,
            kernel.name in changed,
            notes.get(kernel.name, ""),
        )
        for kernel in found
    ]
    caption = f"{len(changed)} of {len(rows)} kernels changed"
    return KernelTable(rows, _COLUMNS, caption)
