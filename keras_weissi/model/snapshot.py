"""Puts back what running the code of a user changes."""

import collections
import contextlib
import copy
import functools
import inspect
import random
import sys
import threading
from typing import Any

import keras
import numpy as np

from keras_weissi._utils.keras_private import (
    leaving_no_traces,
    refuse_parts,
    tracking_of,
)
from keras_weissi._utils.run_code import random_state_kept, values_kept
from keras_weissi.model.homogeneity import is_of_keras
from keras_weissi.model.walk import layers_of

_LARGEST_ARRAY = 2**20  # bytes
_MOST = 10_000  # of what is looked at: code may get at all of a program
_GENERATORS = (np.random.Generator, random.Random)
# What `build` is of layers that merge tensors: it only looks at their shapes.
_MERGING = [
    kind.build
    for kind in (
        keras.layers.Add,  # and all that inherit from what it does
        keras.layers.Concatenate,
        keras.layers.Dot,
        keras.layers.Subtract,
    )
]
# Methods of Keras and variables of the backends are replaced meanwhile.
_ONE_AT_A_TIME = threading.RLock()


class UnbuiltError(RuntimeError):
    """Code calls a layer that would make weights now."""


@contextlib.contextmanager
def state_kept(code):
    """Puts back what code changes: attributes, containers, buffers, random numbers.

    Of all layers and objects that the code can be seen to use. Layers that are not
    built raise an `UnbuiltError` if they would get weights.

    Args:
        code: A function, a layer, or a list of them.
    """
    with _ONE_AT_A_TIME, _state_kept(code):
        yield


@contextlib.contextmanager
def _state_kept(code):
    found: dict[int, object] = {}
    _find(code, found)
    layers = [part for part in code if isinstance(part, keras.Layer)]
    for layer in (x for part in layers for x in layers_of(part)):
        _find_own(layer, found)
    for layer in [x for x in found.values() if isinstance(x, keras.Layer)]:
        found.update((id(x), x) for x in tracking_of(layer))
    things = list(found.values())
    before = [(thing, _content_of(thing)) for thing in things]
    for thing in things:
        if isinstance(thing, keras.Layer) and not thing.built:
            if type(thing).build is keras.Layer.build:
                vars(thing)["built"] = True
                refuse_parts(thing)
            elif type(thing).build not in _MERGING:
                vars(thing)["build"] = _refuse_to_build
    try:
        with random_state_kept(), leaving_no_traces(), values_kept(things):
            yield
    finally:
        for thing, content in before:
            _put_back(thing, content)


def _find(thing, found):
    """Adds a thing, and all that it can be seen to use, by their ids."""
    if id(thing) in found or len(found) >= _MOST or not _has_state(thing):
        return
    found[id(thing)] = thing
    inside: list = []
    if isinstance(thing, (list, tuple, set, collections.deque)):
        # On TensorFlow, a list that is an attribute keeps what it holds twice.
        inside = [*thing, *getattr(thing, "__dict__", {}).values()]
    elif isinstance(thing, dict):
        inside = list(thing.values())
    elif inspect.isfunction(thing):
        inside = used_by(thing)
    elif isinstance(thing, functools.partial):
        inside = [thing.func, thing.args, thing.keywords]
    elif inspect.ismethod(thing):
        inside = [thing.__self__, thing.__func__]
    else:
        names = ("__wrapped__", "python_function")  # of what is compiled
        inside = [getattr(thing, name, None) for name in names]
        inside += getattr(thing, "__dict__", {}).values()
    for part in inside:
        _find(part, found)


def _find_own(layer, found):
    """Adds a layer and its containers, however much there is besides."""
    found[id(layer)] = layer
    for value in vars(layer).values():
        for x in (value, *getattr(value, "__dict__", {}).values()):
            if isinstance(x, (list, dict, set)):
                found[id(x)] = x


def used_by(function):
    """Lists what a function gets at by its closure, its defaults and its globals."""
    found = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty one
            found.append(cell.cell_contents)
    codes = [function.__code__]
    for code in codes:
        codes += filter(inspect.iscode, code.co_consts)
        found += [function.__globals__.get(name) for name in code.co_names]
    return found


def _has_state(thing):
    if isinstance(thing, _GENERATORS):
        return True
    if isinstance(thing, (type(None), type(sys), type, str, bytes, int, float)):
        return False
    if is_of_keras(thing):
        kinds = (keras.Operation, list, dict, set)
        return isinstance(thing, kinds) or inspect.isroutine(thing)
    if isinstance(thing, np.ndarray):
        return thing.flags.writeable and thing.nbytes <= _LARGEST_ARRAY
    is_plain = type(thing).__module__.split(".")[0] in ("jax", "jaxlib", "numpy")
    return not is_plain or hasattr(thing, "__wrapped__")


def _content_of(thing):
    for kind in (list, dict, set, collections.deque):
        if isinstance(thing, kind):
            return kind(thing)
    if isinstance(thing, np.ndarray):
        return thing.copy()
    if isinstance(thing, np.random.Generator):
        return copy.deepcopy(thing.bit_generator.state)
    if isinstance(thing, random.Random):
        return thing.getstate()
    return dict(getattr(thing, "__dict__", {}))


def _put_back(thing, content):
    """Writes what has changed, past the code that watches over changes."""
    kind = type(content)
    if isinstance(thing, np.random.Generator):
        thing.bit_generator.state = content
        return
    if isinstance(thing, random.Random):
        thing.setstate(content)
        return
    if kind is np.ndarray:
        thing[...] = content
        return
    target = thing if isinstance(thing, kind) else getattr(thing, "__dict__", {})
    now, then = (
        list(map(id, (*x, *(x.values() if kind is dict else ()))))
        for x in (target, content)
    )
    if now != then:
        kind.clear(target)
        is_row = kind in (list, collections.deque)
        put: Any = kind.extend if is_row else kind.update
        put(target, content)


def _refuse_to_build(*args, **kwargs):
    raise UnbuiltError("it holds a layer that is not built")
