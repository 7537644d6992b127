"""Checks a whole model against what is known of its scales."""

import functools
import warnings

import keras
import numpy as np

from keras_weissi._utils.keras_private import nodes_of
from keras_weissi._utils.validation import check_model
from keras_weissi.model.operations import is_float
from keras_weissi.model.reads import described, in_mode
from keras_weissi.symmetry.find_groups import seen_as_shown
from keras_weissi.symmetry.trials import TRIES, Code, Trial, is_close, random_values


def check_scaling(model: keras.Model, seed: int = 0) -> None:
    """Shifts all free scales at random, and compares every tensor that can be seen.

    For those who declare layers with `register_scaling`, and for tests: `scale_groups`
    itself tries what it sees inside custom layers, and leaves out what does not hold.
    The model stays as it is.

    Args:
        model: A built `keras.Model`.
        seed: int, of the random factors and inputs. Defaults to `0`.

    Raises:
        ValueError: If a tensor is not multiplied by the factor that it should be. The
            message names the layer that returns the first one, innermost layers first.

    Examples:
        >>> import keras
        >>> from keras_weissi.symmetry import check_scaling
        >>> model = keras.Sequential([
        ...     keras.Input((4,)),
        ...     keras.layers.Dense(3, "relu"),
        ...     keras.layers.Dense(2),
        ... ])
        >>> check_scaling(model)
    """
    check_model(model)
    graph, unknowns, reduction = seen_as_shown(model)
    trial = Trial(reduction, np.random.default_rng(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for function in reversed(graph.functions):
            _check_function(model, graph, unknowns, trial, function)


def _check_function(model, graph, unknowns, trial, function):
    trace = graph.traces.get(id(function))
    stand_ins = {} if trace is None else trace.weights
    calls = [
        (tensor, node.operation)
        for node in nodes_of(function)
        for tensor in node.output_tensors
        if is_float(tensor.dtype) and id(tensor) not in stand_ins
    ]
    tensors = [tensor for tensor, _ in calls]
    numbers = {id(x): unknowns.number_of(function, x) for x in tensors}
    powers = {key: trial.log2_of(number) for key, number in numbers.items()}
    weights = trial.values_of(unknowns.weights)
    variables = [*model.variables, *unknowns.weights.values()]
    for training in (False, True):
        call = functools.partial(_evaluate, function, stand_ins, tensors, training)
        code = Code(call, model, function.inputs, variables, training)
        before, after = _tried(function, code, weights, powers, trial.rng)
        for (tensor, operation), y, z in zip(calls, before, after, strict=True):
            factor = 2.0 ** powers[id(tensor)]
            if not is_close(z, y * factor, tensor.dtype):
                where = f" in layer {trace.layer.name!r}" if trace else ""
                raise ValueError(
                    f"Expected the output of {operation.name!r}{where}, of class "
                    f"{type(operation).__name__}, to be multiplied by {factor:g} when "
                    "the scales are shifted. Received: another output"
                    f"{' in training' if training else ''}"
                )


def _tried(function, code, weights, powers, rng):
    """Evaluates tensors before and after the shift."""
    error = ""
    for size, ids in TRIES:
        values = random_values(code.symbols, size, ids, rng)
        shifts = zip(({}, powers), weights, strict=True)
        try:
            return [code.run(values, shift, given) for shift, given in shifts]
        except Exception as e:
            error = error or described(e)
    raise ValueError(
        f"Expected {function.name!r} to run on random inputs. Received: {error}"
    )


def _evaluate(function, stand_ins, tensors, training, known):
    """Makes the calls in a function again, and returns the values of its tensors."""
    known |= {key: variable.value for key, variable in stand_ins.items()}
    for node in nodes_of(function):
        if not node.input_tensors:
            continue  # an input, or a weight in its place
        args, kwargs = keras.tree.map_structure(
            lambda x: known.get(id(x), x), (node.arguments.args, node.arguments.kwargs)
        )
        named = in_mode(node.operation, kwargs, training)
        outputs = keras.tree.flatten(node.operation(*args, **named))
        outputs = [x for x in outputs if x is not None]
        known.update(zip(map(id, node.output_tensors), outputs, strict=True))
    return [known[id(x)] for x in tensors]
