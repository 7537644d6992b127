"""Names, layers, classes and functions -> kernels: the one place that resolves them."""

import difflib
from collections.abc import Callable, Collection, Mapping
from typing import TypeAlias

import keras

from keras_weissi._utils.validation import invalid
from keras_weissi.model.kernels import clean

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


def select_kernels(candidates, layers):
    """Narrows a list of kernels down to those of the layers asked for.

    Args:
        candidates: List of `Kernel`, as from `kernels_and_gammas`. Classes and
            functions take no gammas.
        layers: Name or list of names, see `resolve`, or the layers themselves; or a
            class of layers or list of classes; or a function from the layer that owns
            a kernel to a bool.

    Returns:
        List of `Kernel`, in the order of `candidates`.

    Raises:
        ValueError: If a name, the classes or the function match no kernel, or a name
            stands for several layers.
    """
    if names := names_in(layers):
        found = [resolve(name, candidates, "layers")[0] for name in names]
        chosen_names = {kernel.name for kernels in found for kernel in kernels}
        return [kernel for kernel in candidates if kernel.name in chosen_names]
    candidates = [kernel for kernel in candidates if not kernel.is_bare_gamma]
    if classes := _classes_in(layers):
        chosen = [
            k for k in candidates if any(isinstance(part, classes) for part in k.chain)
        ]
        expected = "classes of layers with a kernel"
    else:
        chosen = [kernel for kernel in candidates if layers(kernel.layer)]
        expected = "a function that is true for at least one layer with a kernel"
    if not chosen:
        raise invalid("layers", expected, layers)
    return chosen


def resolve(name, candidates, argument):
    """Finds the kernels that a name stands for.

    The first of these that exists: the kernel of this name, or all kernels of its layer
    if the layer has this path; the kernels of the layer or nested model of this path,
    such as `"backbone/block"`; the kernels of the only layer of this name, at any
    depth. Gammas only if their own layer is named.

    Args:
        name: str, or the `keras.Layer` itself.
        candidates: List of `Kernel`, as from `kernels_and_gammas`.
        argument: str, what the caller calls the names.

    Returns:
        Pair of a list of `Kernel`, and of an int: how many layers deep the name leads,
        the more specific the larger.

    Raises:
        ValueError: If there is none, or if several layers have this name.
    """
    for kernel in candidates:
        if kernel.name == name and path_of(kernel.chain) == name:
            return resolve(kernel.layer, candidates, argument)
        if kernel.name == name:
            return [kernel], len(kernel.chain) + 1
    for is_meant in (
        lambda chain: chain[-1] is name,
        lambda chain: path_of(chain) == name,
        lambda chain: chain[-1].name == name,
    ):
        found = [
            (kernel, kernel.chain[:depth])
            for kernel in candidates
            for depth in range(1, len(kernel.chain) + 1)
            if is_meant(kernel.chain[:depth])
            and not (kernel.is_bare_gamma and depth < len(kernel.chain))
        ]
        meant = {id(chain[-1]): chain for _, chain in found}
        if len(meant) == 1:
            return [kernel for kernel, _ in found], len(found[0][1])
        if meant:
            options = list(dict.fromkeys(map(path_of, meant.values())))
            if len(options) < len(meant):
                options = [kernel.name for kernel, _ in found]
            raise ValueError(
                f"Invalid value for argument `{argument}`. Expected a unique name, "
                f"such as {' or '.join(map(repr, options))}. Received: {name!r}, which "
                f"matches {len(meant)} layers"
            )
    known = [kernel.name for kernel in candidates]
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0)
    raise ValueError(
        f"Invalid value for argument `{argument}`. Expected names of layers (or of "
        f"nested models) that have a kernel, such as {near}. Received: {name!r}"
    )


def names_in(layers):
    """Lists the names and layers in `layers`; empty if it has anything else."""
    elements = _elements_of(layers)
    is_named = all(isinstance(name, (str, keras.Layer)) for name in elements)
    return elements if is_named else []


def validate_selection(layers):
    """Raises a `ValueError` unless `select_kernels` understands `layers`."""
    # A regularizer is callable, but was meant for another argument.
    is_function = callable(layers) and not isinstance(
        layers, keras.regularizers.Regularizer
    )
    if not (names_in(layers) or _classes_in(layers) or is_function):
        expected = (
            "a name, a non-empty list of names, a class of layers or a list of them, a "
            "function from a layer to a bool, or None"
        )
        raise invalid("layers", expected, layers)


def regularizers_by_kernel(regularizer, candidates, selected=()):
    """Tells which regularizer is asked for, for each kernel.

    Args:
        regularizer: What `regularize` takes.
        candidates: List of `Kernel`, as from `kernels_and_gammas`.
        selected: Collection of str, the names of the kernels that `layers` selects. A
            function is called for a gamma only if it is one of them.

    Returns:
        Dict from the names of kernels to regularizers or `None`. If several names in
        a dict match a kernel, the most specific one wins.

    Raises:
        ValueError: If `regularizer` is invalid, or if two equally specific names match
            a kernel.
    """
    if isinstance(regularizer, dict):
        if not (regularizer and all(isinstance(name, str) for name in regularizer)):
            expected = "a dict from names to regularizers, with at least one layer"
            raise invalid("regularizer", expected, regularizer)
        wanted: dict = {}
        chosen_by: dict[str, tuple[int, str]] = {}
        for name, value in regularizer.items():
            value = _as_regularizer(value, f"regularizer[{name!r}]")
            kernels, depth = resolve(name, candidates, "regularizer")
            for kernel in kernels:
                other_depth, other = chosen_by.get(kernel.name, (0, ""))
                if depth == other_depth:
                    raise ValueError(
                        "Invalid value for argument `regularizer`. Expected one "
                        f"regularizer per kernel. Received: two for {kernel.name!r}, "
                        f"by {other!r} and {name!r}"
                    )
                if depth > other_depth:
                    wanted[kernel.name], chosen_by[kernel.name] = value, (depth, name)
        return wanted
    if isinstance(regularizer, (str, keras.regularizers.Regularizer)):
        value = _as_regularizer(regularizer, "regularizer")
        return {kernel.name: value for kernel in candidates}
    if callable(regularizer) and not isinstance(regularizer, type):
        return {
            kernel.name: _as_regularizer(
                regularizer(kernel.layer),
                f"regularizer(layer {kernel.layer.name!r})",
                or_none=True,
            )
            for kernel in candidates
            if not kernel.is_bare_gamma or kernel.name in selected
        }
    expected = (
        "a keras.regularizers.Regularizer, such as WEISSI(0.01), a dict of them by "
        "layer name, or a function from a layer to one"
    )
    raise invalid("regularizer", expected, regularizer)


def path_of(chain):
    """Joins the names of layers inside each other, as in the names of kernels."""
    return "/".join(clean(layer.name) for layer in chain)


def _classes_in(layers):
    elements = tuple(_elements_of(layers))
    return elements if all(isinstance(c, type) for c in elements) else ()


def _elements_of(layers):
    # The values of a dict would be lost.
    is_one = isinstance(layers, (str, type, Mapping))
    if is_one or not isinstance(layers, Collection):
        return [layers]
    try:
        return list(layers)
    except TypeError:  # an array of no dimension
        return []


def _as_regularizer(value, name, or_none=False):
    if value is None and or_none:
        return None
    if isinstance(value, str):
        try:
            value = keras.regularizers.get(value)
        except ValueError as error:
            expected = "WEISSI(0.01), or the name of one of Keras's own regularizers"
            raise invalid(name, expected, value) from error
    if not isinstance(value, keras.regularizers.Regularizer):
        expected = "a keras.regularizers.Regularizer, such as WEISSI(0.01)"
        raise invalid(name, expected, value)
    try:
        value.get_config()
    except NotImplementedError as error:
        expected = "one with a `get_config`, without which it cannot be saved"
        raise invalid(name, expected, value) from error
    return value
