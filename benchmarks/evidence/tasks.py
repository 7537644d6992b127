"""The tasks: data sets, which every seed splits anew, and networks."""

import dataclasses
import functools

import keras
import numpy as np
import sklearn.datasets
from keras import layers
from sklearn.model_selection import train_test_split


@dataclasses.dataclass(frozen=True)
class Task:
    """A data set, how much of it to train on, and a network.

    Attributes:
        name: str.
        data: str, a key of `SOURCES`.
        network: str, a key of `NETWORKS`.
        train: int, how many rows to train on.
        noise: float, the fraction of training and validation labels that are wrong.
            Defaults to `0.0`.
        epochs: int. Defaults to `75`.
        methods: tuple of str, the methods that are compared, or `()` for all of them.
            Defaults to `()`.
        online: bool, whether the data has to be downloaded. Defaults to `False`.
    """

    name: str
    data: str
    network: str
    train: int
    noise: float = 0.0
    epochs: int = 75
    methods: tuple = ()
    online: bool = False


# The epochs make about 1,800 steps of 32 rows, fewer for the slow convolutions. All
# other rows are for validation: with few of them, chance would choose the strength.
TASKS = {
    task.name: task
    for task in (
        Task("digits-mlp", "digits", "mlp", 800),
        Task("digits-cnn", "digits", "cnn", 800, epochs=50),
        Task("digits-deep", "digits", "deep", 800),
        Task("digits-400", "digits", "mlp", 400, epochs=150),
        Task("digits-100", "digits", "mlp", 100, epochs=600),
        Task("digits-noise20", "digits", "mlp", 400, noise=0.2, epochs=150),
        Task("digits-noise40", "digits", "mlp", 400, noise=0.4, epochs=150),
        Task("wine", "wine", "mlp", 70, epochs=900),
        Task("breast-cancer", "breast_cancer", "mlp", 200, epochs=300),
        # With digits-noise20, whose width is 256: does the best strength depend on it?
        Task("width-64", "digits", "mlp64", 400, 0.2, 150, ("l2", "weissi")),
        Task("width-512", "digits", "mlp512", 400, 0.2, 150, ("l2", "weissi")),
        Task("mnist", "mnist", "mlp", 50_000, epochs=10, online=True),
        Task("fashion-mnist", "fashion_mnist", "cnn", 50_000, epochs=20, online=True),
        Task("cifar10", "cifar10", "resnet", 45_000, epochs=100, online=True),
    )
}


@dataclasses.dataclass(frozen=True)
class Split:
    """Rows and labels for training, for validation and for the test."""

    x: np.ndarray
    y: np.ndarray
    x_validation: np.ndarray
    y_validation: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int


def load(task, seed):
    """Draws the split of a task. The seed decides the rows and the wrong labels.

    Validation labels are as noisy as training labels, as a user's would be. Test labels
    are clean. Images have values in [0, 1]. Tables are standardized by the training
    rows and scaled to about [0, 1].
    """
    x, y, test = SOURCES[task.data]()
    rng = np.random.default_rng(seed)
    if test is None:
        x, x_test, y, y_test = train_test_split(
            x, y, test_size=1 / 3, random_state=seed, stratify=y
        )
    else:
        x_test, y_test = test
    x, x_validation, y, y_validation = train_test_split(
        x, y, train_size=task.train, random_state=seed, stratify=y
    )
    classes = int(y.max()) + 1
    y, y_validation = (
        _with_noise(v, task.noise, classes, rng) for v in (y, y_validation)
    )
    if x.ndim == 2 and task.data != "digits":
        mean, scale = x.mean(axis=0), x.std(axis=0)
        x, x_validation, x_test = (
            np.clip((part - mean) / scale / 6 + 0.5, 0, 1)
            for part in (x, x_validation, x_test)
        )
    flat = task.network not in CONVOLUTIONAL
    parts = []
    for part in (x, x_validation, x_test):
        part = part.astype("float32")
        parts.append(part.reshape(len(part), -1) if flat else part)
    return Split(parts[0], y, parts[1], y_validation, parts[2], y_test, classes)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The number of rows and classes of a task."""

    train: int
    validation: int
    test: int
    classes: int


@functools.cache
def sizes(task):
    """Returns the `Sizes` of a task, given by its name."""
    split = load(TASKS[task], 0)
    parts = (split.y, split.y_validation, split.y_test)
    return Sizes(*map(len, parts), split.classes)


def _with_noise(y, noise, classes, rng):
    wrong = rng.random(len(y)) < noise
    return np.where(wrong, (y + rng.integers(1, classes, len(y))) % classes, y)


def _digits():
    digits = sklearn.datasets.load_digits()
    return digits.images[..., None] / 16.0, digits.target, None


def _table(name):
    return *getattr(sklearn.datasets, f"load_{name}")(return_X_y=True), None


def _images(name):
    (x, y), (x_test, y_test) = getattr(keras.datasets, name).load_data()
    if x.ndim == 3:
        x, x_test = x[..., None], x_test[..., None]
    return x / 255.0, y.ravel(), (x_test / 255.0, y_test.ravel())


SOURCES = {
    "digits": _digits,
    "wine": lambda: _table("wine"),
    "breast_cancer": lambda: _table("breast_cancer"),
    "mnist": lambda: _images("mnist"),
    "fashion_mnist": lambda: _images("fashion_mnist"),
    "cifar10": lambda: _images("cifar10"),
}


def _mlp(shape, classes, width=256, depth=3):
    hidden = [layers.Dense(width, "relu") for _ in range(depth)]
    return keras.Sequential([keras.Input(shape), *hidden, layers.Dense(classes)])


def _cnn(shape, classes):
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.Conv2D(32, 3, 2, padding="same", activation="relu"),
            layers.Conv2D(32, 3, 2, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(64, "relu"),
            layers.Dense(classes),
        ]
    )


def _resnet(shape, classes):
    """ResNet-18 for small images, without normalization."""
    x = inputs = keras.Input(shape)
    x = layers.Conv2D(64, 3, padding="same", activation="relu")(x)
    for stage in range(4):
        for block in range(2):
            stride = 2 if stage and not block else 1
            y = layers.Conv2D(64 * 2**stage, 3, stride, "same", activation="relu")(x)
            y = layers.Conv2D(64 * 2**stage, 3, padding="same")(y)
            if stride == 2:
                x = layers.Conv2D(64 * 2**stage, 1, stride)(x)
            x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(classes)(x))


NETWORKS = {
    "mlp": _mlp,
    "mlp64": functools.partial(_mlp, width=64),
    "mlp512": functools.partial(_mlp, width=512),
    "deep": functools.partial(_mlp, width=128, depth=8),
    "cnn": _cnn,
    "resnet": _resnet,
}
CONVOLUTIONAL = ("cnn", "resnet")
