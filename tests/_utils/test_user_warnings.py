"""Warnings are shown for every model, and where the user can do something about it."""

import warnings

import pytest
from helpers import run_python

from keras_weissi._utils.user_warnings import listed, warn

# Run with no filter but the default. All models have the same names.
PROGRAM = """
import keras, numpy as np
from keras_weissi import WEISSI, NormLogger, ScaleBalancer, regularize

x = np.ones((8, 4), "float32")
for trial in range(3):
    model = keras.Sequential([
        keras.Input((4,)),
        keras.layers.Dense(4, "relu", kernel_regularizer="l2", name="a"),
        keras.layers.Dense(1, name="b"),
    ])
    model.get_layer("b").kernel.assign(np.full((4, 1), np.nan))
    regularize(model, WEISSI(0.1))
    model.compile("sgd", "mse")
    callbacks = [NormLogger(), ScaleBalancer()]
    model.fit(x, x[:, :1], epochs=2, verbose=0, callbacks=callbacks)  # fit
"""


# What is said, at which line, and how often.
EXPECTED = (
    ("The norm of kernel 'b' is no longer finite", "# fit", 3),
    ("ScaleBalancer left the model as it is after epoch 1", "# fit", 3),
    ("ScaleBalancer left the model as it is after epoch 2", "# fit", 3),
    ("regularize skipped 1 of 2 kernels", "regularize(model", 3),
)


def test_every_model_is_warned_of_at_the_line_of_the_user(tmp_path):
    program = str(tmp_path / "program.py")
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        exec(compile(PROGRAM, program, "exec"), {"__name__": "__main__"})
    lines = PROGRAM.splitlines()
    for what, at, times in EXPECTED:
        told = [w for w in caught if str(w.message).startswith(what)]
        assert len(told) == times, what
        assert all(w.category is UserWarning and w.filename == program for w in told)
        assert all(at in lines[w.lineno - 1] for w in told)


@pytest.mark.slow
def test_the_same_with_the_filters_that_python_has_by_default(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    process = run_python(program, PYTHONWARNINGS="")
    assert process.returncode == 0, process.stderr
    lines = process.stderr.splitlines()
    for what, at, times in EXPECTED:
        told = [i for i, line in enumerate(lines) if f"UserWarning: {what}" in line]
        assert len(told) == times, what
        assert all(lines[i].startswith(f"{program}:") for i in told)
        assert all(at in lines[i + 1] for i in told)


@pytest.mark.parametrize("action", ["error", "ignore"])
def test_filters_have_the_last_word(action):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings(action, module="keras_weissi")
        if action == "error":
            with pytest.raises(UserWarning, match="something"):
                warn("something")
        else:
            warn("something")
    assert not caught


def test_a_caller_outside_is_where_it_came_from():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            warn("something")
    assert [w.filename for w in caught] == [__file__] * 2


@pytest.mark.parametrize(
    "count, expected",
    [(1, "0"), (3, "0; 1; 2"), (4, "0; 1; 2; and 1 more"), (0, "")],
)
def test_a_list_says_how_many_more_there_are(count, expected):
    assert listed([str(i) for i in range(count)]) == expected
