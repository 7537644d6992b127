"""What each kind of layer does to the scale of its input.

A function `f` is (positively) homogeneous if `f(c * x) == c * f(x)` for all `c > 0`.
Layers not listed here are assumed not to be homogeneous. To support another one, add
its class to a table (or a case to `scaling_of`), and test a model with it.
"""

import contextlib
import dataclasses
import functools
import numbers
import sys

import keras

from keras_weissi._utils.keras_private import leaving_no_traces


def _classes(*names):
    # Some are newer than the oldest Keras that is supported.
    found = (getattr(keras.layers, name, None) for name in names)
    return tuple(layer for layer in found if layer is not None)


NORMALIZATIONS = _classes(
    "BatchNormalization",
    "LayerNormalization",
    "GroupNormalization",
    "UnitNormalization",
    "RMSNormalization",
)

# Layers whose output is multiplied by c > 0 if their only input is.
_KEEPERS = _classes(
    *("Identity", "Flatten", "Reshape", "Permute", "RepeatVector", "PReLU"),
    *("Dropout", "GaussianDropout", "LeakyReLU"),
    *(
        f"{kind}{rank}D"
        for kind in (
            *("Cropping", "ZeroPadding", "UpSampling", "SpatialDropout"),
            *("MaxPooling", "AveragePooling", "GlobalMaxPooling"),
            *("GlobalAveragePooling", "AdaptiveMaxPooling", "AdaptiveAveragePooling"),
        )
        for rank in (1, 2, 3)
    ),
)

# Layers whose output is multiplied by c > 0 if all their inputs are.
_JOINS = _classes("Add", "Subtract", "Average", "Maximum", "Minimum", "Concatenate")

# Layers that are linear in each of these weights, in the order of their application,
# and that add the bias and apply `activation` after the last.
_KERNELS = {
    **dict.fromkeys(
        _classes(
            *("Dense", "EinsumDense", "DepthwiseConv1D", "DepthwiseConv2D"),
            *("Conv1D", "Conv2D", "Conv3D"),
            *("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"),
        ),
        ("kernel",),
    ),
    **dict.fromkeys(
        _classes("SeparableConv1D", "SeparableConv2D"),
        ("depthwise_kernel", "pointwise_kernel"),
    ),
}

# Functions of `keras.ops` that are called directly, each with a call of it on a tensor.
# They keep the scale of: one tensor, if there is no start value; tensors only; tensors
# and zeros; one tensor times, or over, something else.
_OPS = (
    ("one", "absolute amax amin convert_to_tensor copy diagonal", lambda f, x: f(x)),
    ("one", "flip leaky_relu max mean median min negative ravel", lambda f, x: f(x)),
    ("one", "relu rot90 sort squeeze stop_gradient sum trace", lambda f, x: f(x)),
    ("one", "transpose unstack", lambda f, x: f(x)),
    ("one", "expand_dims get_item repeat roll split tile", lambda f, x: f(x, 1)),
    ("one", "adaptive_average_pool adaptive_max_pool", lambda f, x: f(x, (1, 1))),
    ("one", "average_pool max_pool", lambda f, x: f(x, 1)),
    ("one", "moveaxis swapaxes", lambda f, x: f(x, 0, 1)),
    ("one", "broadcast_to reshape", lambda f, x: f(x, x.shape)),
    ("one", "cast", lambda f, x: f(x, x.dtype)),
    ("list", "concatenate dstack hstack stack vstack", lambda f, x: f([x, x])),
    ("sum", "add fmax fmin maximum minimum pad subtract", lambda f, x: f(x, 1)),
    ("product", "multiply", lambda f, x: f(x, 1)),
    ("quotient", "divide true_divide", lambda f, x: f(x, 1)),
)

# Methods that a user may replace on one layer, which changes what it computes.
_REPLACEABLE = ("call", "convolution_op")


@dataclasses.dataclass(frozen=True)
class Scaling:
    """What a layer does to the scale of its inputs and outputs.

    Without kernels, and if nothing is fixed, inputs and outputs share one scale.

    Attributes:
        kernels: tuple of `keras.Variable`, the kernels between the inputs and the
            outputs, in the order of their application.
        shifts: tuple of `keras.Variable` added after the last kernel, which have to
            be multiplied by the scale of the outputs.
        fixed_inputs: str, why the inputs cannot be scaled, or "".
        fixed_outputs: str, why the outputs cannot, or "".
    """

    kernels: tuple = ()
    shifts: tuple = ()
    fixed_inputs: str = ""
    fixed_outputs: str = ""


def fixed(reason):
    """Returns the `Scaling` of a layer whose inputs and outputs cannot be scaled."""
    return Scaling(fixed_inputs=reason, fixed_outputs=reason)


def scaling_of(operation, node):
    """Tells what one call of a layer, or of a function of `keras.ops`, does to scale.

    Args:
        operation: The `keras.Operation`, such as a `keras.Layer`. Custom classes are
            unknown, and so are subclasses of known ones.
        node: The call, with `input_tensors`, `output_tensors` and `arguments`.

    Returns:
        `Scaling`.
    """
    kind = type(operation)
    tensors = len(node.input_tensors)
    dtypes = [x.dtype for x in (*node.input_tensors, *node.output_tensors)]
    dtypes.append(getattr(operation, "compute_dtype", None) or "float32")
    for dtype in dtypes:
        if not is_float(dtype):
            return fixed(
                f"{kind.__name__} with a tensor of {dtype}, which has no scale"
            )
    replaced = replaced_method(operation)
    if replaced:
        return fixed(f"its `{replaced}` is not that of its class")
    if not isinstance(operation, keras.Layer):
        return _scaling_of_op(operation, node)
    if kind in _JOINS and len(keras.tree.flatten(node.arguments.args)) == tensors:
        return Scaling()
    if tensors != 1:
        return fixed(f"{kind.__name__} called with {tensors} tensors")
    if kind in _KEEPERS:
        return Scaling()
    if kind in (keras.layers.ReLU, keras.layers.Activation):
        activation = getattr(operation, "activation", operation)
        if is_homogeneous(activation):
            return Scaling()
        return fixed(f"{_described(activation)} is not homogeneous")
    if kind is keras.layers.Rescaling and _is_zero(operation.offset):
        return Scaling()
    if kind in _KERNELS:
        return _scaling_of_kernels(operation)
    if kind in NORMALIZATIONS:
        return _scaling_of_normalization(operation)
    return fixed(f"{kind.__name__} is not known to be homogeneous")


def is_homogeneous(activation):
    """Whether `activation(c * x) == c * activation(x)` for all `c > 0`."""
    kind = type(activation)
    if activation is None or kind in (keras.layers.LeakyReLU, keras.layers.PReLU):
        return True
    if kind is keras.layers.Activation:
        return is_homogeneous(activation.activation)
    # `keras.activations.relu` makes an operation with the attributes of the layer.
    if kind is keras.layers.ReLU or _kinds_of_ops().get(kind) == "relu":
        return activation.max_value is None and not activation.threshold
    return any(activation is known for known in _activations())


@functools.cache
def _activations():
    """Lists the homogeneous functions of Keras and of the backend in use."""
    backend = sys.modules[keras.backend.backend()]
    nn = getattr(backend, "nn", None)
    functional = getattr(nn, "functional", None)  # of PyTorch
    modules = (keras.activations, keras.ops, backend, nn, functional)
    relus = [getattr(m, name, None) for m in modules for name in ("relu", "leaky_relu")]
    return [keras.activations.linear, *relus]


@functools.cache
def _kinds_of_ops():
    """Finds the class of the operation that each function of `_OPS` records.

    The names of these classes change between versions of Keras.

    Returns:
        Dict from classes to the kinds in `_OPS`, or `"relu"`.
    """
    x = keras.KerasTensor((2, 2, 2, 2))
    with leaving_no_traces():
        outputs = [("relu", keras.activations.relu(x))]
        for kind, names, call in _OPS:
            for name in names.split():
                # Not in this Keras, or called in another way: then it is not known.
                with contextlib.suppress(AttributeError, TypeError, ValueError):
                    outputs.append((kind, call(getattr(keras.ops, name), x)))
        return {type(keras.Function(x, y).operations[-1]): k for k, y in outputs}


def replaced_method(operation):
    """Returns the name of a method that is replaced on the instance alone, or ""."""
    return next((name for name in _REPLACEABLE if name in vars(operation)), "")


def is_known(layer):
    """Whether it is known what a layer with weights does with them."""
    kinds = (*_KERNELS, *NORMALIZATIONS, keras.layers.PReLU)
    return type(layer) in kinds and not replaced_method(layer)


def is_of_keras(thing):
    """Whether the class of a layer, or of anything else, ships with Keras."""
    return type(thing).__module__.split(".")[0] == "keras"


def is_float(dtype):
    """Whether the dtype is floating-point."""
    return keras.backend.is_float_dtype(keras.backend.standardize_dtype(dtype))


def gamma_of(layer):
    """Returns the variable that scales the output of a normalization, or `None`."""
    if type(layer) not in NORMALIZATIONS:
        return None
    own = {variable.name: variable for variable in layer.weights}
    return own.get("gamma", own.get("scale"))


def _scaling_of_kernels(layer):
    names = _KERNELS[type(layer)]
    # An activation may be a layer with weights of its own, such as PReLU.
    inside = {id(v) for v in getattr(layer.activation, "weights", ())}
    own = {v.name: v for v in layer.weights if id(v) not in inside}
    known = {*names, "bias"}
    extra = sorted(set(own) - known)
    if extra:
        # For example, those of LoRA and of quantization.
        return fixed(f"it has weights that are not known: {', '.join(extra)}")
    reason = _why_not_scaled(own.values())
    if reason:
        return fixed(reason)
    output = ""
    if not is_homogeneous(layer.activation):
        output = f"{_described(layer.activation)} is not homogeneous"
    shifts = tuple(v for name, v in own.items() if name == "bias")
    return Scaling(tuple(own[name] for name in names), shifts, "", output)


def _scaling_of_normalization(layer):
    reason = "its input is normalized, up to epsilon"
    if type(layer) is keras.layers.BatchNormalization and not layer.trainable:
        return fixed("it is frozen: it normalizes nothing, and adds constants")
    gamma = gamma_of(layer)
    if gamma is None:
        return Scaling((), (), reason, "it has no gamma to be scaled")
    shifts = tuple(v for v in layer.weights if v.name == "beta")
    return Scaling((gamma,), shifts, reason, _why_not_scaled((gamma, *shifts)))


def _why_not_scaled(variables):
    for variable in variables:
        if not variable.trainable:
            return f"its {variable.name} is frozen"
        constraint = variable.constraint
        if constraint is not None and type(constraint) is not keras.constraints.NonNeg:
            return f"its {variable.name} has a constraint, {_name_of(constraint)}"
    return ""


def _scaling_of_op(operation, node):
    # A constant that is added to a tensor keeps it from being scaled.
    kind = _kinds_of_ops().get(type(operation))
    arguments = keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
    tensors = [x for x in arguments if isinstance(x, keras.KerasTensor)]
    others = [x for x in arguments if not isinstance(x, keras.KerasTensor)]
    keeps_scale = {
        None: False,
        "relu": kind == "relu" and is_homogeneous(operation),
        "one": len(tensors) == 1 and getattr(operation, "initial", None) is None,
        "list": not others,
        "sum": all(x is None or _is_zero(x) for x in others),
        "product": len(tensors) == 1,
        "quotient": len(tensors) == 1 and arguments[0] is tensors[0],
    }
    if keeps_scale[kind]:
        return Scaling()
    return fixed(f"{type(operation).__name__} is not known to be homogeneous")


def _is_zero(value):
    return isinstance(value, numbers.Real) and value == 0


def _described(activation):
    if type(activation) is not keras.layers.ReLU:
        return _name_of(activation)
    limits = {"max_value": activation.max_value, "threshold": activation.threshold}
    given = ", ".join(f"{name}={value:g}" for name, value in limits.items() if value)
    return f"ReLU({given})"


def _name_of(thing):
    return getattr(thing, "__name__", type(thing).__name__)
