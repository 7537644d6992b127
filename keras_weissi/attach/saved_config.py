"""Where a layer keeps the regularizer of a kernel, and whether it is saved with it."""

import keras

from keras_weissi._utils.keras_private import regularizer_attributes
from keras_weissi.model.homogeneity import is_of_keras


def places_of(kernel):
    """Lists where the regularizer of a kernel is kept for the saved configuration.

    Returns:
        List of pairs of a layer and the name of its attribute; empty if the layer has
        no argument for it.
    """
    stem = kernel.variable.name
    names = [f"{stem}_regularizer", f"{stem.removesuffix('_kernel')}_regularizer"]
    if stem == "kernel":
        names.append("depthwise_regularizer")  # DepthwiseConv calls it that
    places = [(kernel.layer, name) for name in names if hasattr(kernel.layer, name)][:1]
    attention = attention_around(kernel)
    if attention is not None:
        # It makes its inner layers again from its own argument.
        places += [(attention, name) for name in regularizer_attributes(attention)]
    return places


def attention_around(kernel):
    """Returns the attention layer around a kernel, or `None`."""
    kinds = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)
    if kernel.parents and isinstance(kernel.parents[-1], kinds):
        return kernel.parents[-1]
    return None


def lost_by(kernel, places, model, keeps_layers):
    """Finds the layer that loses the regularizer of a kernel when the model is saved.

    Args:
        kernel: `Kernel`.
        places: What `places_of` says of it.
        model: The `keras.Model`.
        keeps_layers: The function below, or a cached one: it is slow for large models.

    Returns:
        The `keras.Layer`, or `None` if the regularizer is saved.
    """
    layer = kernel.layer
    if not places:
        return layer
    for around in (model, *kernel.parents):
        if not keeps_layers(around):
            return around
    if is_of_keras(layer):
        return None
    config = _config_of(layer)
    is_saved = any(owner is layer and name in config for owner, name in places)
    return None if is_saved else layer


def keeps_layers(layer):
    """Whether a layer's config includes the configs of its inner layers.

    If not, loading runs the code of its class, which makes them without a regularizer.
    """
    return is_of_keras(layer) or isinstance(_config_of(layer).get("layers"), list)


def _config_of(layer):
    """Returns the configuration of a custom layer, empty if it has none."""
    try:
        return layer.get_config()
    except Exception:  # whatever the user's code raises
        return {}


def set_all(changes):
    """Sets all attributes, or none if one of the owners refuses.

    Args:
        changes: Iterable of triples of an owner, the name of its attribute, and a
            regularizer or `None`.
    """
    done = []
    try:
        for owner, name, regularizer in changes:
            old = getattr(owner, name)
            setattr(owner, name, regularizer)
            done.append((owner, name, old))
    except BaseException:
        for owner, name, old in reversed(done):
            setattr(owner, name, old)
        raise
