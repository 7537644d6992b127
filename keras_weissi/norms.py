"""The kernels of a model and their norms.

This module alone decides what counts as a kernel and how it is named, and it is
the only one that walks over the layers of a model.
"""

import dataclasses
import difflib
import math
import re

import keras
import numpy as np
from keras import ops

from keras_weissi.regularizers import WEISSI


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel of a model.

    Attributes:
        name: str, unique in the model: the names of the layers that lead to the
            kernel, joined by "/". A layer with several kernels adds the name of the
            variable.
        layer: the `keras.Layer` that owns the kernel.
        variable: the `keras.Variable` itself.
    """

    name: str
    layer: keras.Layer
    variable: keras.Variable

    @property
    def regularizer(self):
        """The regularizer that acts on the kernel, or `None`."""
        return self.variable.regularizer


def kernels(model):
    """Lists the kernels of a model.

    A kernel is a floating-point variable called "kernel" or "..._kernel", as in the
    layers of Keras that multiply their input by one, or any other variable that
    carries a `WEISSI` regularizer. Nested models, wrapped layers and RNN cells are
    searched. What several layers share is listed once, where it comes first.

    Args:
        model: A built `keras.Model` or `keras.Layer`.

    Returns:
        List of `Kernel`, in the order of the layers.

    Example:

    >>> import keras
    >>> from keras_weissi import norms
    >>> backbone = keras.Sequential(
    ...     [keras.Input((8, 1)), keras.layers.Conv1D(2, 3, name="conv")],
    ...     name="backbone",
    ... )
    >>> model = keras.Sequential([backbone, keras.layers.LSTM(4, name="lstm")])
    >>> [kernel.name for kernel in norms.kernels(model)]
    ['backbone/conv', 'lstm/lstm_cell/kernel', 'lstm/lstm_cell/recurrent_kernel']
    """
    found = []
    names = set()
    for path, layer, variables in _own_variables(model):
        own = [variable for variable in variables if _is_kernel(variable)]
        for variable in own:
            parts = [*path, variable.name] if len(own) > 1 or not path else path
            name = base = "/".join(map(_clean, parts))
            count = 1
            while name in names:
                name = f"{base}_{count}"
                count += 1
            names.add(name)
            found.append(Kernel(name, layer, variable))
    return found


def select_kernels(candidates, layers):
    """Narrows a list of kernels down to those of the layers asked for.

    Args:
        candidates: List of `Kernel`.
        layers: Name or list of names, each the name of a layer or the first part of
            a kernel's name; or a function from a layer to a bool.

    Returns:
        List of `Kernel`, in the order of `candidates`.

    Raises:
        ValueError: If a name matches no kernel, or the function none of the layers.
    """
    if callable(layers):
        chosen = [kernel for kernel in candidates if layers(kernel.layer)]
        if not chosen:
            raise ValueError(
                "Invalid value for argument `layers`. Expected a function that is "
                f"true for at least one layer with a kernel. Received: layers={layers}"
            )
        return chosen
    chosen = set()
    for wanted in [layers] if isinstance(layers, str) else layers:
        matches = {
            kernel.name
            for kernel in candidates
            if wanted in (kernel.name, kernel.layer.name)
            or kernel.name.startswith(f"{wanted}/")
        }
        if not matches:
            known = {k.name for k in candidates} | {k.layer.name for k in candidates}
            near = difflib.get_close_matches(str(wanted), sorted(known), n=3, cutoff=0)
            raise ValueError(
                "Invalid value for argument `layers`. Expected names of layers that "
                f"have a kernel, such as {near}. Received: {wanted!r}"
            )
        chosen |= matches
    return [kernel for kernel in candidates if kernel.name in chosen]


def make_norm_reader(watched, model):
    """Builds a function that reads the norms and the penalty of a model.

    The function computes everything on the device, in one pass over the kernels that
    have no penalty on their direction, and brings it over in one transfer. The
    kernels and regularizers are fixed when it is built, the values are read on every
    call.

    Args:
        watched: List of `Kernel`.
        model: The `keras.Model` whose weight penalties are summed up.

    Returns:
        Function without arguments that returns a pair: a float64 array of the
        Frobenius norms of `watched`, and the weight regularization loss as a float.
        Norms are computed in float32 (float64 for float64 kernels), so they are 0
        below 1e-19 and infinite above 1.8e19.
    """
    watched = [kernel.variable for kernel in watched]
    penalized = [v for v in model.trainable_variables if v.regularizer is not None]
    by_sums = {}
    others = []
    for variable in penalized:
        if isinstance(variable.regularizer, WEISSI):
            config = tuple(variable.regularizer.get_config().items())
            by_sums.setdefault(config, []).append(variable)
        else:
            others.append(variable)
    variables = list({id(v): v for v in [*watched, *penalized]}.values())
    position = {id(v): i for i, v in enumerate(variables)}
    dtypes = {"float64" if v.dtype == "float64" else "float32" for v in variables}
    dtype = "float64" if "float64" in dtypes else "float32"

    def measure(values):
        norm = {}

        def value_of(variable):
            value = values[position[id(variable)]]
            exact = variable.dtype in ("float32", "float64")
            return value if exact else ops.cast(value, "float32")

        def norm_of(variable):
            key = id(variable)
            if key not in norm:
                norm[key] = _frobenius_norm(value_of(variable))
                if len(dtypes) > 1:
                    norm[key] = ops.cast(norm[key], dtype)
            return norm[key]

        result = [norm_of(variable) for variable in watched]
        penalty = ops.zeros((), dtype)
        for group in by_sums.values():
            regularizer = group[0].regularizer
            square = ops.square(ops.stack([norm_of(v) for v in group]))
            absolute = sizes = None
            if regularizer.direction_l1:
                sums = [ops.sum(ops.absolute(value_of(v))) for v in group]
                absolute = ops.stack([ops.cast(s, dtype) for s in sums])
                sizes = np.array([math.prod(v.shape) for v in group], dtype)
            penalty += ops.sum(regularizer.penalty_from_sums(square, absolute, sizes))
        for v in others:
            penalty += ops.cast(v.regularizer(values[position[id(v)]]), dtype)
        return ops.stack([*result, penalty])

    measure = _compiled(measure)

    def read():
        values = measure([variable.value for variable in variables])
        numbers = ops.convert_to_numpy(values).astype("float64")
        return numbers[:-1], float(numbers[-1])

    return read


def _sublayers(layer):
    # Keras has no public list of the sublayers of a layer that is not a model.
    return layer._flatten_layers(include_self=False, recursive=False)


def _own_variables(layer, path=(), seen=None):
    """Yields `(path, layer, variables)` depth first, each variable once."""
    seen = set() if seen is None else seen
    sublayers = _sublayers(layer)
    below = {id(variable) for sub in sublayers for variable in sub.weights}
    own = []
    for variable in layer.weights:
        if id(variable) not in below and id(variable) not in seen:
            seen.add(id(variable))
            own.append(variable)
    if own:
        yield path, layer, own
    for sub in sublayers:
        yield from _own_variables(sub, (*path, sub.name), seen)


def _is_kernel(variable):
    if not keras.backend.is_float_dtype(variable.dtype):
        return False
    named = variable.name == "kernel" or variable.name.endswith("_kernel")
    return named or isinstance(variable.regularizer, WEISSI)


def _clean(name):
    # These have a meaning in `str.format`, which fills in the names of checkpoints.
    return re.sub(r"[.:!{}\[\]\s]", "_", name)


def _frobenius_norm(x):
    """The fastest accurate form of each backend: one pass and no temporary."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return ops.sqrt(2.0 * tf.nn.l2_loss(x))
    if backend == "torch":
        from torch.linalg import vector_norm

        # In one go, the float32 norm of a large kernel is wrong in the fourth digit.
        return vector_norm(vector_norm(x, dim=-1))
    return ops.sqrt(ops.sum(x * x))


def _compiled(function):
    """Compiles a function of a list of tensors; Keras has no public way to."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False)
    if backend == "jax":
        import jax

        return jax.jit(function)
    if backend == "torch":
        import torch

        return torch.no_grad()(function)
    return function
