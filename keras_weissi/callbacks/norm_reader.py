"""Reads the norms of a model while it trains: on the device, in one transfer."""

import math

from keras import ops

from keras_weissi._utils.backend import compile_function, frobenius_norm, stack
from keras_weissi.regularizers import WEISSI, dtype_of_sums


def make_norm_reader(watched, model):
    """Builds a function that reads the norms and the penalty of a model.

    The function computes everything on the device and transfers the result once. It
    reads a kernel once, or twice if its direction is penalized. Kernels and
    regularizers are fixed when it is built; the values are read on every call.

    Args:
        watched: List of `Kernel`.
        model: The `keras.Model` whose weight penalties are added up.

    Returns:
        Function without arguments that returns a pair: a float64 array of the
        Frobenius norms of `watched`, and the weight regularization loss as a float.
        Norms are computed in float32 (float64 for float64 kernels), so they are 0
        below 1e-19 and infinite above 1.8e19.
    """
    watched = [kernel.variable for kernel in watched]
    penalized = [v for v in model.trainable_variables if v.regularizer is not None]
    by_sums: dict[str, list] = {}
    others = []
    for variable in penalized:
        # A subclass may compute something else.
        if type(variable.regularizer) is WEISSI:
            config = str(variable.regularizer.get_config())
            by_sums.setdefault(config, []).append(variable)
        else:
            others.append(variable)
    variables = list({id(v): v for v in [*watched, *penalized]}.values())
    position = {id(v): i for i, v in enumerate(variables)}
    dtypes = {dtype_of_sums(v.dtype) for v in variables}
    dtype = max(dtypes, default="float32")  # "float64" if there is one

    def measure(values):
        norm = {}

        def value_of(variable):
            value = values[position[id(variable)]]
            exact = variable.dtype in ("float32", "float64")
            return value if exact else ops.cast(value, "float32")

        def norm_of(variable):
            key = id(variable)
            if key not in norm:
                norm[key] = frobenius_norm(value_of(variable))
                if len(dtypes) > 1:
                    norm[key] = ops.cast(norm[key], dtype)
            return norm[key]

        result = [norm_of(variable) for variable in watched]
        penalty = ops.zeros((), dtype)
        for group in by_sums.values():
            regularizer = group[0].regularizer
            square = ops.square(stack([norm_of(v) for v in group]))
            absolute = sizes = None
            if regularizer.direction_l1:
                sums = [ops.sum(ops.absolute(value_of(v))) for v in group]
                absolute = stack([ops.cast(s, dtype) for s in sums])
                sizes = [float(math.prod(v.shape)) for v in group]
                sizes = ops.convert_to_tensor(sizes, dtype)
            penalty += ops.sum(regularizer.penalty_from_sums(square, absolute, sizes))
        for v in others:
            penalty += ops.cast(v.regularizer(values[position[id(v)]]), dtype)
        return stack([*result, penalty])

    run_eagerly = getattr(model, "run_eagerly", False)
    compiled = compile_function(measure, variables, run_eagerly)

    def read():
        numbers = ops.convert_to_numpy(compiled()).astype("float64")
        return numbers[:-1], float(numbers[-1])

    return read
