"""Runs code of the user on each backend: traced, compiled, or as it is."""

import contextlib
import functools
import hashlib
import random

import keras
import numpy as np

from keras_weissi._utils.backend import torch

_MOST_PROGRAMS, _LONGEST = 64, 2**20  # the longest has tables of numbers in it
_programs: dict = {}  # of JAX, by what they do


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
                program = _compiled(jax.jit(function, keep_unused=True).lower(*args))
            except Exception:  # its code asks for values
                program = function
        return program(*args)

    return run


def _compiled(lowered):
    """Compiles code, or finds the program of equal code."""
    text = lowered.as_text()
    # Which Python function is called back is not in the text.
    is_all = not any(word in text for word in ("callback", "stablehlo.send"))
    if not is_all or len(text) > _LONGEST:
        return lowered.compile()
    key = hashlib.sha256(text.encode()).digest(), lowered.in_tree, lowered.out_tree
    program = _programs.pop(key, None) or lowered.compile()
    _programs[key] = program
    if len(_programs) > _MOST_PROGRAMS:
        del _programs[next(iter(_programs))]  # the longest unused
    return program


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
