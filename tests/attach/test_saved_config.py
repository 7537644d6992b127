"""What is put on a model survives saving and loading, or a warning says it does not."""

import random
import warnings

import keras
import numpy as np
import pytest
from helpers import run_python, takes_functions_as_regularizers
from keras import layers, ops

from keras_weissi import WEISSI, deregularize, norm_table, regularize

R = WEISSI(0.1, 0.01)
X = np.ones((2, 4), "float32")
registered = keras.saving.register_keras_serializable("test_saved_config")


def chain(*stack, shape=(4,)):
    return keras.Sequential([keras.Input(shape), *stack])


def called(model):
    model(X)
    return model


class Matmul(layers.Layer):
    """Multiplies by a kernel whose regularizer it is given."""

    def __init__(self, units=4, kernel_regularizer=None, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)

    def build(self, shape):
        self.kernel = self.add_weight(
            name=self.weight_name,
            shape=(shape[-1], self.units),
            regularizer=self.kernel_regularizer,
        )

    def call(self, x):
        return ops.matmul(x, self.kernel)

    weight_name = "kernel"


@registered
class AutoConfig(Matmul):
    """Has the configuration that Keras makes of what `__init__` was given."""


@registered
class WithConfig(Matmul):
    def get_config(self):
        config = {"units": self.units, "kernel_regularizer": self.kernel_regularizer}
        return {**super(Matmul, self).get_config(), **config}


@registered
class Unnamed(WithConfig):
    weight_name = None


@registered
class OnlyUnits(Matmul):
    """Saves a key of the right name that is always the same."""

    def get_config(self):
        return {"name": self.name, "units": self.units, "kernel_regularizer": "l2"}


@registered
class FromConfig(Matmul):
    """Saves the regularizer under another name, and finds it again."""

    def get_config(self):
        return {"penalty": keras.regularizers.serialize(self.kernel_regularizer)}

    @classmethod
    def from_config(cls, config):
        return cls(4, keras.regularizers.get(config["penalty"]))


@registered
class ForgetsInFromConfig(WithConfig):
    @classmethod
    def from_config(cls, config):
        return cls(config["units"])


@registered
class Holder(layers.Layer):
    """Has another layer inside, whose configuration it does not save."""

    def __init__(self, regularizer=None, **kwargs):
        super().__init__(**kwargs)
        self.inner = layers.Dense(4, kernel_regularizer=regularizer)

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return self.inner(x)

    def get_config(self):
        return {"name": self.name}


@registered
class Keeper(layers.Layer):
    """Has another layer inside, and saves its configuration under a name of its own."""

    def __init__(self, part, **kwargs):
        super().__init__(**kwargs)
        self.part = part

    def build(self, shape):
        if not self.part.built:
            self.part.build(shape)

    def call(self, x):
        return self.part(x)

    def get_config(self):
        part = keras.saving.serialize_keras_object(self.part)
        return {**super().get_config(), "part": part}

    @classmethod
    def from_config(cls, config):
        part = keras.saving.deserialize_keras_object(config.pop("part"))
        return cls(part, **config)


@registered
class KeeperWithArray(Keeper):
    """Makes a weight from an array, which Keras refuses in a `StatelessScope`."""

    def __init__(self, part, **kwargs):
        super().__init__(part, **kwargs)
        self.offset = keras.Variable(np.zeros(4, "float32"), name="offset")


@registered
class Wrapping(layers.Wrapper):
    def call(self, x):
        return self.layer(x)


@registered
class Heads(layers.MultiHeadAttention):
    pass


@registered
class HeadsThatForget(layers.MultiHeadAttention):
    def get_config(self):
        return {**super().get_config(), "kernel_regularizer": None}


@registered
class BothWays(layers.Bidirectional):
    pass


@registered
class Cell(layers.SimpleRNNCell):
    pass


@registered
class CellThatForgets(layers.SimpleRNNCell):
    def get_config(self):
        return {**super().get_config(), "recurrent_regularizer": None}


@registered
class Listed(keras.Model):
    """Saves its layers under the key `layers`."""

    def __init__(self, layers, **kwargs):
        super().__init__(**kwargs)
        self.parts = layers

    def call(self, x):
        for part in self.parts:
            x = part(x)
        return x

    def get_config(self):
        return {"layers": [keras.saving.serialize_keras_object(p) for p in self.parts]}

    @classmethod
    def from_config(cls, config):
        return cls([keras.saving.deserialize_keras_object(c) for c in config["layers"]])


@registered
class Sizes(keras.Model):
    """Saves numbers under the key `layers`."""

    def __init__(self, layers, **kwargs):
        super().__init__(**kwargs)
        self.sizes = list(layers)
        self.parts = [keras.layers.Dense(size) for size in layers]

    def call(self, x):
        for part in self.parts:
            x = part(x)
        return x

    def get_config(self):
        return {"layers": self.sizes}


@registered
class AroundAGraph(keras.Model):
    """Makes a functional model again from its own code."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.graph = chain(layers.Dense(4), layers.Dense(4))

    def call(self, x):
        return self.graph(x)

    def get_config(self):
        return {"name": self.name}


@registered
class OneForTwo(layers.Layer):
    """One argument serves two kernels."""

    def __init__(self, kernel_regularizer=None, **kwargs):
        super().__init__(**kwargs)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)

    def build(self, shape):
        for name in ("kernel", "gate_kernel"):
            weight = self.add_weight(
                name=name, shape=(4, 4), regularizer=self.kernel_regularizer
            )
            setattr(self, name, weight)

    def call(self, x):
        return ops.matmul(x, self.kernel) * ops.matmul(x, self.gate_kernel)

    def get_config(self):
        regularizer = keras.regularizers.serialize(self.kernel_regularizer)
        return {**super().get_config(), "kernel_regularizer": regularizer}


@registered
class Drawing(WithConfig):
    """Draws a number in `__init__`."""

    def __init__(self, units=4, kernel_regularizer=None, **kwargs):
        super().__init__(units, kernel_regularizer, **kwargs)
        self.offset = np.random.normal()


@registered
class Fixed(Holder):
    def __init__(self, **kwargs):
        super().__init__(R, **kwargs)


def attention(kind):
    inputs = keras.Input((5, 4))
    return keras.Model(inputs, kind(2, 4)(inputs, inputs))


def unregistered(x):
    return ops.relu(x)


# name -> the model, whether it keeps what is put on it
MODELS = {
    "a config that Keras makes": (lambda: chain(AutoConfig()), False),
    "over another": (lambda: chain(AutoConfig(kernel_regularizer="l2")), False),
    "a config": (lambda: chain(WithConfig()), True),
    "a config, over another": (lambda: chain(WithConfig(4, "l2")), True),
    "a weight without a name": (lambda: chain(Unnamed()), True),
    "a key of a fixed value": (lambda: chain(OnlyUnits()), False),
    "from_config": (lambda: chain(FromConfig()), True),
    "from_config that forgets": (lambda: chain(ForgetsInFromConfig()), False),
    "a layer inside that is lost": (lambda: chain(Holder()), False),
    "a layer inside that is kept": (lambda: chain(Keeper(layers.Dense(4))), True),
    "and beside it an array": (lambda: chain(KeeperWithArray(layers.Dense(4))), True),
    "kept in kept": (lambda: chain(Keeper(Keeper(WithConfig()))), True),
    "lost in kept": (lambda: chain(Keeper(Keeper(AutoConfig()))), False),
    "a wrapper": (lambda: chain(Wrapping(layers.Dense(4))), True),
    "a wrapper of what loses": (lambda: chain(Wrapping(Holder())), False),
    "attention": (lambda: attention(Heads), True),
    "attention that forgets": (lambda: attention(HeadsThatForget), False),
    "both ways": (lambda: chain(BothWays(layers.LSTM(3)), shape=(5, 4)), True),
    "a cell": (lambda: chain(layers.RNN(Cell(3)), shape=(5, 4)), True),
    "a cell that forgets": (
        lambda: chain(layers.RNN(CellThatForgets(3)), shape=(5, 4)),
        False,
    ),
    "spectral": (lambda: chain(layers.SpectralNormalization(WithConfig())), True),
    "spectral, lost": (
        lambda: chain(layers.SpectralNormalization(AutoConfig())),
        False,
    ),
    "a list of layers": (
        lambda: called(Listed([layers.Dense(4), WithConfig()])),
        True,
    ),
    "a list with one that loses": (
        lambda: called(Listed([layers.Dense(4), Holder()])),
        False,
    ),
    "a list of numbers": (lambda: called(Sizes([8, 3])), False),
    "a graph in a class": (lambda: called(AroundAGraph()), False),
    "one argument for two": (lambda: chain(OneForTwo()), True),
}


def warned_by(change, model):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = change(model)
    ours = [str(w.message) for w in caught if w.category is UserWarning]
    return report, [message for message in ours if "may have another" in message]


def regularizers_of(model):
    found = [weight.regularizer for weight in model.trainable_weights]
    return [regularizer and regularizer.get_config() for regularizer in found]


def reloaded(model, folder):
    model.save(folder / "model.keras")
    return called_once(keras.models.load_model(folder / "model.keras"))


def called_once(model):
    if not all(layer.built for layer in model._flatten_layers()):
        model(X)
    return model


def put(model):
    return regularize(
        model, R, layers=lambda layer: True, include_normalized=True, replace=True
    )


@pytest.mark.parametrize(
    "name, change",
    # What forgets the first change loads as it is wanted after the second.
    [(n, put) for n in MODELS] + [(n, deregularize) for n in MODELS if MODELS[n][1]],
)
def test_what_is_saved_is_known(name, change, tmp_path):
    build, keeps = MODELS[name]
    model = build()
    if change is deregularize:
        put(model)
    report, messages = warned_by(change, model)
    assert all(row.changed for row in report if row.shape != (3,))
    again = reloaded(model, tmp_path)
    survives = regularizers_of(again) == regularizers_of(model)
    assert survives is keeps
    assert bool(messages) is not keeps, messages
    assert any("not saved" in row.note for row in report) is not keeps


@registered
class FixedDense(layers.Dense):
    def __init__(self, **kwargs):
        super().__init__(4, kernel_regularizer=R, name="d")

    def get_config(self):
        return {}


def fixed_graph():
    return called(FixedGraph())


@registered
class FixedGraph(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.graph = chain(layers.Dense(4, kernel_regularizer=R))

    def call(self, x):
        return self.graph(x)

    def get_config(self):
        return {"name": self.name}


@pytest.mark.parametrize(
    "build",
    [
        lambda: chain(Fixed()),
        lambda: chain(Wrapping(Fixed())),
        lambda: chain(Keeper(Fixed())),
        lambda: chain(layers.SpectralNormalization(FixedDense())),
        lambda: called(Listed([layers.Dense(4), Fixed()])),
        fixed_graph,
    ],
)
def test_a_penalty_that_loading_brings_back_is_named(build, tmp_path):
    model = build()
    assert len(model.losses) == 1
    report, (message,) = warned_by(deregularize, model)
    assert not model.losses
    assert len(reloaded(model, tmp_path).losses) == 1
    assert message.startswith("1 of ") and "call `deregularize` again" in message
    back = [r.note for r in report if "WEISSI removed; not saved:" in r.note]
    assert len(back) == 1 and "is loaded with WEISSI(" in back[0]


def test_one_argument_for_two_kernels_spreads(tmp_path):
    model = chain(OneForTwo(name="mine"))
    report, (message,) = warned_by(
        lambda m: regularize(m, R, layers=["mine/kernel"]), model
    )
    assert len(model.losses) == 1 and len(reloaded(model, tmp_path).losses) == 2
    assert "'mine/gate_kernel' (not saved: OneForTwo is loaded with WEISSI" in message
    assert [row.changed for row in report] == [True, False]
    _, messages = warned_by(lambda m: regularize(m, R), chain(OneForTwo()))
    assert not messages


def test_one_direction_of_two_spreads(tmp_path):
    model = chain(layers.Bidirectional(layers.GRU(3), name="both"), shape=(5, 4))
    names = [row.name for row in regularize(model, R)]
    deregularize(model)
    _, messages = warned_by(lambda m: regularize(m, R, layers=names[:2]), model)
    again = reloaded(model, tmp_path)
    # Keras keeps one configuration for both directions, or one for each.
    assert len(model.losses) == 2 and len(again.losses) in (2, 4)
    assert bool(messages) == (len(again.losses) == 4)


@pytest.mark.filterwarnings("ignore:[0-9]+ of .* may have another")
def test_what_an_earlier_call_put_and_loading_loses_is_named_again():
    model = chain(Holder(name="a"), Holder(name="b"), WithConfig(name="c"))
    names = [row.name for row in put(model)]
    with pytest.warns(UserWarning, match="2 of 3 kernels may have another") as caught:
        regularize(model, WEISSI(0.5), layers=names[0])
    message = str(caught[0].message)
    assert repr(names[0]) in message and repr(names[1]) in message
    with pytest.warns(UserWarning, match="2 of 3 kernels may have another"):
        regularize(model, WEISSI(0.5), layers="c")
    with warnings.catch_warnings():
        # An earlier L2 is not what this call is about.
        warnings.simplefilter("error", UserWarning)
        other = chain(Holder("l2", name="a"), WithConfig(name="c"))
        regularize(other, R, layers="c")
        deregularize(other)


def test_every_kernel_that_is_refused_or_lost_is_named():
    stack = [layers.Dense(4, kernel_regularizer="l2", name=f"r{i}") for i in range(2)]
    model = chain(*stack, Holder(name="a"), AutoConfig(name="b"), WithConfig(name="c"))
    with pytest.warns(UserWarning) as caught:
        report = regularize(model, R)
    refused, lost = [str(w.message) for w in caught if w.category is UserWarning]
    assert refused.startswith("regularize skipped 2 of 5 kernels: 'r0'")
    assert "'r1'" in refused and lost.startswith("2 of 5 kernels may have")
    assert "'a/dense" in lost and "'b' (" in lost and "'c'" not in lost
    assert [row.changed for row in report] == [False, False, True, True, True]


@pytest.mark.parametrize("change", ["put", "deregularize"])
def test_an_error_made_of_the_warning_leaves_the_model_as_it_was(change):
    model = chain(Fixed(), WithConfig(kernel_regularizer="l1"), AutoConfig())
    act = deregularize if change == "deregularize" else put
    before = regularizers_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="may have another"):
            act(model)
    assert regularizers_of(model) == before
    assert type(model.layers[1].kernel_regularizer) is keras.regularizers.L1
    assert model.layers[0].inner.kernel_regularizer is R


def test_functions_that_are_not_registered_are_no_reason_to_warn():
    local = type("Local", (WithConfig,), {})
    model = chain(layers.Dense(4, activation=unregistered), local(4))
    _, messages = warned_by(lambda m: regularize(m, R), model)
    assert not messages


def test_reading_the_configuration_back_leaves_no_traces():
    model = chain(Keeper(layers.Dense(4)), AutoConfig(), Holder(), Drawing())
    layers.Dense(1)
    before = layers.Dense(1).name, random.getstate()
    numpy_before = np.random.get_state()[1:]
    weights = model.get_weights()
    with pytest.warns(UserWarning, match="may have another"):
        regularize(model, R)
    assert random.getstate() == before[1]
    np.testing.assert_equal(np.random.get_state()[1:], numpy_before)
    number = int(before[0].rpartition("_")[2])
    assert layers.Dense(1).name == f"dense_{number + 1}"
    for a, b in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def sum_of(w):
    return ops.sum(w)


@pytest.mark.parametrize(
    "stack",
    [
        lambda f: [layers.LSTM(3, recurrent_regularizer=f)],
        lambda f: [layers.SeparableConv1D(3, 1, pointwise_regularizer=f)],
        lambda f: [
            layers.TimeDistributed(layers.Dense(4, kernel_regularizer=f)),
            layers.Dense(2),
        ],
        lambda f: [Keeper(layers.Dense(4, kernel_regularizer=f)), WithConfig()],
        lambda f: [Holder(f), WithConfig(kernel_regularizer=f)],
    ],
)
@pytest.mark.parametrize("function", [sum_of, lambda w: ops.sum(w)])
@pytest.mark.skipif(
    not takes_functions_as_regularizers(), reason="this Keras takes no functions"
)
@pytest.mark.filterwarnings("ignore:regularize skipped|[0-9]+ of .* may have")
def test_a_regularizer_may_be_a_function(stack, function):
    model = chain(*stack(function), shape=(5, 4))
    count = len(model.losses)
    report = regularize(model, R)
    assert any(row.regularizer is function for row in report)
    assert len(model.losses) > count or isinstance(model.layers[0], Holder)
    assert function.__name__ in str(report) and str(norm_table(model, print_fn=None))
    report = regularize(model, R, replace=True)
    assert all(row.regularizer is R for row in report)
    assert not any(row.regularizer for row in deregularize(model))


@registered
class Weighted(keras.regularizers.Regularizer):
    def __init__(self, weights):
        self.weights = np.array(weights)

    def __call__(self, w):
        return ops.sum(w * self.weights)

    def get_config(self):
        return {"weights": self.weights}


def test_a_configuration_may_hold_an_array():
    old = Weighted([1.0, 2.0, 3.0])
    model = chain(layers.Dense(3, kernel_regularizer=old), layers.Dense(2))
    with pytest.warns(UserWarning, match=r"has Weighted\(weights=\[1. 2. 3.\]"):
        report = regularize(model, R)
    assert report[0].regularizer is old and "Weighted(" in str(report)


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="has it already")
def test_layers_of_keras_need_no_tensorflow():
    program = """
import sys, keras
from keras_weissi import WEISSI, deregularize, regularize
layers = keras.layers
for change in (
    lambda: (regularize(model, WEISSI(0.1)), deregularize(model)),
    lambda: regularize(model, WEISSI(0.1), invariant=True),
    lambda: regularize(model, WEISSI(0.1), layers=["lstm/lstm_cell/kernel"]),
    lambda: regularize(model, WEISSI(0.1), layers=["each", "attention"]),
):
    inputs = keras.Input((5, 4))
    x = layers.MultiHeadAttention(2, 4, name="attention")(inputs, inputs)
    x = layers.TimeDistributed(layers.Dense(3), name="each")(x)
    x = layers.LSTM(3, name="lstm")(x)
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(4)(x)))
    assert "tensorflow" not in sys.modules
    change()
    assert "tensorflow" not in sys.modules
"""
    result = run_python("-c", program)
    assert result.returncode == 0, result.stderr
