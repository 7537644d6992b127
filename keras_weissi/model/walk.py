"""The layers of a model, and those inside them."""

import gc

import keras

from keras_weissi._utils.keras_private import sublayers

# What `build` is where it makes no kernel or gamma but those of the layers inside.
_BUILDS = (
    *(kind.build for kind in (keras.Layer, keras.Model, keras.Sequential)),
    *(
        getattr(keras.layers, name).build
        for name in (
            *("Add", "Subtract", "Concatenate", "Dot"),  # Add's is that of the others
            *("Attention", "AdditiveAttention", "Normalization", "PReLU"),
            *("AugMix", "RandAugment", "RandomColorJitter", "StringLookup"),
            *("TextVectorization", "Discretization"),
        )
        if hasattr(keras.layers, name)  # some came in later versions
    ),
)


def layers_of(model):
    """Lists a model and all layers inside it, depth first, each once."""
    return [layer for layer, _ in walk(model)]


def walk(layer, parents=None, seen=None):
    """Yields each layer once, depth first, with the layers that contain it."""
    seen = set() if seen is None else seen
    if id(layer) in seen:
        return
    seen.add(id(layer))
    yield layer, parents or ()
    around = () if parents is None else (*parents, layer)
    for sub in sublayers(layer):
        yield from walk(sub, around, seen)


def models_sharing_layers(model):
    """Lists the models that have a layer in common with a model, and itself.

    No layer knows which models hold it, but Python's garbage collector knows all that
    are alive, unless they were frozen by `gc.freeze`.
    """
    own = layers_of(model)
    alive = gc.get_objects()  # not as a part of a list, which it would then contain
    models = {id(x): x for x in own + alive if issubclass(type(x), keras.Model)}
    ids = set(map(id, own))
    return [x for x in models.values() if not ids.isdisjoint(map(id, layers_of(x)))]


def own_variables(layer):
    """Lists the weights of a layer that belong to none of the layers inside it."""
    below = {id(v) for sub in sublayers(layer) for v in sub.weights}
    return [v for v in layer.weights if id(v) not in below]


def unbuilt_layers(model):
    """Lists the paths of the layers inside that may make kernels yet, outermost first.

    Returns:
        List of tuples of layers, without the model itself.
    """
    return [
        (*parents, layer)
        for layer, parents in walk(model)
        if not (layer.built or makes_nothing(layer))
        and all(parent.built or makes_nothing(parent) for parent in parents)
    ]


def makes_nothing(layer):
    """Whether `build` makes no kernel or gamma but those of the layers inside."""
    return type(layer).build in _BUILDS
