"""Where a layer keeps the regularizer of a kernel, so that it is saved with it."""

import keras

from keras_weissi._utils.keras_private import regularizer_slots
from keras_weissi.model.homogeneity import is_of_keras


def slots_of(kernel):
    """Lists the attributes that go into the saved configuration."""
    stem = kernel.variable.name
    names = [f"{stem}_regularizer", f"{stem.removesuffix('_kernel')}_regularizer"]
    if stem == "kernel":
        names.append("depthwise_regularizer")  # DepthwiseConv calls it that
    slots = [(kernel.layer, name) for name in names if hasattr(kernel.layer, name)][:1]
    attention = attention_around(kernel)
    if attention is not None:
        # They make their inner layers anew from an argument of their own.
        slots += [(attention, name) for name in regularizer_slots(attention)]
    return slots


def attention_around(kernel):
    """Returns the attention layer around a kernel, or `None`."""
    kinds = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)
    if kernel.parents and isinstance(kernel.parents[-1], kinds):
        return kernel.parents[-1]
    return None


def check_attention(found, plan, notes, refused):
    """Sees to it that the kernels of an attention layer are served alike.

    If one of them cannot be, none is. If the user asked for a difference, it raises.
    """
    groups: dict[int, tuple] = {}
    for kernel in found:
        attention = attention_around(kernel)
        if attention is not None:
            groups.setdefault(id(attention), (attention, []))[1].append(kernel.name)
    for attention, names in groups.values():
        planned = [name for name in names if name in plan]
        barred = [name for name in names if name in refused]
        if planned and barred:
            for name in planned:
                del plan[name]
                notes[name] = f"left out with {barred[0]}: {notes[barred[0]]}"
                refused.append(name)
            continue
        configs = {str((type(plan[n]), plan[n].get_config())) for n in planned}
        if len(configs) > 1 or 0 < len(planned) < len(names):
            raise ValueError(
                "Invalid value for argument `layers` or `regularizer`. Expected the "
                f"same regularizer for every kernel of layer {attention.name!r}, which "
                "saves only one for all of them. Received: different ones"
            )


def keeps_slots(layer, slots):
    """Whether the saved configuration of a layer has the regularizers set on it."""
    if is_of_keras(layer):
        return True
    config = _config_of(layer)
    return any(owner is layer and name in config for owner, name in slots)


def keeps_layers(layer):
    """Whether the saved configuration of a layer has those of the layers inside it.

    If not, the code of its class makes them anew.
    """
    return is_of_keras(layer) or isinstance(_config_of(layer).get("layers"), list)


def _config_of(layer):
    """Returns the configuration of a layer of the user's own, empty if it has none."""
    try:
        return layer.get_config()
    except Exception:  # whatever the user's code raises
        return {}


def set_all(changes):
    """Sets all attributes, or none if one of the owners does not let it.

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
