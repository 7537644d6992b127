"""Models of all the shapes that the symmetry has to deal with."""

import importlib
import operator

import blocks
import keras
import numpy as np
from blocks import WIDTH
from helpers import BACKEND, norm_of, outputs_of, relative_error
from hypothesis import strategies as st
from keras import layers

from keras_weissi import (
    balance_scales,
    invariant_coefficients,
    scale_groups,
    shift_scales,
)

ACTIVATIONS = ("linear", "relu", "leaky_relu")
BLOCKS = (
    "dense",
    "identity shortcut",
    "projection shortcut",
    "concat",
    "shared",
    "nested",
    "nested twice",
    "batch norm",
    "layer norm",
    "prelu",
    "ops",
    "tanh",
    "second output",
)

# One block each: its kind and the activation inside it.
specs = st.lists(
    st.tuples(st.sampled_from(BLOCKS), st.sampled_from(ACTIVATIONS)),
    min_size=1,
    max_size=6,
)

# The same of sequences, where scales are in relations as well.
sequence_specs = st.lists(
    st.tuples(
        st.sampled_from([*blocks.BLOCKS, "opaque", *BLOCKS]),
        st.sampled_from(ACTIVATIONS),
    ),
    min_size=1,
    max_size=4,
)


def build(spec, seed=0, dtype=None, shape=(WIDTH,), is_subclassed=False):
    """Builds a model of the blocks of `spec`, with random weights and biases."""
    keras.utils.set_random_seed(seed)
    policy = keras.config.dtype_policy()
    if dtype is not None:
        keras.config.set_dtype_policy(dtype)

    def functional(spec, end=None):
        x = inputs = keras.Input(shape, dtype=dtype and dtype.split("_")[-1])
        outputs = []
        for kind, activation in spec:
            x = _block(x, kind, activation, outputs)
        return keras.Model(inputs, x if end is None else [*outputs, end(x)])

    try:
        if is_subclassed:
            parts = [
                functional([block]) for block in spec if block[0] != "second output"
            ]
            model = blocks.Whole(parts, layers.Dense(3))
            model(np.zeros((1, *shape)))
        else:
            model = functional(spec, layers.Dense(3))
    finally:
        keras.config.set_dtype_policy(policy)
    randomize(model, seed)
    return model


class Subclassed(keras.Model):
    """A model of which Keras does not know what feeds what."""

    def __init__(self, units=WIDTH):
        super().__init__()
        self.dense = layers.Dense(units)

    def call(self, x):
        return self.dense(x)


_COPY = {"jax": "numpy.copy", "tensorflow": "identity", "torch": "clone"}[BACKEND]


def opaque(x):
    """Returns its argument, by way of the backend, which Keras cannot trace."""
    return operator.attrgetter(_COPY)(importlib.import_module(BACKEND))(x)


class Opaque(layers.Layer):
    """Applies a layer, and maybe a function, where nobody can see it."""

    def __init__(self, layer=None, function=None, **kwargs):
        super().__init__(**kwargs)
        self.layer, self.function = layer, function

    def call(self, x):
        x = opaque(x)
        if self.layer is not None:
            x = self.layer(x)
        return x if self.function is None else self.function(x)


class OpaqueModel(keras.Model):
    """A subclassed model that cannot be seen through."""

    def __init__(self, units=WIDTH):
        super().__init__()
        self.dense = layers.Dense(units)

    def call(self, x):
        return self.dense(opaque(x))


def randomize(model, seed=0):
    """Gives every weight a random value; those that have to be positive are."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        value = rng.normal(0.0, 0.7, variable.shape)
        if variable.name in ("gamma", "scale", "moving_variance"):
            value = np.abs(value) + 0.1
        variable.assign(value)


def _dense(activation=None):
    return layers.Dense(WIDTH, activation)


def _block(x, kind, activation, outputs):
    if kind in blocks.BLOCKS:
        return blocks.BLOCKS[kind](x, activation)
    if kind == "opaque":
        return Opaque(_dense(activation))(x)
    if kind == "dense":
        return _dense(activation)(x)
    if kind == "identity shortcut":
        return layers.Add()([x, _dense()(_dense(activation)(x))])
    if kind == "projection shortcut":
        y = layers.Add()([_dense()(x), _dense()(_dense(activation)(x))])
        return layers.Activation(activation)(y)
    if kind == "concat":
        branches = [_dense(activation)(x), _dense(activation)(x), x]
        return _dense()(layers.Concatenate()(branches))
    if kind == "shared":
        shared = _dense(activation)
        return layers.Maximum()([shared(x), shared(_dense()(shared(x)))])
    if kind.startswith("nested"):
        inner_input = keras.Input(x.shape[1:], dtype=x.dtype)
        y = _dense(activation)(inner_input)
        y = layers.Subtract()([y, _dense()(y)])
        inner = keras.Model(inner_input, _dense()(y))
        return inner(x) if kind == "nested" else inner(layers.ReLU()(inner(x)))
    if kind == "batch norm":
        return layers.BatchNormalization()(_dense()(x))
    if kind == "layer norm":
        return layers.LayerNormalization()(x)
    if kind == "prelu":
        return layers.PReLU()(_dense()(x))
    if kind == "ops":
        halves = keras.ops.split(_dense(activation)(x), 2, axis=-1)
        y = keras.ops.concatenate([2.0 * halves[1], -halves[0]], axis=-1)
        return keras.ops.relu(y + x)
    if kind == "tanh":
        return _dense("tanh")(x)
    assert kind == "second output"
    outputs.append(layers.GaussianDropout(0.1)(x))
    return x


def resnet18(dtype=None, size=32, width=64, classes=10):
    """The shape of ResNet-18, with projection shortcuts and no normalization."""
    policy = keras.config.dtype_policy()
    if dtype is not None:
        keras.config.set_dtype_policy(dtype)
    try:
        x = inputs = keras.Input((size, size, 3), dtype=dtype)
        x = layers.Conv2D(width, 7, 2, "same", activation="relu", name="stem")(x)
        x = layers.MaxPooling2D(3, 2, "same")(x)
        for stage in range(4):
            filters = width * 2**stage
            for block in range(2):
                name = f"stage{stage}_block{block}"
                stride = 2 if stage and not block else 1
                y = layers.Conv2D(filters, 3, stride, "same", name=f"{name}_a")(x)
                y = layers.ReLU()(y)
                y = layers.Conv2D(filters, 3, 1, "same", name=f"{name}_b")(y)
                if stride == 2:
                    x = layers.Conv2D(filters, 1, 2, name=f"{name}_projection")(x)
                x = layers.ReLU()(layers.Add()([x, y]))
        x = layers.GlobalAveragePooling2D()(x)
        return keras.Model(inputs, layers.Dense(classes, name="logits")(x))
    finally:
        keras.config.set_dtype_policy(policy)


def random_factors(model, seed, spread=1.5):
    """Factors of all kernels for random scales of all that may be scaled."""
    rng = np.random.default_rng(seed)
    return scale_groups(model).random_factors(rng, spread / np.log(2))


def check_symmetry(model, x, seed=0):
    """Shifts and balances a model with random weights, which must not change it."""
    randomize(model, seed)
    before = [outputs_of(model, x), outputs_of(model, x, training=True)]
    for change in (
        lambda: shift_scales(model, random_factors(model, seed)),
        lambda: balance_scales(model),
    ):
        report = change()
        after = [outputs_of(model, x), outputs_of(model, x, training=True)]
        for one, other in zip(before, after, strict=True):
            assert relative_error(other, one) < 2e-5
    return report


def weighted_log_norm(model):
    """The sum of the log norms with the coefficients that make it invariant."""
    c = invariant_coefficients(model, include_normalized=True).table
    c = {row.name: row.coefficient for row in c}
    return sum(
        c[edge.kernel.name] * np.log(norm_of(edge.kernel.variable))
        for edge in scale_groups(model).edges
    )
