"""What a user asks for, by name, class or function, the kernels it means, or not."""

import difflib
from collections.abc import Callable, Collection, Mapping
from typing import TypeAlias

import keras

from keras_weissi._utils.validation import invalid

# What says which layers: names or layers, classes, or a function of the layer.
Layers: TypeAlias = (
    str
    | keras.Layer
    | Collection[str | keras.Layer]
    | type
    | Collection[type]
    | Callable[[keras.Layer], bool]
)
# What says which regularizers: one for all, by name of layer, or by a function.
Regularizers: TypeAlias = (
    str
    | keras.regularizers.Regularizer
    | dict[str, str | keras.regularizers.Regularizer]
    | Callable[[keras.Layer], str | keras.regularizers.Regularizer | None]
)


def select_kernels(candidates, layers, argument="layers"):
    """Narrows a list of kernels down to those of the layers asked for.

    Args:
        candidates: List of `Kernel`.
        layers: Name or list of names, each of a layer (or a layer around it) or the
            first part of a kernel's name, or the layers themselves; or a class of
            layers or list of classes; or a function from the layer that owns a kernel
            to a bool.
        argument: str, what the caller calls `layers`. Defaults to `"layers"`.

    Returns:
        List of `Kernel`, in the order of `candidates`.

    Raises:
        ValueError: If a name, the classes or the function match no kernel.
    """
    if names := names_in(layers):
        chosen = [_kernels_called(name, candidates, argument) for name in names]
        names = {kernel.name for kernels in chosen for kernel in kernels}
        return [kernel for kernel in candidates if kernel.name in names]
    if classes := _classes_in(layers):
        chosen = [
            kernel
            for kernel in candidates
            if any(
                isinstance(part, classes) for part in (*kernel.parents, kernel.layer)
            )
        ]
        expected = "classes of layers with a kernel"
    else:
        chosen = [kernel for kernel in candidates if layers(kernel.layer)]
        expected = "a function that is true for at least one layer with a kernel"
    if not chosen:
        raise invalid(argument, expected, layers)
    return chosen


def names_in(layers):
    """Lists the names, or layers, that `layers` consists of; none if it is no such."""
    elements = _elements_of(layers)
    is_named = all(isinstance(name, (str, keras.Layer)) for name in elements)
    return elements if is_named else []


def validate_selection(layers):
    """Raises a `ValueError` unless `select_kernels` understands `layers`."""
    # A regularizer is callable: its place is another, the order of them was mistaken.
    is_function = callable(layers) and not isinstance(
        layers, keras.regularizers.Regularizer
    )
    if not (names_in(layers) or _classes_in(layers) or is_function):
        expected = (
            "a name, a non-empty list of names, a class of layers or a list of them, a "
            "function from a layer to a bool, or None"
        )
        raise invalid("layers", expected, layers)


def regularizers_by_kernel(regularizer, found):
    """Returns a dict from the names of kernels to regularizers or `None`."""
    if isinstance(regularizer, dict):
        if not regularizer:
            raise ValueError(
                "Invalid value for argument `regularizer`. Expected at least one layer "
                "in the dict. Received: {}. (Coefficients are empty where no kernel "
                "is to bear a penalty: print them for the reasons.)"
            )
        if not all(isinstance(name, str) for name in regularizer):
            raise ValueError(
                "Invalid value for argument `regularizer`. Expected the keys of the "
                f"dict to be names of layers. Received: keys {list(regularizer)}"
            )
        wanted: dict = {}
        ranks: dict[str, int] = {}
        for name, value in regularizer.items():
            value = _as_regularizer(value, f"regularizer[{name!r}]")
            for kernel in select_kernels(found, [name], "regularizer"):
                rank = _specificity(name, kernel)
                if rank > ranks.get(kernel.name, -1):
                    wanted[kernel.name], ranks[kernel.name] = value, rank
        return wanted
    if isinstance(regularizer, (str, keras.regularizers.Regularizer)):
        value = _as_regularizer(regularizer, "regularizer")
        return {kernel.name: value for kernel in found}
    if callable(regularizer) and not isinstance(regularizer, type):
        return {
            kernel.name: _as_regularizer(
                regularizer(kernel.layer),
                f"regularizer(layer {kernel.layer.name!r})",
                or_none=True,
            )
            for kernel in found
        }
    expected = (
        "a keras.regularizers.Regularizer, such as WEISSI(0.01), a dict of them by "
        "layer name, or a function from a layer to one"
    )
    raise invalid("regularizer", expected, regularizer)


def _classes_in(layers):
    elements = tuple(_elements_of(layers))
    return elements if all(isinstance(c, type) for c in elements) else ()


def _elements_of(layers):
    # What a dict says of its keys would be lost.
    is_one = isinstance(layers, (str, type, Mapping))
    if is_one or not isinstance(layers, Collection):
        return [layers]
    try:
        return list(layers)
    except TypeError:  # an array of no dimension
        return []


def _kernels_called(name, candidates, argument):
    matches = [
        kernel
        for kernel in candidates
        if kernel.name == name
        or kernel.name.startswith(f"{name}/")
        or any(name in (part, part.name) for part in (*kernel.parents, kernel.layer))
    ]
    if not matches:
        known = {k.name for k in candidates} | {k.layer.name for k in candidates}
        near = difflib.get_close_matches(str(name), sorted(known), n=3, cutoff=0)
        raise ValueError(
            f"Invalid value for argument `{argument}`. Expected names of layers that "
            f"have a kernel, such as {near}. Received: {name!r}"
        )
    return matches


def _specificity(name, kernel):
    """Ranks what a name says of a kernel: the closer to the kernel, the higher."""
    if name == kernel.name:
        return len(kernel.parents) + 3
    if name == kernel.layer.name:
        return len(kernel.parents) + 2
    if kernel.name.startswith(f"{name}/"):
        return name.count("/") + 1
    return 1 + [parent.name for parent in kernel.parents].index(name)


def _as_regularizer(value, name, or_none=False):
    if value is None and or_none:
        return None
    if isinstance(value, str):
        try:
            value = keras.regularizers.get(value)
        except ValueError as error:
            expected = "a regularizer, or the name of one of Keras's own"
            raise invalid(name, expected, value) from error
    if not isinstance(value, keras.regularizers.Regularizer):
        raise invalid(name, "a keras.regularizers.Regularizer", value)
    try:
        value.get_config()
    except NotImplementedError as error:
        expected = "one with a `get_config`, without which it cannot be saved"
        raise invalid(name, expected, value) from error
    return value
