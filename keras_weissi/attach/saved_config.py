"""Where a layer keeps the regularizer of a kernel, and whether it is saved with it."""

import contextlib
import inspect
import warnings
from typing import NamedTuple

import keras

from keras_weissi._utils.keras_private import (
    leaving_no_traces,
    regularizer_attributes,
    sublayers,
)
from keras_weissi._utils.run_code import random_state_kept
from keras_weissi.model.homogeneity import is_of_keras
from keras_weissi.model.kernels import attention_around
from keras_weissi.model.walk import layers_of, own_variables


class Loaded(NamedTuple):
    """What would act on a weight if the model was saved and loaded."""

    layer: keras.Layer  # the outermost one that makes it again
    regularizer: keras.regularizers.Regularizer | None = None
    is_known: bool = False


def described(regularizer):
    """Returns a string that is the same for equal regularizers, or `None` for none."""
    if regularizer is None:
        return None
    try:
        config = regularizer.get_config()
    except (AttributeError, NotImplementedError):  # a function, for example
        config = getattr(regularizer, "__name__", "")
    return str((type(regularizer), config))


def places_of(kernel):
    """Lists where the regularizer of a kernel is kept for the saved configuration.

    Returns:
        List of pairs of a layer and the name of its attribute; empty if the layer has
        no argument for it.
    """
    # Variables without a name are called "variable".
    stems = [n for n, v in vars(kernel.layer).items() if v is kernel.variable]
    names = [
        f"{base}_regularizer"
        for stem in (kernel.variable.name, *stems)
        for base in (stem, stem.removesuffix("_kernel"))
    ]
    if kernel.variable.name == "kernel":
        names.append("depthwise_regularizer")  # DepthwiseConv calls it that
    places = [(kernel.layer, name) for name in names if hasattr(kernel.layer, name)][:1]
    attention = attention_around(kernel)
    if attention is not None:
        # It makes its inner layers again from its own argument.
        places += [(attention, name) for name in regularizer_attributes(attention)]
    return places


def after_loading(model, decisions):
    """Finds what would act on weights if the model was saved and loaded.

    It reads the configuration back as loading does, and makes layers from it again. The
    constructors run, but no weights are made unless the code needs them.

    Args:
        model: The `keras.Model`.
        decisions: List of `Decision`. Layers without a change and without `WEISSI` are
            passed over.

    Returns:
        Dict from the ids of variables to `Loaded`. Without those of layers that keep
        what they are given.
    """
    found: dict[int, Loaded] = {}
    decided = {id(d.kernel.variable): d for d in decisions}
    for layer in _saved_alone(model):
        ids = list(map(id, layer.weights))
        inside = [decided[key] for key in ids if key in decided]
        if not any(d.is_ours for d in inside) or _is_kept(layer, inside):
            continue
        found.update({key: Loaded(layer) for key in ids})
        for variable, again in _made_again(layer):
            found[id(variable)] = Loaded(layer, again.regularizer, is_known=True)
    return found


def _is_kept(layer, decisions):
    """Whether all layers inside are Keras's own, and each kernel has its own argument.

    To serialize anything, Keras imports TensorFlow, which takes seconds elsewhere.
    """
    inside = layers_of(layer)
    put = [d.kernel for d in decisions if d.is_ours and d.regularizer]
    if not (all(map(is_of_keras, inside)) and all(map(places_of, put))):
        return False
    # Only wrappers make a layer again from the configuration of another.
    return not any(isinstance(x, keras.layers.Wrapper) for x in inside) or (
        all(d.is_ours for d in decisions)
        and len({described(d.regularizer) for d in decisions}) == 1
    )


def _saved_alone(layer):
    """Yields the outermost layers that are more than a graph of layers."""
    if isinstance(layer, keras.Model) and is_of_keras(layer):
        for sub in sublayers(layer):
            yield from _saved_alone(sub)
    else:
        yield layer


def _made_again(layer):
    """Lists pairs of a weight and the one that loading makes for it."""
    objects = _objects_of(layer)
    with warnings.catch_warnings(), leaving_no_traces(), random_state_kept():
        warnings.simplefilter("ignore")
        # In the first, variables have no values, and some code needs them.
        for scope in (
            keras.StatelessScope(initialize_variables=False),
            contextlib.nullcontext(),
        ):
            try:
                with scope:
                    config = keras.saving.serialize_keras_object(layer)
                    config.pop("compile_config", None)
                    again = keras.saving.deserialize_keras_object(
                        config, objects, safe_mode=False
                    )
                    return list(_pairs(layer, again, set()))
            except Exception:  # whatever the user's code raises
                continue
    if all(map(is_of_keras, layers_of(layer))):  # they hold what cannot be found here
        return [(variable, variable) for variable in layer.weights]
    return []


def _objects_of(layer):
    """Collects classes and functions that need not be registered.

    Those who load a model may name them in `custom_objects`.
    """
    objects = {}
    for inside in layers_of(layer):
        for value in (inside, *vars(inside).values()):
            is_function = inspect.isfunction(value)
            thing = value if is_function else type(value)
            is_ours = str(thing.__module__).split(".")[0] != "keras"
            if is_ours and (is_function or hasattr(thing, "get_config")):
                objects[thing.__name__] = thing
    return objects


def _pairs(old, new, seen):
    if id(old) in seen:
        return
    seen.add(id(old))
    if old.built and not new.built and (config := old.get_build_config()):
        new.build_from_config(config)
    variables = own_variables(old), own_variables(new)
    if len(variables[0]) == len(variables[1]):
        for a, b in zip(*variables, strict=True):
            if tuple(a.shape) == tuple(b.shape):
                yield a, b
    inside = sublayers(old), sublayers(new)
    if len(inside[0]) == len(inside[1]):
        for a, b in zip(*inside, strict=True):
            yield from _pairs(a, b, seen)


@contextlib.contextmanager
def set_all(changes):
    """Sets all attributes, or none if one of the owners, or the code inside, raises.

    Args:
        changes: Iterable of triples of an owner, the name of its attribute, and a
            value.
    """
    done = []
    try:
        for owner, name, value in changes:
            old = getattr(owner, name)
            setattr(owner, name, value)
            done.append((owner, name, old))
        yield
    except BaseException:
        for owner, name, old in reversed(done):
            setattr(owner, name, old)
        raise
