"""The layers of a model, and those inside them."""

from keras_weissi._utils.keras_private import sublayers


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
