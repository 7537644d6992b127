"""The benchmark of the networks people have runs, and its table says what it should."""

import importlib.util
import json

import pytest
from helpers import ROOT, run_python

COLUMNS = [
    "family",
    "model",
    "weights",
    "kernels",
    "free before",
    "free now",
    "output change",
    "seconds",
    "call",
    "note",
]


@pytest.mark.slow
@pytest.mark.one_backend
def test_quick_benchmark_of_networks(tmp_path):
    table, work = tmp_path / "NETWORKS.md", tmp_path / "work"
    script = ROOT / "benchmarks" / "networks.py"
    arguments = [script, "--quick", "--out", table, "--work", work]
    result = run_python(*arguments, timeout=1200)
    assert result.returncode == 0, result.stderr
    text = table.read_text()
    has_hub = importlib.util.find_spec("keras_hub") is not None
    assert ("keras_hub is left out" in text) != has_hub

    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    assert cells[0] == COLUMNS
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in cells[2:]]
    assert [row["model"] for row in rows] == ["MobileNetV2", "ResNet50V2", "VGG16"]
    for row in rows:
        assert row["family"] == "applications" and row["note"] == ""
        assert int(row["weights"].replace(",", "")) > 3e6
        assert int(row["kernels"]) >= 16
        assert int(row["free before"]) <= int(row["free now"])
        assert float(row["output change"]) < 1e-5
        assert float(row["seconds"]) > 0.0
        assert row["call"] in ("scale_groups", "balance_scales", "regularize")
    assert int(rows[-1]["free now"]) == 15

    # What has been measured with the same code is not measured again.
    results = work / "results.jsonl"
    measured = results.read_text()
    assert len(measured.splitlines()) == len(rows)
    assert all(json.loads(line)["note"] == "" for line in measured.splitlines())
    assert run_python(*arguments).returncode == 0
    assert results.read_text() == measured and table.read_text() == text
