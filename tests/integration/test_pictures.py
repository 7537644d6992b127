"""The page on the symmetry, and the pictures of the documentation."""

import importlib.util
import re

import numpy as np
import pytest
from helpers import ROOT, relative_error, run_python

PAGE = ROOT / "docs" / "symmetry.md"
IMAGES = ROOT / "docs" / "images"


def load_pictures():
    path = ROOT / "docs" / "pictures.py"
    spec = importlib.util.spec_from_file_location("pictures", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pictures():
    pytest.importorskip("matplotlib")
    return load_pictures()


def test_the_page_on_the_symmetry_prints_what_it_says(tmp_path):
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    code = "\n".join(snippets)
    program = tmp_path / "page.py"
    program.write_text(code, encoding="utf-8")
    result = run_python("-W", "error::UserWarning:keras_weissi", program)
    assert result.returncode == 0, result.stderr
    # What is printed stands behind a call of `print`, or in lines of their own.
    said = re.findall(r"(?m)(?:^|^print\(.*\)  )# (.*)$", code)
    assert len(said) >= 10
    assert result.stdout.splitlines() == said


def test_the_page_shows_all_pictures():
    shown = re.findall(r"\(images/(.*?)\)", PAGE.read_text("utf-8"))
    assert sorted(shown) == sorted(path.name for path in IMAGES.glob("*.svg"))


@pytest.mark.slow
@pytest.mark.one_backend
def test_the_program_draws_all_pictures_with_their_texts(tmp_path):
    pytest.importorskip("matplotlib")
    result = run_python(ROOT / "docs" / "pictures.py", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    drawn = {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()}
    assert sorted(drawn) == sorted(path.name for path in IMAGES.glob("*.svg"))
    for name, text in drawn.items():
        committed = (IMAGES / name).read_text("utf-8")
        # Texts are comments too. Versions of matplotlib may draw the rest differently.
        texts, expected = (re.findall("<!-- (.*?) -->", x) for x in (text, committed))
        assert texts == expected and len(texts) > 5
        assert len(text.encode()) < 60_000
        for trace in ("<dc:date>", "<text", "font-family"):
            assert trace not in committed


@pytest.mark.slow
@pytest.mark.one_backend
def test_l2_has_its_minimum_where_both_norms_are_equal(pictures):
    data = pictures.along_the_orbit(count=9)
    a, b = data["norms"]
    t = 2 * np.log(data["gamma"] / np.sqrt(b / a))
    # Another form of the formula: its minimum is at t = 0.
    assert relative_error(data["l2"], 2 * a * b * np.cosh(t)) < 1e-5
    assert np.abs(data["weissi"] - np.log(a) - np.log(b)).max() < 1e-5
    assert data["moved"].max() < 1e-5


@pytest.mark.slow
@pytest.mark.one_backend
@pytest.mark.parametrize("is_balanced", [False, True])
def test_norms_under_the_log_term_are_those_of_steps_by_hand(pictures, is_balanced):
    times, norms = pictures.under_the_log_term(is_balanced, steps=600)
    rate = 1e-3
    squares = np.full(3, 6.0 ** (2 / 3)) if is_balanced else np.array([9.0, 4.0, 1.0])
    expected = [squares]
    for _ in range(600):
        # A kernel is multiplied by a number, as its gradient is parallel to it.
        squares = squares * (1 - rate / np.maximum(squares, 0.01)) ** 2
        expected.append(squares)
    steps = np.round(times / rate).astype(int)
    assert steps[0] == 0 and steps[-1] == 600 and len(steps) > 10
    found = np.sqrt(expected)[steps]
    assert np.abs(norms - found).max() < 1e-3
    starts = np.sqrt(expected[0])
    exact = np.transpose([pictures.norm_under_the_log_term(s, times) for s in starts])
    assert np.abs(exact - found).max() < 0.02


@pytest.mark.slow
@pytest.mark.one_backend
def test_the_imbalance_follows_steps_by_hand(pictures):
    import keras

    from keras_weissi import WEISSI

    rate, steps, strength = 0.005, 400, 0.2
    for regularizer, decay in (
        (None, 0.0),
        (WEISSI(strength), 0.0),
        (keras.regularizers.L2(strength), strength),
    ):
        times, found = pictures.out_of_balance(regularizer, rate, steps)
        by_hand = found[0] * (1 - 2 * rate * decay) ** (2 * times / rate)
        assert relative_error(found, by_hand) < 0.01
        exact = pictures.difference_under_l2(found[0], times, decay)
        assert relative_error(exact, by_hand) < 0.01


@pytest.mark.slow
@pytest.mark.one_backend
def test_the_groups_drawn_are_those_of_the_models(pictures):
    from keras_weissi.symmetry import check_scaling

    pictures.check_groups()
    for model in (pictures.residual_block(), pictures.attention_head()):
        check_scaling(model)
