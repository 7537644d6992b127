"""What differs between the backends and has no function in Keras."""

import contextlib
import functools
import random
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


_MOST_PROGRAMS = 64
_programs: dict = {}  # of JAX, by their text


def compiled_whole(function):
    """Returns a function of lists of tensors as one program on JAX, else as it is.

    JAX compiles each operation that runs by itself, which takes seconds for those of a
    layer. What cannot be compiled runs as it is. Equal code is compiled once.

    Args:
        function: Function that returns a list of tensors.
    """
    if keras.backend.backend() != "jax":
        return function
    import jax

    program = None

    def run(*args):
        nonlocal program
        if program is None:
            try:
                lowered = jax.jit(function, keep_unused=True).lower(*args)
                text = lowered.as_text()
                program = _programs.pop(text, None) or lowered.compile(
                    compiler_options={
                        "xla_backend_optimization_level": 0,
                        "xla_llvm_disable_expensive_passes": True,
                    }
                )
                _programs[text] = program
                if len(_programs) > _MOST_PROGRAMS:
                    del _programs[next(iter(_programs))]  # the longest unused
            except Exception:  # its code asks for values
                program = function
        return program(*args)

    return run


def storage_of(tensor):
    """Returns what identifies the memory of a tensor or of a backend's variable."""
    backend = keras.backend.backend()
    if backend == "torch":
        return tensor.untyped_storage().data_ptr() or None
    if backend == "tensorflow":
        # A variable on many devices has one for each, and refuses.
        with contextlib.suppress(AttributeError, ValueError):
            return id(tensor.handle)
    return id(tensor)


def can_trace():
    """Whether functions can be run without values, so that all branches are taken."""
    return keras.backend.backend() in ("jax", "tensorflow")


def storages_traced(function, shapes_and_dtypes):
    """Traces a function of a list of tensors, as a compiler does.

    Returns:
        Set of the storages that the function captures, see `storage_of`.
    """

    def without_result(tensors):
        function(tensors)

    if keras.backend.backend() == "jax":
        import jax

        specs = [jax.ShapeDtypeStruct(*x) for x in shapes_and_dtypes]
        # What is compiled already would not ask for values again.
        with jax.disable_jit():
            captured = jax.make_jaxpr(without_result)(specs).consts
    else:
        import tensorflow as tf

        specs = [tf.TensorSpec(*x) for x in shapes_and_dtypes]
        traced = tf.function(without_result, autograph=False)
        captured = traced.get_concrete_function(specs).captured_inputs
    return set(map(storage_of, captured))


def storages_run(function, tensors):
    """Runs a function of a list of tensors, without compiling.

    Returns:
        Set of the storages that the backend knows to be used, see `storage_of`.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        with jax.disable_jit():
            function(tensors)
        return set()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            function(tensors)
        return set(map(storage_of, tape.watched_variables()))
    from torch.overrides import TorchFunctionMode

    used = set()

    class Notes(TorchFunctionMode):
        def __torch_function__(self, called, types, args=(), kwargs=None):
            for x in keras.tree.flatten((args, kwargs or {})):
                if isinstance(x, torch.Tensor) and x.layout == torch.strided:
                    used.add(storage_of(x))
            return called(*args, **(kwargs or {}))

    with torch.no_grad(), torch.compiler.set_stance("force_eager"), Notes():
        function(tensors)
    return used


def without_gradients():
    """Lets PyTorch record nothing for the gradient."""
    return contextlib.nullcontext() if torch is None else torch.no_grad()


@contextlib.contextmanager
def values_kept(things):
    """Puts back the values of TensorFlow's variables and of PyTorch's buffers."""
    undo = []
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        for x in things:
            if isinstance(x, tf.Variable):
                undo.append(functools.partial(x.assign, x.numpy()))
    if torch is not None:
        for x in things:
            if isinstance(x, torch.nn.Module):
                for buffer in x.buffers(recurse=False):
                    undo.append(functools.partial(buffer.copy_, buffer.clone()))
    try:
        yield
    finally:
        for put_back in undo:
            put_back()


@contextlib.contextmanager
def random_state_kept():
    """Puts back the state of random numbers that is not in variables of Keras."""
    states = random.getstate(), np.random.get_state()
    with contextlib.ExitStack() as exits:
        if torch is not None:
            exits.enter_context(torch.random.fork_rng())
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
