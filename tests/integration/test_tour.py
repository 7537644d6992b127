r"""The notebook `examples/tour.ipynb` and the script that it is paired with.

After a change of `examples/tour.py`, these commands make the notebook anew. TensorFlow
writes to the standard error, so run them where it is not installed.

    jupytext --sync examples/tour.py
    jupyter nbconvert --to notebook --execute --inplace \
        --ExecutePreprocessor.record_timing=False examples/tour.ipynb
"""

import ast
import re

import pytest
from helpers import ROOT

nbformat = pytest.importorskip("nbformat")
SCRIPT, NOTEBOOK = (ROOT / "examples" / f"tour.{kind}" for kind in ("py", "ipynb"))


def read():
    return nbformat.read(NOTEBOOK, as_version=4)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell):
    """What a cell shows on any machine: the kinds of its outputs, without numbers."""
    texts = {}
    for output in cell.outputs:
        assert output.output_type != "error", output
        if output.output_type == "stream":
            if output.name == "stdout":
                texts["stdout"] = texts.get("stdout", "") + output.text
        else:
            for kind, data in output.data.items():
                assert kind not in texts
                texts[kind] = "" if kind.startswith("image/") else data
    # Of the text form of a table, the width of the columns depends on the numbers.
    if "text/html" in texts:
        texts["text/plain"] = ""
    return {
        kind: re.sub(r"[-+]?\d[\d.,]*(e[-+]\d+)?%?", "#", text)
        for kind, text in texts.items()
    }


@pytest.mark.one_backend
def test_script_and_notebook_have_the_same_cells():
    jupytext = pytest.importorskip("jupytext")
    script = jupytext.read(SCRIPT)
    cells = [[(c.cell_type, c.source) for c in n.cells] for n in (script, read())]
    assert cells[0] == cells[1] and len(cells[0]) > 20
    for notebook in (script, read()):
        assert notebook.metadata.jupytext.formats == "ipynb,py:percent"


@pytest.mark.one_backend
def test_the_committed_notebook_is_clean():
    notebook = read()
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 400_000
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert "execution" not in cell.metadata
    for number, cell in enumerate(code_of(notebook)):
        assert cell.execution_count == number + 1
        assert not [o for o in cell.outputs if o.get("name") == "stderr"]
        # A cell that ends in an expression shows its value or prints.
        displays = isinstance(ast.parse(cell.source).body[-1], ast.Expr)
        assert bool(cell.outputs) == displays, cell.source
    outputs = repr([cell.outputs for cell in code_of(notebook)])
    assert not re.search(r"/(home|root|tmp|usr|work|Users)/|Warning|ETA|\\x08", outputs)


@pytest.mark.slow
@pytest.mark.one_backend
def test_the_notebook_runs_and_shows_what_is_committed(tmp_path, monkeypatch):
    pytest.importorskip("ipykernel")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # or no figure would be shown
    committed, notebook = read(), read()
    for cell in code_of(notebook):
        cell.outputs = []
    nbclient.NotebookClient(
        notebook,
        timeout=1200,
        kernel_name="python3",
        resources={"metadata": {"path": tmp_path}},
    ).execute()
    for cell, expected in zip(code_of(notebook), code_of(committed), strict=True):
        assert shown(cell) == shown(expected), cell.source
    assert not list(tmp_path.iterdir())
