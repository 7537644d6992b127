"""The kernels of a model: what counts as one, its name, and its norm.

This module alone decides what counts as a kernel and how it is named.
"""

import dataclasses
import math
import re

import keras
import numpy as np

from keras_weissi._utils.backend import to_numpy
from keras_weissi._utils.keras_private import made_trainable, sublayers
from keras_weissi._utils.user_warnings import listed
from keras_weissi._utils.validation import check_model
from keras_weissi.model.homogeneity import gamma_of, is_of_keras
from keras_weissi.model.walk import own_variables, unbuilt_layers, walk
from keras_weissi.regularizers import WEISSI, dtype_of_sums

# Variables of more elements are brought to the host in pieces of about this many.
PIECE = 2**20
_MAIN = ("kernel", "embedding", "gamma")
# In layers of Keras, weights of these names are no matrices, whatever their shape.
_NO_MATRIX = re.compile(r"(.*_)?(bias|beta|gamma)(_\d+)?")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel of a model, or another weight that is regularized like one.

    Attributes:
        name: str, unique in the model, and independent of its regularizer: the
            names of the layers that lead to it, joined by "/". A layer with several
            kernels adds the name of the variable.
        layer: the `keras.Layer` that owns the kernel.
        variable: the `keras.Variable` itself.
        parents: tuple of the layers around `layer`, outermost first, without the
            model itself.
        kind: str, `"kernel"`, `"embedding"`, `"gamma"` (which scales the output of a
            normalization), `"lora"` (half of a low-rank update), `"matrix"` (any
            other weight of two or more dimensions that is trained) or `"other"`.
    """

    name: str
    layer: keras.Layer
    variable: keras.Variable
    parents: tuple[keras.Layer, ...] = ()
    kind: str = "kernel"

    @property
    def regularizer(self) -> keras.regularizers.Regularizer | None:
        """The regularizer that acts on the kernel, or `None`."""
        return self.variable.regularizer

    @property
    def chain(self) -> tuple[keras.Layer, ...]:
        """The layers around the kernel, outermost first, with its own."""
        return (*self.parents, self.layer)

    @property
    def is_bare_gamma(self) -> bool:
        """Whether it is a gamma without `WEISSI`, which is included only if named."""
        return self.kind == "gamma" and not isinstance(self.regularizer, WEISSI)

    def counts(self, everything: bool = False) -> bool:
        """Whether `kernels` lists it."""
        if isinstance(self.regularizer, WEISSI):
            return self.kind != "lora"  # its norm says nothing, and starts at 0
        if everything:
            return self.kind in ("kernel", "embedding", "matrix")
        is_float = keras.backend.is_float_dtype(self.variable.dtype)
        return self.kind == "kernel" and is_float


def kernels(model, everything=False):
    """Lists the kernels of a model.

    A kernel is a floating-point variable called "kernel" or "..._kernel", as in Keras's
    own layers, or any other variable with a `WEISSI` regularizer. Nested models,
    wrapped layers and RNN cells are searched. A kernel that several layers share is
    listed once, where it comes first.

    Args:
        model: A built `keras.Model` or `keras.Layer`.
        everything: bool. Whether to list embeddings, quantized kernels, and matrices
            of other names too. Defaults to `False`.

    Returns:
        List of `Kernel`, in the order of the layers.

    Examples:
        >>> import keras
        >>> from keras_weissi.model.kernels import kernels
        >>> backbone = keras.Sequential(
        ...     [keras.Input((8, 1)), keras.layers.Conv1D(2, 3, name="conv")],
        ...     name="backbone",
        ... )
        >>> model = keras.Sequential([backbone, keras.layers.LSTM(4, name="lstm")])
        >>> [kernel.name for kernel in kernels(model)]
        ['backbone/conv', 'lstm/lstm_cell/kernel', 'lstm/lstm_cell/recurrent_kernel']
    """
    return [kernel for kernel in _weights(model) if kernel.counts(everything)]


def kernels_and_gammas(model):
    """Lists everything that can be named: every kernel, and all gammas."""
    return [k for k in _weights(model) if k.kind == "gamma" or k.counts(True)]


def named_weights(model):
    """Returns a dict from the ids of all weights to their `Kernel`s, in order."""
    return {id(kernel.variable): kernel for kernel in _weights(model)}


def kernels_of_built(model):
    """Lists every kernel of a model, and raises a `ValueError` if there are none.

    A model that only has a `train_step` is never built: its layers have to be.
    """
    check_model(model)
    unbuilt = [] if model.built else [x.name for *_, x in unbuilt_layers(model)]
    if not unbuilt and (found := kernels(model, everything=True)):
        return found
    expected = "a built model with kernels"
    received = f"model={model.name!r}, built={model.built}"
    if unbuilt or not model.weights:
        expected += ": first call it on data, or call `model.build(input_shape)`"
    if unbuilt:
        received += f", layers not built: {listed([repr(name) for name in unbuilt])}"
    raise ValueError(
        f"Invalid value for argument `model`. Expected {expected}. Received: {received}"
    )


def attention_around(kernel):
    """Returns the attention layer around a kernel, or `None`."""
    kinds = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)
    if kernel.parents and isinstance(kernel.parents[-1], kinds):
        return kernel.parents[-1]
    return None


def host_norm(variable):
    """Returns the Frobenius norm of one variable, computed in float64 by NumPy.

    For occasional use: it compiles nothing and copies a large kernel in pieces. NaN for
    integers, which are quantized and have no norm.
    """
    if not keras.backend.is_float_dtype(variable.dtype):
        return math.nan
    # Not by a dot product: the threads of BLAS get in the way of a busy backend's.
    squares = (np.square(p, dtype="float64").sum() for p in host_pieces(variable))
    return math.sqrt(sum(squares))


def host_pieces(variable):
    """Yields a variable's value as NumPy arrays, that of a large one in blocks of rows.

    Joined along the first axis they are the value. They are float64 for a float64
    variable, and float32 for any other, also for those that NumPy has no dtype for.
    """
    shape = tuple(variable.shape)
    dtype = dtype_of_sums(variable.dtype)
    if math.prod(shape) <= PIECE:
        yield to_numpy(keras.ops.cast(variable.value, dtype))
        return
    rows = max(1, PIECE // math.prod(shape[1:]))
    for start in range(0, shape[0], rows):
        # Not `value[start:...]`, which JAX compiles anew for every `start`.
        corner = (start, *(0 for _ in shape[1:]))
        extent = (min(rows, shape[0] - start), *shape[1:])
        piece = keras.ops.slice(variable.value, corner, extent)
        yield to_numpy(keras.ops.cast(piece, dtype))


def _own_variables(model):
    """Yields `(layer, parents, variables)` depth first, each variable once."""
    seen: set[int] = set()
    for layer, parents in walk(model):
        own = [v for v in own_variables(layer) if id(v) not in seen]
        if own:
            seen.update(map(id, own))
            yield layer, parents, own


def _weights(model):
    """Names all weights at once, so that no name depends on which are asked for."""
    found = []
    names = set()
    for layer, parents, variables in _own_variables(model):
        kinds = [_kind_of(layer, variable) for variable in variables]
        # One of these may go by the name of the layer alone.
        main = (
            [v for v, kind in zip(variables, kinds, strict=True) if kind in _MAIN]
            or [v for v in variables if len(v.shape) > 1]
            or variables
        )
        path = [part.name for part in (*parents, layer) if part is not model]
        for variable, kind in zip(variables, kinds, strict=True):
            # A matrix beside layers could not be named without them.
            is_beside = kind == "matrix" and any(True for _ in sublayers(layer))
            is_main = len(main) == 1 and variable is main[0]
            is_alone = path and is_main and not is_beside
            parts = path if is_alone else [*path, variable.name]
            name = base = "/".join(map(clean, parts))
            count = 1
            while name in names:
                name = f"{base}_{count}"
                count += 1
            names.add(name)
            found.append(Kernel(name, layer, variable, parents, kind))
    return found


def _kind_of(layer, variable):
    name = variable.name
    if name.startswith("lora_") and getattr(layer, "lora_enabled", False):
        return "lora"
    if name in ("embeddings", "reverse_embeddings"):
        return "embedding"
    if name == "kernel" or name.endswith("_kernel"):
        return "kernel"
    if variable is gamma_of(layer):
        return "gamma"
    # The slopes of PReLU are an activation's.
    is_matrix = (
        len(variable.shape) > 1
        and not (is_of_keras(layer) and _NO_MATRIX.fullmatch(name))
        and not isinstance(layer, keras.layers.PReLU)
        and keras.backend.is_float_dtype(variable.dtype)
        and any(v is variable for v in made_trainable(layer))
    )
    return "matrix" if is_matrix else "other"


def clean(name):
    """Replaces characters special in `str.format`, which `ModelCheckpoint` applies."""
    return re.sub(r"[.:!{}\[\]\s]", "_", name)
