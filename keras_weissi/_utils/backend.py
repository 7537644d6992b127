"""What differs between the backends and has no function in Keras."""

import sys

import keras
import numpy as np
from keras import ops


def is_first_process():
    """Whether this process is the only one, or the first of those that train together.

    The first has rank 0 in `torch.distributed`, and index 0 in `jax.distributed`, which
    `keras.distribution.initialize` starts.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.process_index() == 0
    # It cannot be initialized if it was never imported.
    if backend == "torch" and "torch.distributed" in sys.modules:
        distributed = sys.modules["torch.distributed"]
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank() == 0
    return True


def to_numpy(tensor):
    """Returns a tensor as a NumPy array, even if other processes hold parts of it.

    In that case all processes must call this function.
    """
    if not getattr(tensor, "is_fully_addressable", True):
        if not tensor.is_fully_replicated:
            from jax.experimental.multihost_utils import process_allgather

            return process_allgather(tensor, tiled=True)
    return ops.convert_to_numpy(tensor)


def frobenius_norm(x):
    """Returns the norm of all elements, in one pass and without a temporary."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return ops.sqrt(2.0 * tf.nn.l2_loss(x))
    if backend == "torch":
        from torch.linalg import vector_norm

        # In one call, the float32 norm of a large kernel is wrong in the fourth digit.
        return vector_norm(vector_norm(x, dim=-1))
    return ops.sqrt(ops.sum(x * x))


if keras.backend.backend() == "torch":
    # Keras's functions cost several calls each, and the time of a small kernel's
    # penalty is that of the calls.
    import torch
    from torch import log, relu, sqrt, stack
else:
    torch = None  # type: ignore[assignment]
    log, relu, sqrt, stack = ops.log, ops.relu, ops.sqrt, ops.stack


def is_float32_of_torch(x):
    """Whether `x` is a tensor of PyTorch, and on that backend needs no conversion."""
    return torch is not None and getattr(x, "dtype", None) is torch.float32


def minus_decay(x, square, floor):
    """Returns `x - max(1 - square / floor, 0)`."""
    if torch is None:
        return x - relu(1.0 - square * (1.0 / floor))
    # A call less. The difference is exactly 0 at the floor, so its gradient is too.
    return torch.sub(x, relu(floor - square), alpha=1.0 / floor)


def at_least(x, low):
    """Returns finite numbers, not below `low`; NaN stays NaN.

    The gradient of a number that equals `low` is 1.
    """
    # Not Keras's `clip`: JAX halves that gradient, PyTorch rounds float64 bounds.
    if torch is not None:
        return torch.clamp(x, low, torch.finfo(x.dtype).max)
    high = float(np.finfo(keras.backend.standardize_dtype(x.dtype)).max)
    high = ops.convert_to_tensor(high, x.dtype)
    return bounded_below(ops.where(x > high, high, x), low)


def bounded_below(x, low):
    """Returns numbers, not below `low`; NaN stays NaN."""
    # The gradient of `threshold` is one call, that of `clamp` three.
    if torch is not None:
        number = isinstance(low, float)
        return torch.threshold(x, low, low) if number else torch.maximum(x, low)
    low = ops.convert_to_tensor(low, x.dtype)
    return ops.where(x < low, low, x)


# The two reductions read the kernel once forward and once backward:
#
# - TensorFlow differentiates a sum by filling an array of the kernel's size with the
#   incoming scalar, then multiplies. A custom gradient multiplies by the scalar.
# - On JAX, the derivative of `absolute` at 0 is 1. A custom gradient makes it 0, as on
#   the other backends, without reading the kernel again. The price is the forward-mode
#   derivative of the direction term.
# - It is `x * x` because the derivative of `square`, 2 * x, overflows before x does.


def sum_of_squares(x):
    """Returns the sum of the squares of all elements."""
    if keras.backend.backend() == "tensorflow":
        return _sum_of_squares(x)
    return (x * x).sum()


def sum_of_absolutes(x):
    """Returns the sum of the absolute values of all elements."""
    return _sum_of_absolutes(x) if torch is None else x.abs().sum()


@ops.custom_gradient
def _sum_of_squares(x):
    return ops.sum(x * x), lambda upstream: (2.0 * upstream) * x


@ops.custom_gradient
def _sum_of_absolutes(x):
    return ops.sum(ops.absolute(x)), lambda upstream: upstream * ops.sign(x)


def compile_function(function, variables, run_eagerly=False):
    """Returns a function without arguments: `function` of the variables' values.

    TensorFlow and JAX compile it, unless `run_eagerly`. Keras has no public API for it.
    """
    backend = keras.backend.backend()

    def values():
        return [variable.value for variable in variables]

    if backend == "tensorflow" and not run_eagerly:
        import tensorflow as tf

        # A concrete function: otherwise TensorFlow warns of repeated retracing when
        # there are many loggers.
        traced = tf.function(lambda: function(values()), autograph=False)
        return traced.get_concrete_function()
    if backend == "jax" and not run_eagerly:
        import jax

        jitted = jax.jit(function)
        return lambda: jitted(values())
    if torch is not None:
        return torch.no_grad()(lambda: function(values()))
    return lambda: function(values())
