"""What each kind of layer does to the scale of its input.

A function `f` is (positively) homogeneous if `f(c * x) == c * f(x)` for all `c > 0`.
Layers not listed here are assumed not to be homogeneous. To support another one, add
its class to a table (or a case to `scaling_of`), and test a model with it.
"""

import functools
import sys

import keras

from keras_weissi.model.operations import (
    has_scale,
    is_float,
    is_relu,
    is_zero,
    relations_of_op,
)
from keras_weissi.model.scaling import Relation, declared_relations, is_declared


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

# Layers whose output is linear in each of their inputs.
_PRODUCTS = _classes("Multiply", "Dot")

# Layers that take integers.
_LOOKUPS = _classes("Embedding")

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
    **dict.fromkeys(_LOOKUPS, ("embeddings",)),
    **dict.fromkeys(
        _classes("SeparableConv1D", "SeparableConv2D"),
        ("depthwise_kernel", "pointwise_kernel"),
    ),
}

# Methods that a user may replace on one layer, which changes what it computes.
_REPLACEABLE = ("call", "convolution_op")


def relations_of(layer, node):
    """Tells what one call of a layer, or of a function of `keras.ops`, does to scale.

    Args:
        layer: The `keras.Operation`, such as a `keras.Layer`. Custom classes are
            unknown, and so are subclasses of known ones.
        node: The call, with `input_tensors`, `output_tensors` and `arguments`.

    Returns:
        List of `Relation`, or str: why nothing is known.
    """
    kind = type(layer)
    name = kind.__name__
    inputs, outputs = node.input_tensors, node.output_tensors
    if replaced := replaced_method(layer):
        return f"its `{replaced}` is not that of its class"
    if not isinstance(layer, keras.Layer):
        relations = relations_of_op(layer, node, is_homogeneous)
        return relations or f"{name} is not known to be homogeneous"
    if is_declared(layer):
        return declared_relations(layer, node)
    if kind is keras.layers.Softmax:
        return _fixed(layer, node, "softmax is not homogeneous")
    looks_up = kind in _LOOKUPS
    if looks_up and is_float(inputs[0].dtype):
        return f"{name} rounds its input to integers"
    dtypes = [x.dtype for x in (*inputs[looks_up:], *outputs)]
    for dtype in (*dtypes, layer.compute_dtype or "float32"):
        if not is_float(dtype):
            return f"{name} with a tensor of {dtype}, which has no scale"
    is_only_tensors = len(keras.tree.flatten(node.arguments.args)) == len(inputs)
    if kind in _JOINS and is_only_tensors:
        return [Relation.keep(*outputs, *inputs)]
    if kind in _PRODUCTS and is_only_tensors and not getattr(layer, "normalize", False):
        return [Relation.product(*outputs, *inputs)]
    if len(inputs) != 1:
        return f"{name} called with {len(inputs)} tensors"
    (source,), output = inputs, outputs[0]
    if kind in _KEEPERS:
        return [Relation.keep(output, source)]
    if kind in (keras.layers.ReLU, keras.layers.Activation):
        activation = getattr(layer, "activation", layer)
        if is_homogeneous(activation):
            return [Relation.keep(output, source)]
        return _fixed(layer, node, f"{_described(activation)} is not homogeneous")
    if kind is keras.layers.Rescaling and is_zero(layer.offset):
        return [Relation.keep(output, source)]
    if kind in _KERNELS:
        return _relations_of_kernels(layer, source, output)
    if kind is keras.layers.BatchNormalization and not layer.trainable:
        reason = "it is frozen: it normalizes nothing, and adds constants"
        return _fixed(layer, node, reason)
    if kind in NORMALIZATIONS:
        return _relations_of_normalization(layer, source, output)
    return f"{name} is not known to be homogeneous"


def is_homogeneous(activation):
    """Whether `activation(c * x) == c * activation(x)` for all `c > 0`."""
    kind = type(activation)
    if activation is None or kind in (keras.layers.LeakyReLU, keras.layers.PReLU):
        return True
    if kind is keras.layers.Activation:
        return is_homogeneous(activation.activation)
    # `keras.activations.relu` makes an operation with the attributes of the layer.
    if kind is keras.layers.ReLU or is_relu(activation):
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


def replaced_method(operation):
    """Returns the name of a method that is replaced on the instance alone, or ""."""
    return next((name for name in _REPLACEABLE if name in vars(operation)), "")


def is_of_keras(thing):
    """Whether the class of a layer, or of anything else, ships with Keras."""
    return type(thing).__module__.split(".")[0] == "keras"


def gamma_of(layer):
    """Returns the variable that scales the output of a normalization, or `None`."""
    if type(layer) not in NORMALIZATIONS:
        return None
    own = {variable.name: variable for variable in layer.weights}
    return own.get("gamma", own.get("scale"))


def why_fixed(variable):
    """Tells why a weight keeps its value, or ""."""
    if not variable.trainable:
        return f"its {variable.name} is frozen"
    constraint = variable.constraint
    if constraint is not None and type(constraint) is not keras.constraints.NonNeg:
        return f"its {variable.name} has a constraint, {_name_of(constraint)}"
    if not is_float(variable.dtype):
        return f"its {variable.name} is of {variable.dtype}"
    return ""


def _fixed(layer, node, reason):
    tensors = (*node.input_tensors, *node.output_tensors)
    return [
        Relation.fixed(*filter(has_scale, (*tensors, *layer.weights)), reason=reason)
    ]


def _relations_of_kernels(layer, source, output):
    names = _KERNELS[type(layer)]
    activation = getattr(layer, "activation", None)
    # An activation may be a layer with weights of its own, such as PReLU.
    inside = {id(v) for v in getattr(activation, "weights", ())}
    own = {v.name: v for v in layer.weights if id(v) not in inside}
    if extra := sorted(set(own) - {*names, "bias"}):
        # For example, those of LoRA and of quantization.
        return f"it has weights that are not known: {', '.join(extra)}"
    between = [keras.KerasTensor(output.shape, output.dtype) for _ in names[1:]]
    ends = [source, *between, output]
    relations = [
        Relation.kernel(own[name], ends[i], ends[i + 1]) for i, name in enumerate(names)
    ]
    if "bias" in own:
        relations.append(Relation.added(own["bias"], output))
    if not is_homogeneous(activation):
        reason = f"{_described(activation)} is not homogeneous"
        relations.append(Relation.fixed(output, reason=reason))
    return relations


def _relations_of_normalization(layer, source, output):
    relations = [Relation.normalized(source)]
    gamma = gamma_of(layer)
    if gamma is None:
        reason = "it has no gamma to be scaled"
        return [*relations, Relation.fixed(output, reason=reason)]
    betas = [v for v in layer.weights if v.name == "beta"]
    relations += [Relation.kernel(gamma, source, output)]
    return [*relations, *(Relation.added(beta, output) for beta in betas)]


def _described(activation):
    if type(activation) is not keras.layers.ReLU:
        return _name_of(activation)
    limits = {"max_value": activation.max_value, "threshold": activation.threshold}
    given = ", ".join(f"{name}={value:g}" for name, value in limits.items() if value)
    return f"ReLU({given})"


def _name_of(thing):
    return getattr(thing, "__name__", type(thing).__name__)
