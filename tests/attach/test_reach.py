"""What is changed reaches the next step, or a warning says that it does not."""

import gc

import keras
import numpy as np
import pytest
from helpers import BACKEND
from keras import layers, ops

from keras_weissi import WEISSI, deregularize, norm_table, regularize

X = np.ones((8, 4), "float32")


def graph(kind=keras.Model, **arguments):
    inputs = keras.Input((4,))
    model = kind(inputs, layers.Dense(4, name="d", **arguments)(inputs))
    model.compile(keras.optimizers.SGD(0.0), "mse")
    return model


def loss_of(model, key="loss"):
    return model.fit(X, X, verbose=0).history[key][0]


class Parts(keras.Model):
    """Has parts and a training step, and is never called, as a GAN or a distiller."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)

    def train_step(self, *args):
        data = args[-1][0]
        total = ops.mean((self.student(data) - data) ** 2) + sum(self.student.losses)
        metrics = {"total": total}
        return (metrics, args[0]) if BACKEND == "jax" else metrics


def dense(*units):
    return keras.Sequential([keras.Input((4,)), *map(layers.Dense, units)])


@pytest.mark.filterwarnings("ignore:[0-9]+ of .* may have another")
def test_a_model_of_parts_is_taken_once_they_are_built():
    model = Parts(student=dense(4), teacher=dense(8, 4), flat=layers.Flatten())
    model.compile("sgd")
    assert not model.built
    # On the other backends, Keras itself fits no model without a `call`.
    before = loss_of(model, "total") if BACKEND == "tensorflow" else None
    report = regularize(model, WEISSI(1.0))
    assert [row.changed for row in report] == [True] * 3
    assert len(model.student.losses) == 1 and len(model.teacher.losses) == 2
    assert [row.name for row in norm_table(model, None)] == [r.name for r in report]
    if before is not None:
        penalty = float(ops.convert_to_numpy(sum(model.student.losses)))
        assert loss_of(model, "total") == pytest.approx(before + penalty, abs=1e-4)
    deregularize(model)
    assert not model.student.losses


@pytest.mark.parametrize(
    "part",
    [
        lambda: keras.Sequential([layers.Dense(4, name="late")]),
        lambda: layers.LSTM(3, name="late"),
        lambda: layers.TimeDistributed(layers.Dense(4), name="late"),
    ],
)
def test_a_model_of_parts_that_are_not_all_built_is_refused(part):
    model = Parts(student=dense(4), late=part())
    for function in (lambda m: regularize(m, WEISSI()), deregularize, norm_table):
        with pytest.raises(ValueError, match="call it on data.*not built: 'late'"):
            function(model)
    assert not model.student.losses


class MakesInBuild(keras.Model):
    def __init__(self):
        super().__init__()
        self.backbone = dense(4)

    def build(self, shape):
        self.head = layers.Dense(2)
        self.head.build((None, 4))

    def call(self, x):
        return self.head(self.backbone(x))


def test_a_model_that_makes_layers_in_build_is_refused_before():
    with pytest.raises(ValueError, match="built model with kernels"):
        regularize(MakesInBuild(), WEISSI())


@pytest.mark.skipif(BACKEND != "tensorflow", reason="about tf.function")
def test_a_step_that_is_traced_by_the_user_is_warned_of():
    import tensorflow as tf

    class Traced(keras.Model):
        @tf.function
        def train_step(self, data):
            x, y = data
            error = tf.reduce_mean((self(x, training=True) - y) ** 2)
            return {"total": error + sum(self.losses)}

    model = graph(Traced)
    regularize(model, WEISSI(1.0))  # nothing is traced yet
    before = loss_of(model, "total")
    with pytest.warns(UserWarning, match="regularize changes nothing in `train_step`"):
        regularize(model, WEISSI(2.0))
    assert loss_of(model, "total") == pytest.approx(before, rel=1e-6)
    with pytest.warns(UserWarning, match="deregularize changes nothing"):
        deregularize(model)
    with pytest.raises(UserWarning, match="changes nothing"):
        regularize(model, WEISSI(3.0))
    assert not model.losses and model.train_function is not None


def unreached(caught):
    return sum("changes nothing in" in str(w.message) for w in caught)


def traced(make):
    """Returns a class of models, a method of which `make` has compiled."""

    class Own(keras.Model):
        def compute(self, x, y):
            return ops.mean((self(x, training=True) - y) ** 2) + sum(self.losses)

        def train_step(self, data):
            return {"total": self.compute(*data)}

        def serve(self, x):
            return self(x)

        def call(self, *args, **kwargs):
            return super().call(*args, **kwargs)

    for name in make:
        setattr(Own, name, make[name](getattr(Own, name)))
    return Own


@pytest.mark.filterwarnings("ignore:[0-9]+ of .* may have another")
@pytest.mark.skipif(BACKEND != "tensorflow", reason="about tf.function")
def test_a_traced_step_in_a_loop_of_the_user_is_warned_of():
    import tensorflow as tf

    model = graph(traced({"train_step": tf.function}))
    other = graph(type(model))
    before = float(model.train_step((X, X))["total"])
    with pytest.warns(
        UserWarning, match="changes nothing in `train_step` of"
    ) as caught:
        regularize(model, WEISSI(1.0))
    assert unreached(caught) == 1 and model.train_function is None
    assert float(model.train_step((X, X))["total"]) == pytest.approx(before)
    regularize(other, WEISSI(1.0))  # of the same class, and not traced


@pytest.mark.filterwarnings("ignore:[0-9]+ of .* may have another")
@pytest.mark.skipif(BACKEND != "tensorflow", reason="about tf.function")
def test_a_traced_method_that_a_step_calls_is_warned_of():
    import tensorflow as tf

    model = graph(traced({"compute": tf.function, "call": tf.function}))
    before = loss_of(model, "total")
    with pytest.warns(UserWarning, match="changes nothing in `compute` of") as caught:
        regularize(model, WEISSI(1.0))
    assert unreached(caught) == 1  # and not of `call`
    assert loss_of(model, "total") == pytest.approx(before, rel=1e-6)
    model = graph(traced({}))
    model.compute = tf.function(model.compute)
    # These are callable and have a `lower`, but are no functions of JAX.
    model.block, model.text = layers.Identity(), str
    model.block.lower = str.lower
    loss_of(model, "total")
    with pytest.warns(UserWarning, match="changes nothing in `compute` of") as caught:
        regularize(model, WEISSI(1.0))
    assert unreached(caught) == 1


@pytest.mark.filterwarnings("ignore:[0-9]+ of .* may have another")
@pytest.mark.skipif(BACKEND != "tensorflow", reason="about tf.function")
def test_a_step_that_was_made_and_not_traced_takes_up_the_change():
    import tensorflow as tf

    model = graph(traced({"train_step": tf.function, "serve": tf.function}))
    plain = graph(traced({}))
    plain.set_weights(model.get_weights())
    model.make_train_function()
    regularize(model, WEISSI(1.0))
    penalty = float(ops.convert_to_numpy(sum(model.losses)))
    assert loss_of(model, "total") == pytest.approx(
        loss_of(plain, "total") + penalty, abs=1e-4
    )


@pytest.mark.jax_only
@pytest.mark.parametrize("where", ["train_step", "helper", "instance"])
def test_a_step_that_the_user_compiles_on_jax_takes_up_the_change(where):
    import jax

    class Own(keras.Model):
        def train_step(self, state, data):
            return self.helper(state, data)

        def helper(self, state, data):
            return super().train_step(state, data)

        def pmapped(self, x):
            return x

    if where != "instance":
        setattr(Own, where, jax.jit(getattr(Own, where), static_argnums=0))
    model = graph(Own)
    if where == "instance":
        model.helper = jax.jit(model.helper)
    before = loss_of(model)
    regularize(model, WEISSI(1.0))
    penalty = float(ops.convert_to_numpy(sum(model.losses)))
    assert abs(penalty) > 0.01
    assert loss_of(model) == pytest.approx(before + penalty, abs=1e-4)
    deregularize(model)
    assert loss_of(model) == pytest.approx(before, abs=1e-4)
    model.pmapped = jax.pmap(lambda x: x)  # has nothing that clears its cache
    with pytest.warns(UserWarning, match="changes nothing in `pmapped`"):
        regularize(model, WEISSI(1.0))


class Around(keras.Model):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def call(self, x):
        return self.part(x)


@pytest.mark.parametrize(
    "make",
    [
        lambda part: keras.Sequential([part, layers.Dense(4)]),
        lambda part: keras.Model(part.inputs[0], layers.Dense(4)(part.outputs[0])),
        Around,
    ],
    ids=["whole", "shares a layer", "subclassed"],
)
def test_a_model_that_was_fitted_takes_up_the_change_of_a_part(make):
    part = dense(4)
    whole = make(part)
    whole.compile(keras.optimizers.SGD(0.0), "mse")
    before = loss_of(whole)
    whole.evaluate(X, X, verbose=0)
    held = [whole.train_function, whole.test_function]
    regularize(part, WEISSI(1.0))
    assert whole.train_function not in held and whole.test_function not in held
    penalty = float(ops.convert_to_numpy(sum(part.losses)))
    assert abs(penalty) > 0.01
    assert loss_of(whole) == pytest.approx(before + penalty, abs=1e-4)
    after = whole.evaluate(X, X, verbose=0)
    assert after == pytest.approx(before + penalty, abs=1e-4)
    deregularize(part)
    assert loss_of(whole) == pytest.approx(before, abs=1e-4)


def test_a_model_that_python_does_not_collect_takes_it_up_too():
    model = graph()
    before = loss_of(model)
    gc.freeze()
    try:
        regularize(model, WEISSI(1.0))
    finally:
        gc.unfreeze()
    penalty = float(ops.convert_to_numpy(sum(model.losses)))
    assert loss_of(model) == pytest.approx(before + penalty, abs=1e-4)


class WithoutForce(keras.Model):
    """Overrides what makes its steps, without the argument `force`."""

    def make_train_function(self):
        super().make_train_function()
        return self.train_function


class Failing(keras.Model):
    fails = False

    def make_test_function(self, force=False):
        if self.fails:
            raise RuntimeError("no test step")
        return super().make_test_function(force)


def test_an_override_without_force_takes_it_up():
    model = graph(WithoutForce)
    before = loss_of(model)
    regularize(model, WEISSI(1.0))
    penalty = float(ops.convert_to_numpy(sum(model.losses)))
    assert loss_of(model) == pytest.approx(before + penalty, abs=1e-4)


@pytest.mark.parametrize("change", [lambda m: regularize(m, WEISSI(1.0)), deregularize])
def test_a_step_that_cannot_be_made_again_leaves_all_as_it_was(change):
    old = WEISSI(0.5)
    model = graph(Failing, kernel_regularizer=old)
    before = loss_of(model)
    model.evaluate(X, X, verbose=0)
    steps = model.train_function, model.test_function
    model.fails = True
    with pytest.raises(RuntimeError, match="no test step"):
        change(model)
    layer = model.get_layer("d")
    assert layer.kernel.regularizer is layer.kernel_regularizer is old
    assert (model.train_function, model.test_function) == steps
    assert loss_of(model) == pytest.approx(before, rel=1e-6)


class ShapeMatters(keras.regularizers.Regularizer):
    """Takes no kernel of fewer than three elements."""

    def __call__(self, w):
        return ops.sum(ops.top_k(ops.reshape(w, (-1,)), 3)[0])

    def get_config(self):
        return {}


def test_a_regularizer_is_tried_on_what_it_gets():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2), layers.Dense(4)])
    assert all(row.changed for row in regularize(model, ShapeMatters()))
    small = keras.Sequential([keras.Input((4,)), layers.Dense(2), layers.Dense(1)])
    with pytest.raises(ValueError, match=r"of shape \(2, 1\) and of rank 2"):
        regularize(small, ShapeMatters())
    assert not small.losses and small.layers[0].kernel_regularizer is None
