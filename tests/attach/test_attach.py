import pickle
import warnings

import keras
import numpy as np
import pytest
from helpers import penalty_of, to_numpy
from keras import layers

from keras_weissi import WEISSI, deregularize, regularize
from keras_weissi.model.kernels import kernels

R = WEISSI(0.1, 0.01, 0.2)


def sequential(*stack, shape):
    return keras.Sequential([keras.Input(shape), *stack])


def nested():
    inner = sequential(layers.Conv1D(3, 2), layers.Dense(3), shape=(6, 4))
    middle = sequential(inner, layers.Dense(2), shape=(6, 4))
    inputs = keras.Input((6, 4))
    return keras.Model(inputs, layers.Dense(2)(middle(inputs)))


def shared():
    layer = layers.Dense(4)
    inputs = keras.Input((4,))
    return keras.Model(
        inputs, layers.add([layer(layer(inputs)), layers.Dense(4)(inputs)])
    )


def attention():
    inputs = keras.Input((5, 8))
    x = layers.MultiHeadAttention(2, 4)(inputs, inputs)
    return keras.Model(inputs, x)


def grouped_attention():
    inputs = keras.Input((5, 8))
    x = layers.GroupQueryAttention(4, 4, 2)(inputs, inputs)
    return keras.Model(inputs, x)


def two_ends():
    a, b = keras.Input((3,)), keras.Input((4,))
    x = layers.concatenate([layers.Dense(3)(a), layers.Dense(2)(b)])
    return keras.Model([a, b], [layers.Dense(1)(x), layers.Dense(2)(x)])


# name -> a function that builds the model, and the number of kernels it has
FORMS = {
    "dense": (lambda: sequential(layers.Dense(3), shape=(4,)), 1),
    "einsum": (
        lambda: sequential(layers.EinsumDense("abc,cd->abd", (None, 3)), shape=(5, 4)),
        1,
    ),
    "conv1d": (lambda: sequential(layers.Conv1D(3, 2), shape=(6, 4)), 1),
    "conv2d": (lambda: sequential(layers.Conv2D(3, 2), shape=(6, 6, 2)), 1),
    "conv3d": (lambda: sequential(layers.Conv3D(3, 2), shape=(4, 4, 4, 2)), 1),
    "conv1d_transpose": (
        lambda: sequential(layers.Conv1DTranspose(3, 2), shape=(6, 4)),
        1,
    ),
    "conv2d_transpose": (
        lambda: sequential(layers.Conv2DTranspose(3, 2), shape=(6, 6, 2)),
        1,
    ),
    "depthwise1d": (lambda: sequential(layers.DepthwiseConv1D(2), shape=(6, 4)), 1),
    "depthwise2d": (lambda: sequential(layers.DepthwiseConv2D(2), shape=(6, 6, 2)), 1),
    "separable1d": (lambda: sequential(layers.SeparableConv1D(3, 2), shape=(6, 4)), 2),
    "separable2d": (
        lambda: sequential(layers.SeparableConv2D(3, 2), shape=(6, 6, 2)),
        2,
    ),
    "lstm": (lambda: sequential(layers.LSTM(3), shape=(5, 4)), 2),
    "gru": (lambda: sequential(layers.GRU(3), shape=(5, 4)), 2),
    "simple_rnn": (lambda: sequential(layers.SimpleRNN(3), shape=(5, 4)), 2),
    "conv_lstm": (
        lambda: sequential(layers.ConvLSTM1D(2, 2), shape=(3, 5, 2)),
        2,
    ),
    "stacked_cells": (
        lambda: sequential(
            layers.RNN([layers.GRUCell(3), layers.LSTMCell(2)]), shape=(5, 4)
        ),
        4,
    ),
    "bidirectional": (
        lambda: sequential(layers.Bidirectional(layers.LSTM(3)), shape=(5, 4)),
        4,
    ),
    "time_distributed": (
        lambda: sequential(layers.TimeDistributed(layers.Dense(3)), shape=(5, 4)),
        1,
    ),
    "attention": (attention, 4),
    "grouped_attention": (grouped_attention, 4),
    "nested": (nested, 4),
    "shared": (shared, 2),
    "two_ends": (two_ends, 4),
}


def expected_penalty(model):
    total = 0.0
    for kernel in kernels(model):
        w = to_numpy(kernel.variable.value).astype("float64")
        norm = np.linalg.norm(w)
        total += 0.1 * np.log(norm) + 0.01 * np.abs(w).sum() / norm
    return total


@pytest.mark.parametrize("way", ["in place", "keras", "h5", "clone_model"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")
def test_every_kernel_is_regularized_and_stays_so(form, way, tmp_path):
    build, count = FORMS[form]
    model = build()
    assert not model.losses
    report = regularize(model, R)
    assert [row.changed for row in report] == [True] * count
    if way == "clone_model":
        weights = model.get_weights()
        model = keras.models.clone_model(model)
        model.set_weights(weights)
    elif way != "in place":
        path = tmp_path / f"model.{way}"
        model.save(path)
        model = keras.models.load_model(path)
    assert len(model.losses) == count
    assert penalty_of(model) == pytest.approx(expected_penalty(model), rel=1e-5)
    deregularize(model)
    assert not model.losses
    assert not keras.models.clone_model(model).losses


X = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")


def make_model(*regularizers):
    stack = [
        layers.Dense(4, kernel_regularizer=r, name=f"h{i}")
        for i, r in enumerate(regularizers or (None, None))
    ]
    model = sequential(*stack, shape=(4,))
    model.compile("adam", "mse")
    return model


def fit(model, **arguments):
    return model.fit(X, X, batch_size=8, verbose=0, **arguments).history


def test_after_a_fit_it_takes_effect_and_the_optimizer_keeps_its_state():
    model = make_model()
    fit(model, epochs=2)
    model.evaluate(X, X, verbose=0)
    weights = [w.copy() for w in model.get_weights()]
    state = [to_numpy(v.value).copy() for v in model.optimizer.variables]
    assert int(model.optimizer.iterations) == 8
    regularize(model, WEISSI(0.3))
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    for before, after in zip(state, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(before, to_numpy(after.value))
    data = model.evaluate(X, X, verbose=0) - penalty_of(model)
    plain = float(np.mean((model.predict(X, verbose=0) - X) ** 2))
    assert data == pytest.approx(plain, rel=1e-4)  # the penalty is in the loss
    model.optimizer.learning_rate = 0.0
    loss = fit(model, epochs=1)["loss"][0]
    assert loss == pytest.approx(plain + penalty_of(model), rel=1e-4)
    assert int(model.optimizer.iterations) == 12


def test_a_change_of_strength_takes_effect_after_a_fit():
    model = make_model()
    model.optimizer.learning_rate = 0.0
    plain = fit(model)["loss"][0]
    losses = []
    for strength in (0.1, 0.5):
        regularize(model, WEISSI(strength))
        losses.append(fit(model)["loss"][0] - plain)
    assert losses[0] == pytest.approx(penalty_of(model) / 5, rel=1e-3)
    assert losses[1] == pytest.approx(penalty_of(model), rel=1e-3)
    deregularize(model)
    assert fit(model)["loss"][0] == pytest.approx(plain, rel=1e-6)


def test_a_warning_made_an_error_leaves_the_model_as_it_was():
    model = make_model("l2", None, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="regularize skipped 1 of 3 kernels"):
            regularize(model, R)
    assert len(model.losses) == 1
    assert model.get_layer("h1").kernel_regularizer is None


def test_other_regularizers_stay_unless_replaced():
    model = make_model("l2", WEISSI(0.5), None)
    with pytest.warns(UserWarning, match=r"'h0' \(has L2\(l2=0.01\) already"):
        report = regularize(model, R)
    assert [row.changed for row in report] == [False, True, True]
    assert report[1].note == "was WEISSI(log_norm=0.5, min_norm=0.1)"
    assert type(model.get_layer("h0").kernel_regularizer) is keras.regularizers.L2
    report = regularize(model, R, replace=True)
    assert [row.regularizer for row in report] == [R, R, R]
    deregularize(model)
    assert not model.losses


def test_deregularize_leaves_the_others():
    model = make_model("l2", WEISSI())
    report = deregularize(model)
    assert [row.changed for row in report] == [False, True]
    assert len(model.losses) == 1


def test_which_layers():
    model = make_model(None, None, None)

    def changed(**arguments):
        report = regularize(model, R, **arguments)
        names = [row.name for row in report if row.changed]
        deregularize(model)
        return names

    assert changed(layers="h1") == ["h1"]
    assert changed(layers=["h2", "h0"]) == ["h0", "h2"]
    assert changed(layers=layers.Dense) == ["h0", "h1", "h2"]
    assert changed(layers=lambda layer: layer.name != "h0") == ["h1", "h2"]
    lstm = sequential(layers.LSTM(2, name="lstm"), layers.Dense(2), shape=(3, 4))
    report = regularize(lstm, R, layers=layers.LSTM)
    assert [row.changed for row in report] == [True, True, False]


def test_a_function_and_a_dict_choose_by_layer():
    model = make_model(None, None, None)
    report = regularize(
        model,
        lambda layer: None if layer.name == "h1" else WEISSI(float(layer.name[1])),
    )
    assert [row.changed for row in report] == [True, False, True]
    assert report[2].regularizer.log_norm == 2.0
    assert report[1].note == "not in `regularizer`"
    model = nested()
    inner, outer = model.layers[1].name, model.layers[2].name
    report = regularize(model, {inner: WEISSI(0.1), outer: "l2"})
    kinds = [type(row.regularizer).__name__ for row in report]
    assert kinds == ["WEISSI", "WEISSI", "WEISSI", "L2"]
    conv = report[0].name
    report = regularize(model, {conv: WEISSI(0.7), inner: WEISSI(0.1)})
    assert [row.regularizer.log_norm for row in report[:3]] == [0.7, 0.1, 0.1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            dict(regularizer=R, layers="h3"),
            r"`layers`.*such as \['h\d'.*Received: 'h3'",
        ),
        (dict(regularizer=R, layers=3), "argument `layers`"),
        (dict(regularizer=R, layers=lambda layer: False), "argument `layers`"),
        (dict(regularizer={"h0": R, "h7": R}), "`regularizer`.*Received: 'h7'"),
        (
            dict(regularizer={"h0": 3}),
            r"`regularizer\['h0'\]`.*Received: regularizer\['h0'\]=3",
        ),
        (dict(regularizer=lambda layer: 3), r"`regularizer\(layer 'h0'\)`.*=3"),
        (dict(regularizer=None), "argument `regularizer`.*Received: regularizer=None"),
        (dict(regularizer="l9"), "l9"),
        (dict(regularizer={}), "at least one layer"),
        (dict(regularizer=WEISSI), r"such as WEISSI\(0.01\)"),
        (dict(regularizer=0.01), r"such as WEISSI\(0.01\)"),
        (dict(regularizer={1: R}), r"a dict from names .*Received: regularizer=\{1: "),
        (dict(regularizer=keras.regularizers.Regularizer()), "`get_config`"),
    ],
)
def test_bad_arguments_change_nothing(arguments, message):
    model = make_model()
    config = model.get_config()
    with pytest.raises(ValueError, match=message):
        regularize(model, **arguments)
    assert model.get_config() == config and not model.losses


def test_models_that_cannot_be_regularized():
    unbuilt = keras.Sequential([layers.Dense(2)])
    for function in (lambda m: regularize(m, R), deregularize):
        with pytest.raises(ValueError, match="built model with kernels.*built=False"):
            function(unbuilt)
        with pytest.raises(ValueError, match="Expected a keras.Model. Received"):
            function("model")


def normalized():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, use_bias=False, name="plain")(inputs)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.Conv2D(4, 3, activation="relu", name="relu")(x)
    x = layers.LayerNormalization(name="ln")(x)
    x = layers.Conv2D(4, 3, activation="sigmoid", name="sigmoid")(x)
    x = layers.BatchNormalization()(x)
    y = layers.Conv2D(4, 1, name="forked")(x)
    x = layers.BatchNormalization()(y) + y
    x = layers.SeparableConv2D(4, 1, name="separable")(x)
    x = layers.BatchNormalization(name="bn_separable")(x)
    return keras.Model(inputs, layers.Dense(2, name="dense")(x))


def caption_of(report):
    """What is printed below the table."""
    return str(report).rpartition("┘\n")[2]


def test_kernels_before_a_normalization_are_left_out():
    report = regularize(normalized(), R)
    assert {row.name: row.scale for row in report if not row.changed} == {
        "plain": "normalized by bn",
        "relu": "normalized by ln",
        "separable/depthwise_kernel": "normalized by bn_separable",
        "separable/pointwise_kernel": "normalized by bn_separable",
    }
    assert not any(row.note for row in report)
    assert "include_normalized=True would change 4 more" in str(report)
    report = regularize(normalized(), R, include_normalized=True)
    assert all(row.changed for row in report)
    assert "include_normalized" not in str(report)
    with pytest.warns(UserWarning, match=r"'plain' \(normalized by bn\)"):
        regularize(normalized(), R, layers=["plain", "dense"])


def test_an_output_of_the_model_is_not_normalized():
    inputs = keras.Input((4,))
    x = layers.Dense(3)(inputs)
    model = keras.Model(inputs, [x, layers.BatchNormalization()(x)])
    assert regularize(model, R)[0].changed


def test_normalization_is_seen_across_nested_models():
    body = sequential(layers.Conv1D(3, 1, name="conv"), shape=(6, 4))
    head = sequential(layers.BatchNormalization(name="bn"), shape=(6, 3))
    inputs = keras.Input((6, 4))
    x = layers.TimeDistributed(layers.Dense(3, name="each"))(head(body(inputs)))
    x = layers.BatchNormalization(name="bn_2")(x)
    model = keras.Model(inputs, layers.Dense(2, name="dense")(x))
    scales = {row.name.split("/")[-1]: row.scale for row in regularize(model, R)}
    assert scales["conv"] == "normalized by bn"
    assert scales["each"] == "normalized by bn_2"
    assert scales["dense"] == "shifts"
    # The same body on its own feeds the outside world.
    assert regularize(body, R)[0].changed


class Block(layers.Layer):
    def __init__(self):
        super().__init__(name="block")
        self.inner = layers.Dense(4, name="inner")
        self.normalization = layers.BatchNormalization()

    def build(self, shape):
        self.inner.build(shape)
        self.normalization.build((None, 4))

    def call(self, x):
        return self.normalization(self.inner(x))


class Subclassed(keras.Model):
    def __init__(self, block):
        super().__init__()
        self.block = block
        self.own = self.add_weight(shape=(4, 4), name="kernel")

    def call(self, x):
        return self.block(x) @ self.own


def refuse_symbols(layer, x):
    if layer.built and isinstance(x, keras.KerasTensor):
        raise TypeError("no symbols")


class Hidden(Block):
    def call(self, x):
        refuse_symbols(self, x)
        return super().call(x)


class HiddenModel(Subclassed):
    def call(self, x):
        refuse_symbols(self, x)
        return super().call(x)


def test_what_a_call_shows_is_said_of_the_kernels_inside():
    model = Subclassed(Block())
    model(X)
    with pytest.warns(UserWarning, match="1 of 2 kernels may have another"):
        report = regularize(model, R)
    name = model.block.normalization.name
    assert [row.scale for row in report] == ["shifts", f"normalized by {name}"]
    assert [row.changed for row in report] == [True, False]


def test_what_keras_does_not_show_is_said_to_be_hidden():
    model = HiddenModel(Block())
    model(X)
    with pytest.warns(UserWarning, match="2 of 2 kernels may have another"):
        report = regularize(model, R)
    assert [row.name for row in report] == ["kernel", "block/inner"]
    where = f"hidden: in {model.name}"
    assert all(row.scale.startswith(where) for row in report)
    assert "scale" not in caption_of(report)
    assert "not saved: the layer has no argument" in report[0].note
    assert "not saved unless HiddenModel saves it" in report[1].note
    assert penalty_of(model) == pytest.approx(expected_penalty(model), rel=1e-5)
    with pytest.warns(UserWarning, match="not saved unless Hidden saves it"):
        report = regularize(sequential(Hidden(), shape=(4,)), R)
    assert report[0].scale.startswith("hidden: ") and report[0].changed
    assert "Hidden cannot be seen through" in report[0].scale
    with pytest.warns(UserWarning, match="not saved unless Hidden saves it"):
        report = regularize(sequential(layers.Dense(4), Hidden(), shape=(4,)), R)
    assert report[0].scale.startswith("hidden: ") and report[0].changed


def test_a_normalization_is_seen_inside_custom_layers_and_subclassed_models():
    model = Subclassed(Block())
    model(X)
    with pytest.warns(UserWarning, match="1 of 2 kernels may have another"):
        report = regularize(model, R)
    scales = {row.name: (row.changed, row.scale) for row in report}
    name = model.block.normalization.name
    assert scales["block/inner"] == (False, f"normalized by {name}")
    assert scales["kernel"] == (True, "shifts")
    assert len(model.losses) == 1 and model.own.regularizer is R
    # What goes into a layer that normalizes later feeds a kernel, which is seen.
    report = regularize(sequential(layers.Dense(4), Block(), shape=(4,)), R)
    assert [row.changed for row in report] == [True, False]
    assert report[0].note == ""


@keras.saving.register_keras_serializable("tests")
class OwnStep(keras.Model):
    def train_step(self, *args, **kwargs):
        return super().train_step(*args, **kwargs)


@keras.saving.register_keras_serializable("tests")
class OwnSequential(keras.Sequential):
    pass


@keras.saving.register_keras_serializable("tests")
class OwnDense(layers.Dense):
    pass


@pytest.mark.filterwarnings("error:regularize")
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kind", ["step", "sequential", "dense"])
def test_subclasses_that_save_their_layers_are_no_reason_to_warn(
    kind, inside, tmp_path
):
    inputs = keras.Input((4,))
    outputs = layers.Dense(3, "relu")(inputs)
    model = {
        "step": lambda: OwnStep(inputs, layers.Dense(2)(outputs)),
        "sequential": lambda: OwnSequential([inputs, layers.Dense(2)]),
        "dense": lambda: keras.Model(inputs, OwnDense(2)(outputs)),
    }[kind]()
    if inside:
        model = keras.Sequential([keras.Input((4,)), model])
    report = regularize(model, R)
    assert all(row.changed and "saved" not in row.note for row in report)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert len(loaded.losses) == len(report) == len(model.losses)
    assert penalty_of(loaded) == pytest.approx(expected_penalty(model), rel=1e-5)


class Locked(layers.Dense):
    def __setattr__(self, name, value):
        if name == "kernel_regularizer" and self.built:
            raise AttributeError("locked")
        super().__setattr__(name, value)


def test_deregularize_takes_off_all_or_none():
    model = sequential(
        layers.Dense(3, kernel_regularizer=R, name="first"),
        Locked(2, kernel_regularizer=R, name="second"),
        shape=(4,),
    )
    with pytest.raises(AttributeError, match="locked"):
        deregularize(model)
    for layer in model.layers:
        assert layer.kernel.regularizer is R and layer.kernel_regularizer is R
    assert len(model.losses) == 2


@pytest.mark.skipif(
    not hasattr(layers, "ReversibleEmbedding"), reason="not in this version of Keras"
)
def test_the_way_back_of_a_reversible_embedding_is_listed():
    embedding = layers.ReversibleEmbedding(10, 4, tie_weights=False, name="emb")
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Dense(4, name="d")(embedding(inputs))
    model = keras.Model(inputs, embedding(x, reverse=True))
    report = regularize(model, R)
    assert {row.name: row.changed for row in report} == {
        "emb/embeddings": False,
        "emb/reverse_embeddings": False,
        "d": True,
    }
    with pytest.warns(UserWarning, match="emb/reverse_embeddings.*not saved"):
        report = regularize(model, R, layers=["emb"])
    assert [row.name for row in report if row.changed] == [
        "emb/embeddings",
        "emb/reverse_embeddings",
    ]


def test_a_spectrally_normalized_kernel_is_left_out():
    wrapped = layers.SpectralNormalization(layers.Dense(3, name="d"), name="spectral")
    model = sequential(wrapped, layers.Dense(2, name="last"), shape=(4,))
    report = regularize(model, R)
    assert [row.changed for row in report] == [False, True]
    assert report[0].scale == "normalized by spectral"


def test_embeddings_only_when_asked_for():
    def model():
        return sequential(
            layers.Embedding(5, 4, name="words"), layers.Dense(2), shape=(3,)
        )

    report = regularize(model(), R)
    assert [row.changed for row in report] == [False, True]
    assert "an embedding" in report[0].note
    for chosen in ("words", layers.Embedding):
        asked = model()
        assert regularize(asked, R, layers=chosen)[0].changed
        assert len(keras.models.clone_model(asked).losses) == 1


def test_frozen_kernels_count_once_they_are_trainable():
    model = make_model()
    model.get_layer("h0").trainable = False
    report = regularize(model, R)
    assert report[0].changed and report[0].note.startswith("frozen")
    assert len(model.losses) == 1
    model.get_layer("h0").trainable = True
    assert len(model.losses) == 2


def test_lora_and_quantized_kernels_are_left_out_aloud():
    model = make_model(None, None, None)
    model.get_layer("h0").enable_lora(2)
    model.get_layer("h1").quantize("int8")
    with pytest.warns(UserWarning, match=r"'h0' \(LoRA.*'h1' \(quantized to int8\)"):
        report = regularize(model, R)
    assert [row.name for row in report] == ["h0", "h1", "h2"]
    assert [row.changed for row in report] == [False, False, True]
    assert len(model.losses) == 1


def test_the_penalty_on_the_factors_of_lora_is_named():
    model = make_model(WEISSI(0.1), None)
    model.get_layer("h0").enable_lora(2)
    with pytest.warns(UserWarning, match=r"WEISSI\(log_norm=0.1.*`deregularize` r"):
        regularize(model, R)
    with pytest.warns(UserWarning, match="LoRA is enabled: .* frozen\\)"):
        deregularize(model)
        regularize(model, R)


def test_a_function_is_asked_for_a_gamma_that_is_named():
    model = sequential(
        layers.Dense(4, name="d"), layers.BatchNormalization(name="bn"), shape=(4,)
    )
    report = regularize(model, lambda layer: WEISSI(0.3), layers=["bn"])
    assert [row.name for row in report if row.changed] == ["bn"]
    assert model.get_layer("bn").gamma_regularizer.log_norm == 0.3
    deregularize(model)
    asked = []
    with pytest.warns(UserWarning, match="on 0 of 1 kernels"):
        regularize(model, asked.append, layers=["d"])
    assert [layer.name for layer in asked] == ["d"]


def test_what_is_refused_and_what_is_not_saved_are_both_named():
    inputs = keras.Input((4,))
    x = layers.Dense(4, kernel_regularizer="l2", name="refused")(inputs)
    model = keras.Model(inputs, Hidden()(x))
    with pytest.warns(UserWarning) as caught:
        regularize(model, R)
    ours = [w for w in caught if w.category is UserWarning]
    refused, lost = [str(warning.message) for warning in ours]
    assert refused.startswith("regularize skipped 1 of 2 kernels: 'refused'")
    assert lost.startswith("1 of 2 kernels may have another")
    assert "not saved unless Hidden saves it" in lost


def test_nothing_to_regularize_is_said_aloud():
    model = sequential(layers.Dense(2), layers.BatchNormalization(), shape=(4,))
    with pytest.warns(
        UserWarning,
        match="regularize put a regularizer on 0 of 1 kernels: .*normalized",
    ):
        report = regularize(model, R)
    assert not report[0].changed and not model.losses


def test_an_attention_layer_takes_one_regularizer():
    model = attention()
    mha = model.layers[1]
    config = model.get_config()
    for arguments in (
        {"layers": "query"},
        {"regularizer": lambda layer: WEISSI(0.1 if layer.name == "key" else 0.2)},
    ):
        with pytest.raises(ValueError, match=f"every kernel of layer '{mha.name}'"):
            regularize(model, **{"regularizer": R, **arguments})
        assert model.get_config() == config and not model.losses
    assert all(row.changed for row in regularize(model, R, layers=mha.name))


def test_the_private_attribute_of_attention_is_still_there():
    mha = layers.MultiHeadAttention(2, 4, kernel_regularizer="l2")
    assert type(mha._kernel_regularizer) is keras.regularizers.L2


def test_the_report_is_a_table_and_data():
    model = make_model("l2", None)
    with pytest.warns(UserWarning):
        report = regularize(model, R)
    text = str(report)
    assert (
        "1 of 2 kernels got the penalty" in text and "has L2(l2=0.01) already" in text
    )
    assert "(4, 4)" in text and "WEISSI(log_norm=0.1, direction_l1=0.01" in text
    row = report.to_dicts()[1]
    assert row["name"] == "h1" and row["regularizer"] is R and row["shape"] == (4, 4)
    expected = np.linalg.norm(to_numpy(model.get_layer("h1").kernel))
    assert row["norm"] == pytest.approx(expected, rel=1e-6)


def test_a_name_closer_to_the_kernel_goes_first():
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="fc"), layers.Dense(4, name="d")],
        name="a_longer_name",
    )
    model = sequential(inner, shape=(4,))
    report = regularize(model, {"a_longer_name": WEISSI(0.1), "fc": WEISSI(0.5)})
    assert [row.regularizer.log_norm for row in report] == [0.5, 0.1]


def test_a_callback_may_change_the_strength_during_a_fit():
    model = make_model()
    model.optimizer.learning_rate = 0.0

    def strengthen(epoch, logs):
        regularize(model, WEISSI(float(epoch + 1)))

    callback = keras.callbacks.LambdaCallback(on_epoch_end=strengthen)
    losses = fit(model, epochs=3, callbacks=[callback])["loss"]
    penalty = penalty_of(model) / 3
    assert losses[1] - losses[0] == pytest.approx(penalty, rel=1e-4)
    assert losses[2] - losses[0] == pytest.approx(2 * penalty, rel=1e-4)


def test_a_compiled_model_inside_another_takes_it_up_too():
    inner = make_model()
    fit(inner)
    inner.optimizer.learning_rate = 0.0
    plain = fit(inner)["loss"][0]
    outer = sequential(inner, layers.Dense(2), shape=(4,))
    regularize(outer, WEISSI(1.0))
    assert fit(inner)["loss"][0] == pytest.approx(plain + penalty_of(inner), rel=1e-4)


class Refusing(layers.Dense):
    @property
    def kernel_regularizer(self):
        return None

    @kernel_regularizer.setter
    def kernel_regularizer(self, value):
        if self.built:
            raise AttributeError("too late")


def test_a_layer_that_refuses_leaves_the_whole_model_as_it_was():
    model = sequential(layers.Dense(4), Refusing(4), shape=(4,))
    with pytest.raises(AttributeError, match="too late"):
        regularize(model, R)
    assert not model.losses and model.layers[0].kernel_regularizer is None


def test_a_regularizer_has_to_take_the_kernels():
    model = sequential(layers.Conv1D(4, 2), layers.Dense(2), shape=(6, 4))
    with pytest.raises(ValueError, match="of rank 3. Received: OrthogonalReg"):
        regularize(model, keras.regularizers.OrthogonalRegularizer())
    assert not model.losses


def test_attention_with_lora_is_left_out_whole_and_the_rest_is_not():
    inputs = keras.Input((5, 8))
    mha = layers.MultiHeadAttention(2, 4, name="mha")
    model = keras.Model(inputs, layers.Dense(2, name="last")(mha(inputs, inputs)))
    mha.query_dense.enable_lora(2)
    with pytest.warns(UserWarning, match="LoRA is enabled"):
        report = regularize(model, R)
    assert [row.changed for row in report] == [False] * 4 + [True]
    assert "left out with mha/query: LoRA" in report[1].note
    assert mha._kernel_regularizer is None and len(model.losses) == 1


def test_deregularize_finds_the_copies_that_keras_made():
    model = make_model(None, None)
    regularize(model, R)
    model.get_layer("h0").enable_lora(2)
    model.get_layer("h1").quantize("int8")
    deregularize(model)
    assert not model.losses
    assert model.get_layer("h0").kernel_regularizer is None
    assert model.get_layer("h1").kernel_regularizer is None


@pytest.mark.filterwarnings("ignore:Layer 'sequential.*input with a mask")
def test_graphs_that_are_hard_to_read_raise_nothing():
    inner = sequential(layers.LSTM(3), shape=(None, 4))
    inputs, mask = keras.Input((5, 4)), keras.Input((5,), dtype="bool")
    x = inner(layers.Dense(4, name="first")(inputs), mask=mask)
    model = keras.Model([inputs, mask], layers.Dense(2)(x))
    report = regularize(model, R)
    assert all(row.changed for row in report)
    assert report[0].scale == "hidden: the layer that it feeds cannot be seen"
    a = keras.Input((4,))
    passing = keras.Model(a, [a, layers.Dense(4)(a)])
    first, second = passing(a)
    model = keras.Model(a, passing(second) + [first])
    assert regularize(model, R)[0].changed


@pytest.mark.parametrize(
    "model",
    [
        lambda: sequential(
            layers.TimeDistributed(layers.Dense(3, name="dense")),
            layers.TimeDistributed(layers.BatchNormalization(name="bn")),
            layers.Dense(2),
            shape=(5, 4),
        ),
        lambda: sequential(
            layers.TimeDistributed(
                sequential(
                    layers.Dense(3, name="dense"),
                    layers.BatchNormalization(name="bn"),
                    shape=(4,),
                )
            ),
            layers.Dense(2),
            shape=(5, 4),
        ),
        lambda: sequential(
            layers.TimeDistributed(sequential(layers.Dense(3), shape=(4,))),
            layers.TimeDistributed(layers.BatchNormalization(name="bn")),
            layers.Dense(2),
            shape=(5, 4),
        ),
        lambda: sequential(
            layers.Dense(3, name="dense", activation=layers.LeakyReLU()),
            layers.BatchNormalization(name="bn"),
            layers.Dense(2),
            shape=(4,),
        ),
    ],
)
def test_normalization_is_seen_through_wrappers(model):
    report = regularize(model(), R)
    assert [row.changed for row in report] == [False, True]
    assert report[0].scale == "normalized by bn"


def test_a_graph_inside_a_subclassed_model_is_seen():
    class Outer(keras.Model):
        def __init__(self):
            super().__init__()
            self.body = sequential(
                layers.Dense(3), layers.BatchNormalization(name="bn"), shape=(4,)
            )

        def call(self, x):
            return self.body(x)

    model = Outer()
    model(X)
    with pytest.warns(UserWarning, match="on 0 of 1 kernels"):
        report = regularize(model, R)
    assert report[0].scale == "normalized by bn"


def test_the_report_can_be_pickled():
    report = regularize(make_model(), R)
    assert str(pickle.loads(pickle.dumps(report))) == str(report)


@pytest.mark.parametrize("change", [lambda m: regularize(m, WEISSI(0.3)), deregularize])
def test_norms_that_cannot_be_read_leave_the_model_as_it_was(change, monkeypatch):
    before = WEISSI(0.1)
    dense = layers.Dense(2, kernel_regularizer=before)
    model = keras.Sequential([keras.Input((4,)), dense])

    def fail(variable):
        raise MemoryError

    monkeypatch.setattr("keras_weissi.attach.report.host_norm", fail)
    with pytest.raises(MemoryError):
        change(model)
    assert dense.kernel_regularizer is dense.kernel.regularizer is before
