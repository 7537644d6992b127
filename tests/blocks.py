"""Blocks of networks whose scales are in relations: products, powers, attention.

Each is a function of a tensor of shape `(batch, STEPS, WIDTH)` and of the name of an
activation, and returns a tensor of that shape.
"""

import inspect

import keras
import numpy as np
from keras import layers, ops

WIDTH = 4
STEPS = 3
CAUSAL = np.tril(np.ones((STEPS, STEPS), bool))[None]


def dense(activation=None, units=WIDTH, **kwargs):
    return layers.Dense(units, activation, **kwargs)


def mean_square(x):
    return ops.mean(ops.square(x), axis=-1, keepdims=True)


class SwiGLU(layers.Layer):
    """Two layers whose outputs are multiplied, one of them through an activation."""

    def __init__(self, activation="silu", **kwargs):
        super().__init__(**kwargs)
        self.activation = keras.activations.get(activation)
        self.gate, self.up, self.down = dense(units=6), dense(units=6), dense()

    def call(self, x):
        return self.down(self.activation(self.gate(x)) * self.up(x))


class OwnWeights(layers.Layer):
    """Uses weights of its own in three ways."""

    def __init__(self, activation=None, **kwargs):
        super().__init__(**kwargs)
        self.activation = keras.activations.get(activation)

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 5), name="w")
        self.b = self.add_weight(shape=(5,), name="b")
        self.heads = self.add_weight(shape=(5, 2, 3), name="heads")
        self.out = self.add_weight(shape=(shape[-1], 6), name="out")

    def call(self, x):
        y = self.activation(x @ self.w + self.b)
        y = ops.einsum("bsi,ihk->bshk", y, self.heads)
        y = ops.reshape(y, (-1, STEPS, 6))
        return ops.matmul(y, ops.transpose(self.out))


class Tied(layers.Layer):
    """Multiplies by the transpose of the kernel of another layer."""

    def __init__(self, layer, **kwargs):
        super().__init__(**kwargs)
        self.layer = layer

    def call(self, x):
        return ops.matmul(x, ops.transpose(self.layer.kernel))


class Position(layers.Layer):
    """Adds a weight for each step."""

    def build(self, shape):
        self.position = self.add_weight(shape=shape[1:], name="position")

    def call(self, x):
        return x + self.position


class Inner(layers.Layer):
    def __init__(self, activation, **kwargs):
        super().__init__(**kwargs)
        self.dense = dense(activation)

    def call(self, x):
        return self.dense(x)


class Middle(layers.Layer):
    def __init__(self, activation, **kwargs):
        super().__init__(**kwargs)
        self.inner, self.gate = Inner(activation), dense("sigmoid")

    def call(self, x):
        return self.gate(x) * self.inner(x)


class Outer(layers.Layer):
    """Custom layers three deep."""

    def __init__(self, activation, **kwargs):
        super().__init__(**kwargs)
        self.middle, self.last = Middle(activation), dense()

    def call(self, x):
        return x + self.last(self.middle(x))


class Looped(keras.Model):
    """A subclassed model: a loop, normalizations, residuals."""

    def __init__(self, activation):
        super().__init__()
        self.first = dense(activation)
        self.parts = [(dense(), layers.BatchNormalization()) for _ in range(2)]
        self.last = dense()

    def call(self, x, training=None):
        x = self.first(x)
        for part, normalization in self.parts:
            x = x + ops.relu(normalization(part(x), training=training))
        return self.last(x)


class Whole(keras.Model):
    """A subclassed model of other models, one after the other, every second added."""

    def __init__(self, parts, head):
        super().__init__()
        self.parts, self.head = parts, head

    def call(self, x, training=None):
        for number, part in enumerate(self.parts):
            y = part(x, training=training)
            x = x + y if number % 2 else y
        return self.head(x)


def multiply(x, activation):
    return layers.Multiply()([dense(activation)(x), dense()(x)])


def excitation(x, activation):
    y = layers.GlobalAveragePooling1D()(x)
    y = dense("sigmoid")(dense("relu", 2)(y))
    return layers.Multiply()([dense(activation)(x), layers.Reshape((1, WIDTH))(y)])


def dot(x, activation):
    scores = layers.Dot(axes=2)([dense(activation)(x), dense()(x)])
    return dense()(layers.Dot(axes=(2, 1))([scores, dense()(x)]))


def matmul(x, activation):
    scores = dense(activation)(x) @ ops.transpose(dense()(x), (0, 2, 1))
    return dense()(ops.matmul(scores, x))


def einsum(x, activation):
    one, other = dense(activation)(x), dense()(x)
    scores = ops.einsum("bsi,bti->bst", one, other)
    return dense()(ops.einsum("bst,btj->bsj", scores, dense()(x)))


def ratio(x, activation):
    y = dense()(x)
    return dense(activation)(y / ops.sqrt(mean_square(y)))


def ratio_with_epsilon(x, activation):
    y = dense()(x)
    return dense(activation)(y * ops.rsqrt(mean_square(y) + 1e-3))


def powers(x, activation):
    squares = ops.square(dense(activation)(x)) + ops.square(dense()(x))
    return dense()(ops.sqrt(squares) + ops.power(dense("relu")(x), 2))


def root(x, activation):
    return dense()(ops.sqrt(ops.absolute(dense(activation)(x))))


def swiglu(x, activation):
    return dense()(dense("silu", 6)(x) * dense(activation, 6)(x)) + x


def shared_weights(x, activation):
    one = dense(activation)
    return x + Tied(one)(dense("relu")(one(x)))


def embedding(x, activation):
    # Whether a number is above 0 does not depend on its scale.
    tokens = ops.cast(ops.greater(x[:, :, 0], 0), "int32")
    return dense(activation)(Position()(layers.Embedding(2, WIDTH)(tokens)) + x)


def function(x, activation):
    return dense(activation)(layers.Lambda(lambda y: ops.relu(y) * 3.0)(dense()(x)))


def attention(use=lambda layer, x: layer(x, x), **kwargs):
    """Returns a block with an attention layer."""

    def block(x, activation):
        layer = layers.MultiHeadAttention(2, 3, **kwargs)
        return dense(activation)(use(layer, x))

    return block


def grouped(**kwargs):
    def block(x, activation):
        layer = layers.GroupQueryAttention(3, 4, 2, **kwargs)
        return dense(activation)(layer(x, x))

    return block


def has_gate(layer_class):
    return "use_gate" in inspect.signature(layer_class).parameters


BLOCKS = {
    "multiply": multiply,
    "squeeze and excitation": excitation,
    "dot": dot,
    "matmul": matmul,
    "einsum": einsum,
    "ratio": ratio,
    "ratio with epsilon": ratio_with_epsilon,
    "powers": powers,
    "root": root,
    "swiglu": swiglu,
    "swiglu in a layer": lambda x, activation: SwiGLU()(x),
    "gate in a layer": lambda x, activation: SwiGLU(activation)(x),
    "three deep": lambda x, activation: Outer(activation)(x),
    "own weights": lambda x, activation: OwnWeights(activation)(x),
    "shared weights": shared_weights,
    "subclassed": lambda x, activation: Looped(activation)(x),
    "embedding": embedding,
    "lambda": function,
    "attention": attention(),
    "attention without bias": attention(use_bias=False, dropout=0.2),
    "attention with a mask": attention(lambda f, x: f(x, x, attention_mask=CAUSAL)),
    "causal attention": attention(lambda f, x: f(x, x, use_causal_mask=True)),
    "cross attention": attention(
        lambda f, x: f(dense()(x), dense("relu")(x), key=x), value_dim=5, dropout=0.1
    ),
    "grouped attention": grouped(),
    "grouped attention without bias": grouped(use_bias=False),
}
if has_gate(layers.MultiHeadAttention):
    BLOCKS["attention with a gate"] = attention(use_gate=True)
if has_gate(layers.GroupQueryAttention):
    BLOCKS["grouped attention with a gate"] = grouped(use_gate=True)
if hasattr(layers, "RMSNormalization"):
    BLOCKS["rms norm"] = lambda x, activation: layers.RMSNormalization()(
        dense(activation)(x)
    )
