import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")

import keras
import pytest
from hypothesis import HealthCheck, settings

# The same examples in every run, however long they take, so that a failure comes back.
settings.register_profile(
    "same",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("same")


def pytest_collection_modifyitems(items):
    skip = pytest.mark.skip(reason="needs the JAX backend")
    if keras.backend.backend() != "jax":
        for item in items:
            if "jax_only" in item.keywords:
                item.add_marker(skip)


def no_terminal(file=None):
    raise OSError


@pytest.fixture(autouse=True)
def reproducible(monkeypatch):
    keras.utils.set_random_seed(0)
    # Without a terminal, tables are wide, and break at the same words everywhere.
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(os, "get_terminal_size", no_terminal)
    yield
    import sys

    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
