"""Models that version 0.1.0 saved, with WEISSI on kernels of many kinds, load as is."""

import json

import keras
import numpy as np
import pytest
from helpers import ROOT, outputs_of, penalty_of, to_numpy

import keras_weissi

DATA = ROOT / "tests" / "data"
EXPECTED = json.loads((DATA / "saved-by-0.1.0.json").read_text())
LOGITS = EXPECTED["logits_of_the_first_4_images_of_default_rng(0)"]
X = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype("float32")
Y = np.array([0, 1, 2, 0])

pytestmark = [
    # They were saved by Keras 3.15, and Keras does not read files of a newer one.
    pytest.mark.skipif(
        tuple(map(int, keras.__version__.split(".")[:2])) < (3, 15),
        reason="needs Keras 3.15, which saved the models",
    ),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5"),
]


def load(path):
    model = keras.models.load_model(path)
    assert len(model.losses) == EXPECTED["losses"]
    return model


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_saved_model_loads_and_trains_on(suffix, tmp_path):
    model = load(DATA / f"saved-by-0.1.0.{suffix}")
    assert penalty_of(model) == pytest.approx(EXPECTED["penalty"], rel=1e-6)
    np.testing.assert_allclose(outputs_of(model, X).reshape(4, 3), LOGITS, atol=1e-5)
    assert int(to_numpy(model.optimizer.iterations)) == EXPECTED["iterations"]

    again = tmp_path / f"again.{suffix}"
    model.save(again)
    same = load(again)
    assert penalty_of(same) == penalty_of(model)
    np.testing.assert_array_equal(outputs_of(same, X), outputs_of(model, X))
    assert int(to_numpy(same.optimizer.iterations)) == EXPECTED["iterations"]

    for trained in (model, same):
        steps = EXPECTED["iterations"]
        if suffix == "h5":  # Keras cannot go on with the optimizer of an HDF5 file
            trained.compile("adam", trained.loss)
            steps = 0
        logger = keras_weissi.NormLogger()
        with pytest.warns(UserWarning, match="by 'bn'"):
            history = trained.fit(X, Y, verbose=0, callbacks=[logger])
        start, end = logger.record
        assert start["regularization_loss"] == pytest.approx(EXPECTED["penalty"])
        assert end["regularization_loss"] == pytest.approx(penalty_of(trained))
        assert end["log_norm_product"] != start["log_norm_product"]
        assert np.isfinite(history.history["loss"]).all()
        assert int(to_numpy(trained.optimizer.iterations)) == steps + 1
