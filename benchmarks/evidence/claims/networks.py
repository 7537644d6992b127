"""The networks, all of about 40,000 weights."""

import functools

import keras
from keras import layers, ops

from evidence.claims.data import CLASSES, LENGTH


def mlp(kernels=4):
    """Dense layers of 128 units, `kernels` in all."""
    hidden = [layers.Dense(128, "relu") for _ in range(kernels - 1)]
    return keras.Sequential([keras.Input((LENGTH,)), *hidden, layers.Dense(CLASSES)])


class Windows(layers.Layer):
    """Lists the windows of a line, so that a `Dense` layer convolves it.

    Hundreds of networks that train at once are then products of stacked matrices; a
    convolution with a kernel of its own for each is many times slower.
    """

    def call(self, x):
        """Returns the windows of three points, which may stick out by one."""
        x = ops.pad(x, ((0, 0), (1, 1), (0, 0)))
        return ops.concatenate([x[:, :-2], x[:, 1:-1], x[:, 2:]], axis=-1)


def cnn(normalized=False):
    """Four convolutions of 48 channels, each followed by a pooling."""
    inputs = keras.Input((LENGTH,))
    x = layers.Reshape((LENGTH, 1))(inputs)
    for _ in range(4):
        x = layers.Dense(48)(Windows()(x))
        if normalized:
            x = layers.BatchNormalization()(x)
        x = layers.AveragePooling1D(2)(layers.ReLU()(x))
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.Flatten()(x)))


def residual():
    """Three blocks whose shortcut is a projection, as the width changes in each."""
    inputs = keras.Input((LENGTH,))
    x = layers.Dense(64, "relu")(inputs)
    for width in (96, 64, 96):
        y = layers.Dense(width, "relu")(x)
        y = layers.Dense(width)(y)
        x = layers.ReLU()(layers.Add()([layers.Dense(width)(x), y]))
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


class AddPlace(layers.Layer):
    """Adds to each piece a vector that says where it is."""

    def build(self, shape):
        """Makes the vectors."""
        self.place = self.add_weight(shape=shape[1:], name="place")

    def call(self, x):
        """Returns the sum."""
        return x + self.place


def transformer():
    """Two blocks over ten pieces of the line: attention, then a ReLU network."""
    width, pieces = 32, 10
    inputs = keras.Input((LENGTH,))
    x = layers.Reshape((pieces, LENGTH // pieces))(inputs)
    x = layers.Dense(width)(x)
    x = AddPlace()(x)
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(4, width // 4)(y, y)])
        y = layers.LayerNormalization()(x)
        y = layers.Dense(width)(layers.Dense(4 * width, "relu")(y))
        x = layers.Add()([x, y])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


NETWORKS = {
    **{f"mlp-{n}": functools.partial(mlp, n) for n in (2, 4, 8, 16)},
    "cnn": cnn,
    "cnn-bn": functools.partial(cnn, normalized=True),
    "residual": residual,
    "transformer": transformer,
}
