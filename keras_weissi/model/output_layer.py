"""Which layer makes the output of a model."""

import keras

from keras_weissi._utils.keras_private import nodes_of
from keras_weissi.model.graph import Graph, unwrapped
from keras_weissi.model.operations import activation_of_op


def find_output_layer(model):
    """Finds the layer that makes the output of a model, before softmax or sigmoid.

    Args:
        model: A built `keras.Model`.

    Returns:
        Triple of the layer, of a list of the activations after it, in any order, and of
        the number of classes; or `None` if it cannot be seen, the model has several
        outputs, or the layer is called more than once.
    """
    graph = Graph(model)
    function = graph.root
    if function is None or len(function.outputs) != 1:
        return None
    tensor, activations = function.outputs[0], []
    classes = tensor.shape[-1]
    while True:
        nodes = nodes_of(function)
        made = [(n, i) for n in nodes for i in _positions(n, tensor)]
        if not made:
            return None
        node, position = made[0]
        layer = node.operation
        if sum(other.operation is layer for other in nodes) > 1:
            return None
        inner = graph.inner(node)
        if inner is not None:
            function, tensor = inner, inner.outputs[position]
        elif type(layer) is keras.layers.Activation:
            activations.append(layer.activation)
            tensor = node.input_tensors[0]
        elif type(layer) is keras.layers.Softmax and layer.axis == -1:
            activations.append(keras.activations.softmax)
            tensor = node.input_tensors[0]
        elif activation := activation_of_op(layer):
            activations.append(activation)
            tensor = node.input_tensors[0]
        else:
            layer = unwrapped(layer)
            return layer, [*activations, getattr(layer, "activation", None)], classes


def _positions(node, tensor):
    return [i for i, output in enumerate(node.output_tensors) if output is tensor]
