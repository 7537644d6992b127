"""What differs between the backends and has no function in Keras."""

import sys

import keras
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
    if backend == "torch":
        import torch

        return torch.no_grad()(lambda: function(values()))
    return lambda: function(values())
