"""What each function of `keras.ops` does to the scale of its arguments."""

import contextlib
import functools
import numbers

import keras

from keras_weissi._utils.keras_private import leaving_no_traces
from keras_weissi.model.scaling import Relation

# Functions by what they do, each with a call that records one, as the names of the
# classes that they record change between versions of Keras.
#
# - one: the output has the scale of the first argument, the only tensor;
# - join, sum: all tensors, and the output, have one scale; numbers have to be 0;
# - select: likewise, but the first argument is a condition;
# - compare: likewise, but the output has no scale;
# - product: the output is linear in each tensor;
# - square, root, inverse root, inverse, power, ratio: as their names say;
# - sign: the output does not depend on the scale;
# - fixed, softmax, sigmoid: no multiple of what comes in gives a multiple;
# - attention: what multiplies the queries and the keys must cancel.
_OPS = (
    ("one", "absolute amax amin convert_to_tensor copy cumsum", lambda f, x: f(x)),
    ("one", "flip leaky_relu max mean median min negative ravel", lambda f, x: f(x)),
    ("one", "relu rot90 sort squeeze std stop_gradient sum trace", lambda f, x: f(x)),
    ("one", "diagonal transpose tril triu unstack", lambda f, x: f(x)),
    ("one", "expand_dims get_item repeat roll split tile", lambda f, x: f(x, 1)),
    ("one", "adaptive_average_pool adaptive_max_pool", lambda f, x: f(x, (1, 1))),
    ("one", "average_pool max_pool", lambda f, x: f(x, 1)),
    ("one", "moveaxis swapaxes", lambda f, x: f(x, 0, 1)),
    ("one", "broadcast_to reshape", lambda f, x: f(x, x.shape)),
    ("one", "cast", lambda f, x: f(x, x.dtype)),
    ("one", "slice", lambda f, x: f(x, (0, 0, 0, 0), (1, 1, 1, 1))),
    ("one", "take", lambda f, x: f(x, [0])),
    ("one", "take_along_axis", lambda f, x: f(x, keras.ops.cast(x, "int32"), 0)),
    ("join", "concatenate dstack hstack stack vstack", lambda f, x: f([x, x])),
    ("join", "fmax fmin maximum minimum pad", lambda f, x: f(x, 1)),
    ("sum", "add subtract", lambda f, x: f(x, 1)),
    ("select", "where", lambda f, x: f(keras.ops.greater(x, 0), x, x)),
    ("compare", "equal greater greater_equal", lambda f, x: f(x, x)),
    ("compare", "less less_equal not_equal", lambda f, x: f(x, x)),
    ("product", "dot inner matmul multiply outer tensordot vdot", lambda f, x: f(x, x)),
    ("product", "einsum", lambda f, x: f("abcd,abcd->abcd", x, x)),
    ("product", "conv depthwise_conv", lambda f, x: f(x, x)),
    ("square", "square var", lambda f, x: f(x)),
    ("root", "sqrt", lambda f, x: f(x)),
    ("inverse root", "rsqrt", lambda f, x: f(x)),
    ("inverse", "reciprocal", lambda f, x: f(x)),
    ("power", "power", lambda f, x: f(x, 2)),
    ("ratio", "divide true_divide", lambda f, x: f(x, 1)),
    ("fixed", "elu exp gelu log relu6 selu silu", lambda f, x: f(x)),
    ("fixed", "softplus tanh", lambda f, x: f(x)),
    ("softmax", "softmax", lambda f, x: f(x)),
    ("sigmoid", "sigmoid", lambda f, x: f(x)),
    ("sign", "ones_like sign zeros_like", lambda f, x: f(x)),
    ("attention", "dot_product_attention", lambda f, x: f(x, x, x)),
)

_POWERS = {"square": 2, "root": 0.5, "inverse root": -0.5, "inverse": -1}


@functools.cache
def _kinds():
    """Finds the class of operation that each function of `_OPS` records.

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


def is_relu(operation):
    """Whether it is the operation that `keras.activations.relu` records."""
    return _kinds().get(type(operation)) == "relu"


def activation_of_op(operation):
    """Returns `softmax` or `sigmoid` of `keras.activations`, or `None` for another."""
    kind = _kinds().get(type(operation))
    if kind == "softmax" and operation.axis != -1:
        return None
    return {
        "softmax": keras.activations.softmax,
        "sigmoid": keras.activations.sigmoid,
    }.get(kind)


def is_sum(operation):
    """Whether it is the sum, or the difference, of two tensors."""
    return _kinds().get(type(operation)) == "sum"


def relations_of_op(operation, node, is_homogeneous):
    """Tells what one call of a function of `keras.ops` does to scale.

    Args:
        operation: The `keras.Operation`.
        node: The call, with `input_tensors`, `output_tensors` and `arguments`.
        is_homogeneous: Function that tells whether an activation is.

    Returns:
        List of `Relation`, or `None` if nothing is known.
    """
    leaves = keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
    outputs = [y for y in node.output_tensors if has_scale(y)]
    # Numbers, integers and bools are what they are.
    scaled = [x for x in leaves if has_scale(x)]
    others = [x for x in leaves if x is not None and not has_scale(x)]
    first = leaves[0] if has_scale(leaves[0]) else None
    is_only_one = first is not None and len(scaled) == 1
    if not scaled:
        return [Relation.fixed(*outputs, reason="made of what has no scale")]
    kind = _kinds().get(type(operation))
    if len(outputs) < len(node.output_tensors) and kind != "compare":
        return None  # for example, a cast to integers
    if kind == "relu" and is_homogeneous(operation):
        kind = "one"
    if kind == "one" and getattr(operation, "initial", None) is None:
        if is_only_one:
            return [Relation.keep(first, *outputs)]
    elif kind in ("join", "sum", "compare") and all(map(is_zero, others)):
        return [Relation.keep(scaled[0], *scaled[1:], *outputs)]
    elif kind == "select" and first is None and all(map(is_zero, others[1:])):
        return [Relation.keep(scaled[0], *scaled[1:], *outputs)]
    elif kind == "product":
        return [Relation.product(outputs[0], *scaled)]
    elif kind in _POWERS and is_only_one:
        return [Relation.power(outputs[0], first, _POWERS[kind])]
    elif kind == "power" and is_only_one and is_number(others[-1:]):
        with contextlib.suppress(ValueError):
            return [Relation.power(outputs[0], first, others[-1])]
    elif kind == "ratio":
        above, below = (x if has_scale(x) else None for x in leaves[:2])
        if above is None:
            return [Relation.power(outputs[0], below, -1)]
        if below is None:
            return [Relation.keep(outputs[0], above)]
        return [Relation.ratio(outputs[0], above, below)]
    elif kind == "sum":
        reason = "something is added that has no scale"
        return [Relation.fixed(*scaled, *outputs, reason=reason)]
    elif kind in ("fixed", "softmax", "sigmoid"):
        reason = f"{type(operation).__name__.lower()} is not homogeneous"
        return [Relation.fixed(*scaled, *outputs, reason=reason)]
    elif kind == "sign":
        return [Relation.fixed(*outputs, reason="it does not depend on the scale")]
    elif kind == "attention" and len(scaled) == 3 and all(map(has_scale, leaves[:3])):
        query, key, value = scaled
        fixed = Relation((((query, 1), (key, 1)),), reason="a softmax of their product")
        return [fixed, Relation.keep(value, outputs[0])]
    return None


def has_scale(x):
    """Whether it is a floating-point tensor or weight."""
    is_tensor = isinstance(x, (keras.KerasTensor, keras.Variable))
    return is_tensor and is_float(x.dtype)


@functools.cache  # as Keras looks long at a dtype of its backend
def is_float(dtype):
    """Whether the dtype is floating-point."""
    return keras.backend.is_float_dtype(keras.backend.standardize_dtype(dtype))


def is_zero(value):
    """Whether it is the number 0."""
    return isinstance(value, numbers.Real) and value == 0


def is_number(values):
    """Whether a list holds one number."""
    return [isinstance(value, numbers.Real) for value in values] == [True]
