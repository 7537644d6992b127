import importlib
import inspect
import operator
import subprocess
import sys

import keras
import numpy as np
import pytest
import scipy.linalg
from helpers import BACKEND, to_numpy
from keras import layers, ops

from keras_weissi import balance_scales, scale_groups
from keras_weissi._utils.keras_private import nodes_of
from keras_weissi.model import homogeneity, operations
from keras_weissi.model.homogeneity import is_homogeneous, relations_of, why_fixed

IMAGE, SERIES, VECTOR, VOLUME = (6, 6, 4), (6, 4), (4,), (4, 4, 4, 2)
C = 8.0  # a power of 2: exact


def shape_for(kind):
    rank = next((int(c) for c in kind if c in "123"), None)
    return {1: SERIES, 2: IMAGE, 3: VOLUME, None: VECTOR}[rank]


def made(kind):
    """A layer of the class, with the arguments that it cannot do without."""
    arguments = {
        "Reshape": ((2, 2),),
        "Permute": ((1,),),
        "RepeatVector": (3,),
        "Dropout": (0.5,),
        "GaussianDropout": (0.5,),
        "EinsumDense": ("ab,bc->ac", (3,)),
        "Rescaling": (2.0,),
        "Activation": ("relu",),
        "DepthwiseConv1D": (3,),
        "DepthwiseConv2D": (3,),
        "Dense": (3,),
    }
    if "Spatial" in kind:
        return getattr(layers, kind)(0.5)
    if kind.startswith("AveragePooling"):
        return getattr(layers, kind)(2)
    if kind.startswith("Adaptive"):
        return getattr(layers, kind)(2)
    if "Conv" in kind and "Depthwise" not in kind:
        return getattr(layers, kind)(3, 3, padding="same")
    return getattr(layers, kind)(*arguments.get(kind, ()))


def call_of(model):
    """The last call in a model: what is called, and the node."""
    node = nodes_of(model)[-1]
    return node.operation, node


def applied(function, *shapes, dtype="float32"):
    inputs = [keras.Input(shape, dtype=dtype) for shape in shapes]
    return keras.Model(inputs, function(*inputs))


def why_unknown(model):
    """Why nothing is known of the last call, or "" if something is."""
    relations = relations_of(*call_of(model))
    return relations if isinstance(relations, str) else ""


def is_fixed(model):
    """Whether nothing is known of the last call, or all that has a scale is fixed."""
    _, node = call_of(model)
    relations = relations_of(*call_of(model))
    if isinstance(relations, str):
        return True
    equations = [e for relation in relations for e in relation.equations]
    fixed = {id(e[0][0]) for e in equations if len(e) == 1}
    tensors = (*node.input_tensors, *node.output_tensors)
    return all(id(x) in fixed for x in tensors if keras.backend.is_float_dtype(x.dtype))


def why_restricted(model):
    """The reasons that the relations of the last call give."""
    relations = relations_of(*call_of(model))
    assert not isinstance(relations, str), relations
    return " and ".join(relation.reason for relation in relations)


def outputs_at(model, *scales):
    rng = np.random.default_rng(0)
    inputs = []
    for x in model.inputs:
        value = 2 * rng.normal(size=(2, *x.shape[1:]))
        value = np.abs(value) if "int" in x.dtype else value
        inputs.append(value.astype(x.dtype))
    scales = scales or (1.0,) * len(inputs)
    inputs = [(c * x).astype(x.dtype) for c, x in zip(scales, inputs, strict=True)]
    return [to_numpy(x) for x in keras.tree.flatten(model(inputs))]


def unique(things):
    """Those that have a scale, each once, in order."""
    return list({id(x): x for x in things if "float" in x.dtype}.values())


def check_scales(model, *basis):
    """Checks what scales a model's last call lets tensors and weights have.

    Each row of `basis` is one way to scale them: powers of `C` for the inputs, for the
    weights in the order of the relations, and one for all outputs. All others must be
    combinations of these, and the model must compute what they say.
    """
    _, node = call_of(model)
    relations = relations_of(*call_of(model))
    assert not isinstance(relations, str), relations
    inputs, outputs = unique(node.input_tensors), unique(node.output_tensors)
    scaled = unique(x for relation in relations for x in relation.scaled)
    weights = [x for x in scaled if isinstance(x, keras.Variable)]
    ends = [*inputs, *weights, *outputs]
    column = {id(x): i for i, x in enumerate(unique([*ends, *scaled]))}
    equations = [e for relation in relations for e in relation.equations]
    matrix = np.zeros((len(equations), len(column)))
    for i, equation in enumerate(equations):
        for x, power in equation:
            if "float" in x.dtype:
                matrix[i, column[id(x)]] += power
    matrix = np.vstack([matrix, np.zeros(len(column))])
    allowed = scipy.linalg.null_space(matrix)[: len(ends)]
    known = len(inputs) + len(weights)
    rows = [(*row[:known], *row[known:] * len(outputs)) for row in basis]
    rows = np.array(rows, float).reshape(len(basis), len(ends)).T

    def rank(rows):  # NumPy 2.0 raises where there is nothing
        return np.linalg.matrix_rank(rows) if rows.size else 0

    both = np.hstack([allowed, rows])
    assert rank(allowed) == rank(rows) == rank(both) == len(basis), allowed
    before = outputs_at(model)
    values = [to_numpy(v) for v in weights]
    for row in rows.T:
        scales = C**row
        for v, value, scale in zip(
            weights, values, scales[len(inputs) :], strict=False
        ):
            v.assign(value * scale)
        given = scales[: len(inputs)] if inputs else ()
        for one, after in zip(before, outputs_at(model, *given), strict=True):
            if outputs:
                one = one * scales[-1]
            limit = 1e-6 * max(1.0, np.abs(one).max())
            np.testing.assert_allclose(after, one, rtol=1e-5, atol=limit)
        for v, value in zip(weights, values, strict=True):
            v.assign(value)


def check_keeps_scale(model):
    check_scales(model, (1,) * (len(model.inputs) + 1))
    assert all(np.abs(y).max() > 0 for y in outputs_at(model))


@pytest.mark.parametrize("kind", [k.__name__ for k in homogeneity._KEEPERS])
def test_layers_that_keep_scale(kind):
    check_keeps_scale(applied(made(kind), shape_for(kind)))


@pytest.mark.parametrize("kind", [k.__name__ for k in homogeneity._JOINS])
def test_layers_that_join(kind):
    check_keeps_scale(applied(lambda x, y: made(kind)([x, y]), VECTOR, VECTOR))


@pytest.mark.parametrize(
    "layer",
    [
        layers.ReLU(negative_slope=0.3),
        layers.Activation("leaky_relu"),
        layers.Activation(layers.LeakyReLU()),
        layers.Rescaling(3.0),
        layers.ZeroPadding2D(2),
        layers.UpSampling2D(2, interpolation="bilinear"),
        layers.AveragePooling2D(3, padding="same"),
    ],
    ids=lambda layer: layer.name,
)
def test_layers_that_keep_scale_as_they_are_configured(layer):
    check_keeps_scale(applied(layer, IMAGE))


UNARY_OPS = {
    "absolute": ops.abs,
    "amax": lambda x: ops.amax(x, axis=-1),
    "amin": lambda x: ops.amin(x, axis=-1),
    "average_pool": lambda x: ops.average_pool(x, (2, 2), (2, 2)),
    "broadcast_to": lambda x: ops.broadcast_to(x[:, None], (2, 3, *IMAGE)),
    "cast": lambda x: ops.cast(x, "float16"),
    "convert_to_tensor": lambda x: ops.convert_to_tensor(x, "float32"),
    "copy": ops.copy,
    "cumsum": lambda x: ops.cumsum(x, axis=1),
    "diagonal": lambda x: ops.diagonal(x, axis1=1, axis2=2),
    "expand_dims": lambda x: ops.expand_dims(x, -1),
    "flip": lambda x: ops.flip(x, 1),
    "get_item": lambda x: x[:, 1],
    "leaky_relu": lambda x: ops.leaky_relu(x),
    "max": lambda x: ops.max(x, axis=1),
    "max_pool": lambda x: ops.max_pool(x, (2, 2), (2, 2)),
    "mean": lambda x: ops.mean(x, axis=1),
    "median": lambda x: ops.median(x, axis=1),
    "min": lambda x: ops.min(x, axis=1),
    "moveaxis": lambda x: ops.moveaxis(x, 1, 2),
    "negative": lambda x: -x,
    "pad": lambda x: ops.pad(x, [[0, 0], [1, 1], [0, 0], [0, 0]]),
    "ravel": ops.ravel,
    "relu": ops.relu,
    "repeat": lambda x: ops.repeat(x, 2, axis=1),
    "reshape": lambda x: ops.reshape(x, (-1, 36, 4)),
    "roll": lambda x: ops.roll(x, 1, axis=1),
    "rot90": lambda x: ops.rot90(x, axes=(1, 2)),
    "slice": lambda x: ops.slice(x, (0, 1, 0, 0), (2, 2, 2, 2)),
    "sort": lambda x: ops.sort(x, axis=-1),
    "split": lambda x: ops.split(x, 2, axis=-1),
    "squeeze": lambda x: ops.squeeze(x[:, :1], 1),
    "std": lambda x: ops.std(x, axis=1),
    "stop_gradient": ops.stop_gradient,
    "sum": lambda x: ops.sum(x, axis=1),
    "swapaxes": lambda x: ops.swapaxes(x, 1, 2),
    "take": lambda x: ops.take(x, [0, 2], axis=1),
    "take_along_axis": lambda x: ops.take_along_axis(x, ops.argsort(x, 1), 1),
    "tile": lambda x: ops.tile(x, (1, 2, 1, 1)),
    "trace": lambda x: ops.trace(x, axis1=1, axis2=2),
    "transpose": lambda x: ops.transpose(x, (0, 2, 1, 3)),
    "tril": ops.tril,
    "triu": ops.triu,
    "unstack": lambda x: ops.unstack(x, axis=1),
    "adaptive_average_pool": lambda x: ops.adaptive_average_pool(x, (2, 2)),
    "adaptive_max_pool": lambda x: ops.adaptive_max_pool(x, (2, 2)),
}
BINARY_OPS = {
    "concatenate": lambda x, y: ops.concatenate([x, y], axis=1),
    "dstack": lambda x, y: ops.dstack([x[..., 0], y[..., 0]]),
    "hstack": lambda x, y: ops.hstack([x, y]),
    "stack": lambda x, y: ops.stack([x, y], axis=1),
    "vstack": lambda x, y: ops.vstack([x, y]),
    "add": lambda x, y: x + y,
    "maximum": lambda x, y: ops.maximum(x, y),
    "minimum": lambda x, y: ops.minimum(x, y),
    "subtract": lambda x, y: x - y,
    "fmax": lambda x, y: ops.fmax(x, y),
    "fmin": lambda x, y: ops.fmin(x, y),
    "where": lambda x, y: ops.where(x > 0, x, y),
}
PRODUCTS = {
    "conv": lambda x, y: ops.conv(x, ops.reshape(y[0], (3, 3, 4, 4))),
    "depthwise_conv": lambda x, y: ops.depthwise_conv(
        x, ops.reshape(y[0], (3, 3, 4, 4))
    ),
    "dot": lambda x, y: ops.dot(x, y[0, 0, 0]),
    "einsum": lambda x, y: ops.einsum("bijk,bijl->bkl", x, y),
    "inner": lambda x, y: ops.inner(x, y[0, 0, :]),
    "matmul": lambda x, y: ops.matmul(x, ops.swapaxes(y, 2, 3)),
    "multiply": lambda x, y: x * y,
    "outer": lambda x, y: ops.outer(x[0, 0, 0], y[0, 0, 0]),
    "tensordot": lambda x, y: ops.tensordot(x, y[0, 0], axes=[[2], [0]]),
    "vdot": lambda x, y: ops.vdot(x[0, 0, 0], y[0, 0, 0]),
}
COMPARISONS = ("equal", "greater", "greater_equal", "less", "less_equal", "not_equal")
# How many tensors each takes, and how they may be scaled (see `check_scales`).
FIXED = "elu exp gelu log relu6 selu sigmoid silu softmax softplus tanh".split()
OTHER_OPS = {
    **{name: (getattr(ops, name), 1) for name in FIXED},
    **{name: (f, 2, (1, 0, 1), (0, 1, 1)) for name, f in PRODUCTS.items()},
    **{name: (getattr(ops, name), 2, (1, 1)) for name in COMPARISONS},
    "divide": (ops.divide, 2, (1, 0, 1), (0, 1, -1)),
    "true_divide": (ops.true_divide, 2, (1, 0, 1), (0, 1, -1)),
    "square": (ops.square, 1, (1, 2)),
    "var": (lambda x: ops.var(x, axis=1), 1, (1, 2)),
    "power": (lambda x: ops.abs(x) ** 1.5, 1, (2, 3)),
    "sqrt": (lambda x: ops.sqrt(ops.abs(x)), 1, (2, 1)),
    "rsqrt": (lambda x: ops.rsqrt(ops.abs(x)), 1, (2, -1)),
    "reciprocal": (ops.reciprocal, 1, (1, -1)),
    "sign": (ops.sign, 1, (1, 0)),
    "ones_like": (ops.ones_like, 1, (1, 0)),
    "zeros_like": (ops.zeros_like, 1, (1, 0)),
    "dot_product_attention": (
        ops.dot_product_attention,
        3,
        (1, -1, 0, 0),
        (0, 0, 1, 1),
    ),
}


def backend_functions(*names):
    """Functions of the backend, by their paths in its module."""
    module = importlib.import_module(BACKEND)
    return [operator.attrgetter(name)(module) for name in names]


def backend_relus():
    names = ["nn.relu", "nn.leaky_relu"]
    if BACKEND == "torch":
        names = ["relu", "nn.functional.relu", "nn.functional.leaky_relu"]
    return backend_functions(*names)


def test_every_function_that_is_listed_is_tested():
    listed = [name for _, names, _ in operations._OPS for name in names.split()]
    assert sorted([*UNARY_OPS, *BINARY_OPS, *OTHER_OPS]) == sorted(listed)


@pytest.mark.parametrize("name", [*UNARY_OPS, *BINARY_OPS])
def test_functions_that_keep_scale(name):
    if not hasattr(ops, name):
        pytest.skip("newer than this Keras")
    if name in UNARY_OPS:
        model = applied(UNARY_OPS[name], IMAGE)
    else:
        model = applied(BINARY_OPS[name], IMAGE, IMAGE)
    check_keeps_scale(model)


@pytest.mark.parametrize("name", OTHER_OPS)
def test_functions_that_change_scale(name):
    function, count, *basis = OTHER_OPS[name]
    check_scales(applied(function, *[IMAGE] * count), *basis)


@pytest.mark.parametrize(
    ("function", "basis"),
    [
        (lambda x: 3.0 * x, (1, 1)),
        (lambda x: x / 4.0, (1, 1)),
        (lambda x: 1.0 / x, (1, -1)),
        (lambda x: x * x, (1, 2)),
        (lambda x: ops.abs(x) ** (1 / 3), (3, 1)),
        (lambda x: x**0, (1, 0)),
        (lambda x: x * np.ones(4, "float32"), (1, 1)),
        (lambda x: ops.matmul(np.ones((6, 6), "float32"), x), (1, 1)),
        (lambda x: ops.where(x > 0, x, 0), (1, 1)),
        (lambda x: ops.where(x > 0, 0.0, x), (1, 1)),
        (lambda x: x > 0, (1,)),
        (lambda x: layers.Multiply()([x, x]), (1, 2)),
    ],
)
def test_numbers_and_repetitions_among_the_arguments(function, basis):
    check_scales(applied(function, IMAGE), basis)


@pytest.mark.parametrize(
    "layer", [layers.Multiply(), layers.Dot(axes=-1)], ids=["Multiply", "Dot"]
)
def test_layers_that_multiply(layer):
    model = applied(lambda x, y: layer([x, y]), VECTOR, VECTOR)
    check_scales(model, (1, 0, 1), (0, 1, 1))


@pytest.fixture
def renamed_operations():
    """As if Keras renamed the classes of all operations."""
    module = importlib.import_module(
        type(call_of(applied(ops.max, IMAGE))[0]).__module__
    )
    kinds = [k for k in vars(module).values() if inspect.isclass(k)]
    kinds = {k: k.__name__ for k in kinds if issubclass(k, keras.Operation)}
    for kind, name in kinds.items():
        kind.__name__ = f"Other{name}"
    yield
    for kind, name in kinds.items():
        kind.__name__ = name


@pytest.mark.parametrize("name", ["amax", "reshape", "multiply", "add", "stack"])
def test_operations_are_known_whatever_their_classes_are_called(
    name, renamed_operations
):
    if name in OTHER_OPS:
        test_functions_that_change_scale(name)
    else:
        test_functions_that_keep_scale(name)


def test_an_operation_of_another_class_of_the_same_name_is_not_known():
    class Relu(keras.Operation):
        def call(self, x):
            return ops.relu(x)

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape, x.dtype)

    assert why_unknown(applied(lambda x: Relu()(x), IMAGE))


def test_finding_the_classes_of_operations_changes_no_names():
    keras.utils.clear_session()
    operations._kinds.cache_clear()
    operations._kinds()
    assert layers.Add().name == "add" and layers.ReLU().name == "re_lu"


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + 1.0,
        lambda x: 1.0 - x,
        lambda x: 2.0**x,
        lambda x: x ** np.ones(4, "float32"),
        lambda x: ops.where(x > 0, x, 1.0),
        lambda x: ops.where(x, x, x),
        lambda x: x > 1.0,
        lambda x: ops.floor(x),
        lambda x: ops.argmax(x),
        lambda x: ops.dot_product_attention(x, x, x, bias=x[..., :1, :1, :1]),
        lambda x: layers.Dot(axes=-1, normalize=True)([x[:, 0, 0], x[:, 0, 0]]),
        lambda x: ops.maximum(x, 0.5),
        lambda x: ops.relu6(x),
        lambda x: ops.softmax(x),
        lambda x: ops.max(x, axis=1, initial=0.5),
        lambda x: ops.pad(x, [[0, 0], [1, 1], [0, 0], [0, 0]], constant_values=1.0),
        lambda x: ops.concatenate([x, np.ones((1, *IMAGE), "float32")], axis=0),
        lambda x: x + np.ones(4, "float32"),
        layers.Softmax(),
        layers.ELU(),
        layers.ReLU(max_value=6.0),
        layers.ReLU(threshold=0.1),
        layers.Activation("gelu"),
        layers.Rescaling(2.0, offset=-1.0),
        layers.GaussianNoise(0.1),
        layers.Lambda(lambda x: x),
        layers.ActivityRegularization(0.1),
        lambda x: layers.Add()([x, np.ones((1, *IMAGE), "float32")]),
    ],
)
def test_what_is_not_homogeneous_or_not_known_is_fixed(function):
    try:
        model = applied(function, IMAGE)
    except (TypeError, ValueError) as error:
        pytest.skip(f"Keras does not take it: {error}")
    assert is_fixed(model)


def test_what_becomes_an_integer_is_fixed():
    model = applied(lambda x: ops.cast(x, "int32"), IMAGE)
    if not why_unknown(model):
        check_scales(model)


def test_zero_is_the_one_constant_that_may_be_added():
    check_keeps_scale(applied(lambda x: ops.maximum(x, 0.0), IMAGE))
    check_keeps_scale(applied(lambda x: x + 0, IMAGE))
    padding = [[0, 0], [1, 1], [0, 0], [0, 0]]
    check_keeps_scale(applied(lambda x: ops.pad(x, padding, constant_values=0), IMAGE))


def randomized(model):
    rng = np.random.default_rng(0)
    for variable in model.trainable_weights:
        variable.assign(rng.uniform(0.5, 2.0, variable.shape))
    return model


@pytest.mark.parametrize("kind", [k.__name__ for k in homogeneity._KERNELS])
def test_kernels_carry_scale(kind):
    if kind == "Embedding":
        model = applied(layers.Embedding(30, 3), VECTOR, dtype="int32")
        check_scales(randomized(model), (1, 1))
        return
    if kind.startswith("Einsum"):
        layer = layers.EinsumDense("ab,bc->ac", (3,), bias_axes="c", activation="relu")
    else:
        layer = made(kind)
        layer.activation = keras.activations.relu
    model = randomized(applied(layer, shape_for(kind)))
    if kind.startswith("Separable"):
        check_scales(model, (1, 0, 0, 1, 1), (0, 1, 0, 1, 1), (0, 0, 1, 1, 1))
    else:
        check_scales(model, (1, 0, 1, 1), (0, 1, 1, 1))


@pytest.mark.parametrize("kind", [k.__name__ for k in homogeneity.NORMALIZATIONS])
def test_normalizations_fix_their_input_and_scale_their_output(kind):
    layer = layers.GroupNormalization(2) if "Group" in kind else made(kind)
    model = randomized(applied(layer, VECTOR))
    assert "epsilon" in why_restricted(model)
    assert any(r.normalizes for r in relations_of(*call_of(model)))
    if kind == "UnitNormalization":
        check_scales(model)
        assert "gamma" in why_restricted(model)
    elif kind == "RMSNormalization":
        check_scales(model, (0, 1, 1))
    else:
        check_scales(model, (0, 1, 1, 1))


def test_a_normalization_without_gamma_lets_no_scale_pass():
    model = applied(layers.BatchNormalization(scale=False), VECTOR)
    assert "gamma" in why_restricted(model)
    check_scales(model)


def test_an_activation_that_is_not_homogeneous_fixes_the_output_alone():
    model = randomized(applied(layers.Dense(3, "gelu"), VECTOR))
    assert why_restricted(model).endswith("gelu is not homogeneous")
    # What comes in may be scaled: the kernel makes up for it.
    check_scales(model, (1, -1, 0, 0))


def test_the_limit_of_a_relu_is_named():
    model = applied(layers.ReLU(max_value=6.0, name="r"), VECTOR)
    assert why_restricted(model) == "ReLU(max_value=6) is not homogeneous"


class MyDense(layers.Dense):
    def call(self, x):
        return keras.ops.tanh(super().call(x))


def test_a_subclass_of_a_known_layer_is_not_known():
    assert "MyDense is not known" in why_unknown(applied(MyDense(3), VECTOR))


@pytest.mark.parametrize(
    ("layer", "name", "reason"),
    [
        (
            layers.Dense(3, kernel_constraint=keras.constraints.MaxNorm(1)),
            "kernel",
            "its kernel has a constraint, MaxNorm",
        ),
        (
            layers.Dense(3, bias_constraint=keras.constraints.UnitNorm()),
            "bias",
            "its bias has a constraint, UnitNorm",
        ),
        (
            layers.BatchNormalization(beta_constraint="max_norm"),
            "beta",
            "its beta has a constraint, MaxNorm",
        ),
        (
            layers.BatchNormalization(gamma_constraint=keras.constraints.MaxNorm(1)),
            "gamma",
            "its gamma has a constraint, MaxNorm",
        ),
    ],
)
def test_weights_that_can_not_be_scaled(layer, name, reason):
    stack = [layers.Dense(4, "relu"), layer, layers.Dense(4, "relu"), layers.Dense(2)]
    model = randomized(applied(keras.Sequential(stack), VECTOR))
    (weight,) = [v for v in layer.weights if v.name == name]
    assert why_fixed(weight) == reason
    groups = scale_groups(model)
    pins = [f"{x}: {why}" for group in groups.pinned for x, why in group.pins]
    pins += [status.by for status in groups.statuses.values()]
    assert f"{layer.name}: {reason}" in pins
    before, value = outputs_at(model)[0], to_numpy(weight)
    assert any(row.factor != 1.0 for row in balance_scales(model))
    np.testing.assert_array_equal(to_numpy(weight), value)
    np.testing.assert_allclose(outputs_at(model)[0], before, rtol=1e-5)


def test_a_sign_constraint_and_a_parametric_activation_do_no_harm():
    dense = layers.Dense(
        3, layers.PReLU(), kernel_constraint=keras.constraints.NonNeg()
    )
    model = applied(dense, VECTOR)
    outputs_at(model)  # which builds the activation
    assert [v.name for v in dense.weights] == ["kernel", "bias", "alpha"]
    assert not why_fixed(dense.kernel)
    check_scales(randomized(model), (1, 0, 1, 1), (0, 1, 1, 1))


def test_lora_and_quantization_add_weights_that_are_not_known():
    dense = layers.Dense(8)
    model = applied(dense, (8,))
    dense.enable_lora(2)
    assert "lora" in why_unknown(model)
    dense = layers.Dense(8)
    model = applied(dense, (8,))
    dense.quantize("int8")
    assert why_unknown(model)


@pytest.mark.parametrize(
    "layer",
    [
        layers.Flatten(dtype="int32"),
        layers.Rescaling(2.0, dtype="int32"),
        layers.ReLU(dtype="int32"),
    ],
)
def test_integers_can_not_be_scaled(layer):
    assert "int32" in why_unknown(applied(layer, VECTOR))


def test_an_embedding_of_floats_can_not_be_scaled():
    """It rounds them to integers."""
    model = applied(layers.Embedding(30, 3), VECTOR)
    if not why_unknown(model):
        check_scales(randomized(model), (0, 1, 1))


def test_frozen_weights_are_not_scaled():
    dense = layers.Dense(3)
    model = applied(dense, VECTOR)
    assert not why_fixed(dense.kernel)
    dense.trainable = False
    assert why_fixed(dense.kernel) == "its kernel is frozen"
    # That is all that it fixes: what comes in may be scaled, and so is what goes out.
    check_scales(randomized(model), (1, 0, 1, 1), (0, 1, 1, 1))


def test_only_the_true_functions_are_homogeneous():
    def relu(x):
        return x + 1

    assert is_homogeneous(None) and is_homogeneous(keras.activations.relu)
    assert not is_homogeneous(relu)
    for name in ("relu6", "gelu", "silu", "sigmoid", "softmax", "elu", "hard_tanh"):
        if hasattr(keras.activations, name):
            assert not is_homogeneous(getattr(keras.activations, name))


def test_a_call_with_more_tensors_than_one_is_fixed():
    model = applied(
        lambda x, m: layers.BatchNormalization()(x, mask=m[..., 0]), SERIES, SERIES
    )
    assert "2 tensors" in why_unknown(model)


@pytest.mark.parametrize(
    "function",
    [
        *backend_relus(),
        keras.activations.relu,
        keras.activations.leaky_relu,
        lambda x: keras.activations.relu(x, negative_slope=0.25),
    ],
)
def test_relus_of_backends_and_of_tensors(function):
    if function in backend_relus():
        check_keeps_scale(applied(layers.Activation(function), IMAGE))
        dense = layers.Dense(3, activation=function)
        model = randomized(applied(dense, VECTOR))
        check_scales(model, (1, 0, 1, 1), (0, 1, 1, 1))
    else:
        check_keeps_scale(applied(function, IMAGE))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: keras.activations.relu(x, max_value=6.0),
        lambda x: keras.activations.relu(x, threshold=0.5),
        lambda x: keras.activations.gelu(x),
        layers.Activation(
            backend_functions(
                "nn.functional.relu6" if BACKEND == "torch" else "nn.relu6"
            )[0]
        ),
    ],
)
def test_other_functions_of_backends_and_of_tensors_are_fixed(function):
    assert is_fixed(applied(function, IMAGE))


@pytest.mark.parametrize("arguments", [{}, {"scale": False}, {"center": False}])
def test_a_frozen_batch_normalization_normalizes_nothing(arguments):
    layer = layers.BatchNormalization(trainable=False, **arguments)
    model = applied(layer, VECTOR)
    assert is_fixed(model) and "it is frozen" in why_restricted(model)
    layer.trainable = True
    assert "epsilon" in why_restricted(applied(layer, VECTOR))
    # Other normalizations do what they do.
    layer = layers.LayerNormalization(trainable=False)
    assert "epsilon" in why_restricted(applied(layer, VECTOR))


def test_no_other_backend_is_imported():
    script = (
        "import sys, keras\n"
        "from keras_weissi.model.homogeneity import is_homogeneous\n"
        "before = set(sys.modules)\n"
        "assert not is_homogeneous(print)\n"
        "assert set(sys.modules) == before\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
