import importlib
import inspect
import operator
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from helpers import BACKEND, to_numpy
from keras import layers, ops

from keras_weissi._utils.keras_private import nodes_of
from keras_weissi.model import homogeneity
from keras_weissi.model.homogeneity import Scaling, is_homogeneous, scaling_of

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


def outputs_at(model, *scales):
    rng = np.random.default_rng(0)
    inputs = [
        rng.normal(size=(2, *x.shape[1:])).astype("float32") for x in model.inputs
    ]
    scales = scales or (1.0,) * len(inputs)
    inputs = [c * x for c, x in zip(scales, inputs, strict=True)]
    outputs = model(inputs)
    return [to_numpy(x) for x in keras.tree.flatten(outputs)]


def check_keeps_scale(model):
    assert scaling_of(*call_of(model)) == Scaling()
    scales = [C] * len(model.inputs)
    for one, scaled in zip(outputs_at(model), outputs_at(model, *scales), strict=True):
        np.testing.assert_allclose(scaled, C * one, rtol=1e-6, atol=1e-6)
        assert np.abs(one).max() > 0


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
    "sort": lambda x: ops.sort(x, axis=-1),
    "split": lambda x: ops.split(x, 2, axis=-1),
    "squeeze": lambda x: ops.squeeze(x[:, :1], 1),
    "stop_gradient": ops.stop_gradient,
    "sum": lambda x: ops.sum(x, axis=1),
    "swapaxes": lambda x: ops.swapaxes(x, 1, 2),
    "tile": lambda x: ops.tile(x, (1, 2, 1, 1)),
    "trace": lambda x: ops.trace(x, axis1=1, axis2=2),
    "transpose": lambda x: ops.transpose(x, (0, 2, 1, 3)),
    "unstack": lambda x: ops.unstack(x, axis=1),
    "divide": lambda x: ops.divide(x, 4.0),
    "multiply": lambda x: 3.0 * x,
    "true_divide": lambda x: x / 4.0,
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
    listed = [name for _, names, _ in homogeneity._OPS for name in names.split()]
    assert sorted([*UNARY_OPS, *BINARY_OPS]) == sorted(listed)


@pytest.mark.parametrize("name", [*UNARY_OPS, *BINARY_OPS])
def test_functions_that_keep_scale(name):
    if not hasattr(ops, name):
        pytest.skip("newer than this Keras")
    if name in UNARY_OPS:
        model = applied(UNARY_OPS[name], IMAGE)
    else:
        model = applied(BINARY_OPS[name], IMAGE, IMAGE)
    check_keeps_scale(model)


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
    test_functions_that_keep_scale(name)


def test_an_operation_of_another_class_of_the_same_name_is_not_known():
    class Relu(keras.Operation):
        def call(self, x):
            return ops.relu(x)

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape, x.dtype)

    assert scaling_of(*call_of(applied(lambda x: Relu()(x), IMAGE))).fixed_outputs


def test_finding_the_classes_of_operations_is_quick_and_changes_no_names():
    keras.utils.clear_session()
    homogeneity._kinds_of_ops.cache_clear()
    start = time.perf_counter()
    homogeneity._kinds_of_ops()
    assert time.perf_counter() - start < 0.5
    assert layers.Add().name == "add" and layers.ReLU().name == "re_lu"


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + 1.0,
        lambda x: 1.0 - x,
        lambda x: 1.0 / x,
        lambda x: x * x,
        lambda x: x / ops.sum(x, keepdims=True),
        lambda x: ops.maximum(x, 0.5),
        lambda x: ops.relu6(x),
        lambda x: ops.softmax(x),
        lambda x: ops.square(x),
        lambda x: ops.cast(x, "int32"),
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
        lambda x: layers.Multiply()([x, x]),
        lambda x: layers.Add()([x, np.ones((1, *IMAGE), "float32")]),
    ],
)
def test_what_is_not_homogeneous_or_not_known_is_fixed(function):
    try:
        model = applied(function, IMAGE)
    except (TypeError, ValueError) as error:
        pytest.skip(f"Keras does not take it: {error}")
    scaling = scaling_of(*call_of(model))
    assert scaling.fixed_inputs and scaling.fixed_outputs and not scaling.kernels


def test_zero_is_the_one_constant_that_may_be_added():
    check_keeps_scale(applied(lambda x: ops.maximum(x, 0.0), IMAGE))
    check_keeps_scale(applied(lambda x: x + 0, IMAGE))
    padding = [[0, 0], [1, 1], [0, 0], [0, 0]]
    check_keeps_scale(applied(lambda x: ops.pad(x, padding, constant_values=0), IMAGE))


@pytest.mark.parametrize("kind", [k.__name__ for k in homogeneity._KERNELS])
def test_kernels_carry_scale(kind):
    if kind.startswith("Einsum"):
        layer = layers.EinsumDense("ab,bc->ac", (3,), bias_axes="c", activation="relu")
    else:
        layer = made(kind)
        layer.activation = keras.activations.relu
    model = applied(layer, shape_for(kind))
    rng = np.random.default_rng(0)
    for variable in layer.weights:
        variable.assign(rng.normal(size=variable.shape))
    scaling = scaling_of(*call_of(model))
    assert len(scaling.kernels) == (2 if kind.startswith("Separable") else 1)
    assert len(scaling.shifts) == 1
    assert not scaling.fixed_inputs and not scaling.fixed_outputs
    (one,) = outputs_at(model)
    for kernel in scaling.kernels:
        kernel.assign(to_numpy(kernel) * C)
    for shift in scaling.shifts:
        shift.assign(to_numpy(shift) * C ** len(scaling.kernels) / 2)
    (scaled,) = outputs_at(model, 0.5)
    np.testing.assert_allclose(
        scaled, one * C ** len(scaling.kernels) / 2, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("kind", [k.__name__ for k in homogeneity.NORMALIZATIONS])
def test_normalizations_fix_their_input_and_scale_their_output(kind):
    layer = layers.GroupNormalization(2) if "Group" in kind else made(kind)
    model = applied(layer, VECTOR)
    scaling = scaling_of(*call_of(model))
    assert "epsilon" in scaling.fixed_inputs
    if kind == "UnitNormalization":
        assert not scaling.kernels and "gamma" in scaling.fixed_outputs
        return
    assert not scaling.fixed_outputs
    for variable in layer.weights:
        variable.assign(np.random.default_rng(0).uniform(1, 2, variable.shape))
    (one,) = outputs_at(model)
    for variable in (*scaling.kernels, *scaling.shifts):
        variable.assign(to_numpy(variable) * C)
    np.testing.assert_allclose(outputs_at(model)[0], one * C, rtol=1e-5)


def test_a_normalization_without_gamma_lets_no_scale_pass():
    model = applied(layers.BatchNormalization(scale=False), VECTOR)
    assert "gamma" in scaling_of(*call_of(model)).fixed_outputs


def test_the_limit_of_a_relu_is_named():
    model = applied(layers.ReLU(max_value=6.0, name="r"), VECTOR)
    assert scaling_of(*call_of(model)).fixed_outputs == (
        "ReLU(max_value=6) is not homogeneous"
    )


class MyDense(layers.Dense):
    def call(self, x):
        return keras.ops.tanh(super().call(x))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (MyDense(3), "MyDense is not known"),
        (layers.Dense(3, kernel_constraint=keras.constraints.MaxNorm(1)), "MaxNorm"),
        (layers.Dense(3, bias_constraint=keras.constraints.UnitNorm()), "UnitNorm"),
        (layers.Embedding(5, 3), "Embedding is not known"),
        (layers.BatchNormalization(beta_constraint="max_norm"), "epsilon"),
        (
            layers.BatchNormalization(gamma_constraint=keras.constraints.MaxNorm(1)),
            "epsilon",
        ),
    ],
)
def test_layers_that_can_not_be_scaled(layer, reason):
    scaling = scaling_of(*call_of(applied(layer, VECTOR)))
    assert reason in scaling.fixed_inputs and scaling.fixed_outputs


def test_a_sign_constraint_and_a_parametric_activation_do_no_harm():
    dense = layers.Dense(
        3, layers.PReLU(), kernel_constraint=keras.constraints.NonNeg()
    )
    model = applied(dense, VECTOR)
    outputs_at(model)  # which builds the activation
    scaling = scaling_of(*call_of(model))
    assert [v.name for v in dense.weights] == ["kernel", "bias", "alpha"]
    assert [v.name for v in scaling.kernels] == ["kernel"]
    assert [v.name for v in scaling.shifts] == ["bias"]


def test_lora_and_quantization_add_weights_that_are_not_known():
    dense = layers.Dense(8)
    model = applied(dense, (8,))
    dense.enable_lora(2)
    assert "lora" in scaling_of(*call_of(model)).fixed_outputs
    dense = layers.Dense(8)
    model = applied(dense, (8,))
    dense.quantize("int8")
    assert scaling_of(*call_of(model)).fixed_outputs


@pytest.mark.parametrize(
    "layer",
    [
        layers.Flatten(dtype="int32"),
        layers.Rescaling(2.0, dtype="int32"),
        layers.ReLU(dtype="int32"),
    ],
)
def test_integers_can_not_be_scaled(layer):
    assert "int32" in scaling_of(*call_of(applied(layer, VECTOR))).fixed_outputs


def test_frozen_weights_are_not_scaled():
    dense = layers.Dense(3)
    model = applied(dense, VECTOR)
    dense.trainable = False
    assert scaling_of(*call_of(model)).fixed_outputs == "its kernel is frozen"


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
    assert "2 tensors" in scaling_of(*call_of(model)).fixed_outputs


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
        assert not scaling_of(*call_of(applied(dense, VECTOR))).fixed_outputs
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
    assert scaling_of(*call_of(applied(function, IMAGE))).fixed_outputs


@pytest.mark.parametrize("arguments", [{}, {"scale": False}, {"center": False}])
def test_a_frozen_batch_normalization_normalizes_nothing(arguments):
    layer = layers.BatchNormalization(trainable=False, **arguments)
    scaling = scaling_of(*call_of(applied(layer, VECTOR)))
    assert "it is frozen" in scaling.fixed_inputs and scaling.fixed_outputs
    layer.trainable = True
    assert "epsilon" in scaling_of(*call_of(applied(layer, VECTOR))).fixed_inputs
    # Other normalizations do what they do.
    layer = layers.LayerNormalization(trainable=False)
    assert "epsilon" in scaling_of(*call_of(applied(layer, VECTOR))).fixed_inputs


def test_no_other_backend_is_imported():
    script = (
        "import sys, keras\n"
        "from keras_weissi.model.homogeneity import is_homogeneous\n"
        "before = set(sys.modules)\n"
        "assert not is_homogeneous(print)\n"
        "assert set(sys.modules) == before\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
