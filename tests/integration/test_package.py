"""What a user meets first: the import, the README, the docstrings, the examples."""

import csv
import doctest
import importlib
import json
import os
import re
import shutil
import zipfile

import keras
import pytest
from helpers import BACKEND, ROOT, files_named, run_example, run_python

import keras_weissi
from keras_weissi import WEISSI

MODULES = [
    *("attach.attach", "callbacks.norm_logger", "callbacks.scale_balancer"),
    *("model.kernels", "model.scaling", "plotting", "regularizers"),
    *("symmetry.checks", "symmetry.table"),
    *("symmetry.coefficients", "symmetry.find_groups", "symmetry.rescale"),
]


def test_the_import_is_light():
    program = """
import sys, json
import keras
before = set(sys.modules)
import keras_weissi
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    result = run_python("-c", program)
    assert result.returncode == 0, result.stderr
    new = json.loads(result.stdout)
    # Of other packages, nothing that Keras does not import itself.
    assert {name.split(".")[0] for name in new} == {"keras_weissi"}


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_run(module):
    module = importlib.import_module(f"keras_weissi.{module}")
    failed, tried = doctest.testmod(module)
    assert tried and not failed


# What the code of a page writes. Other pages write nothing.
WRITTEN = {
    "README.md": {"model.keras"},
    "docs/logs.md": {"log.csv", "plot.png", "norms.csv", "norms.png"},
}
# These pages have tests of their own.
ELSEWHERE = [ROOT / "docs" / name for name in ("loops.md", "symmetry.md")]
PAGES = [
    page.relative_to(ROOT).as_posix()
    for page in sorted([ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")])
    if "```python\n" in page.read_text("utf-8") and page not in ELSEWHERE
]


def test_pages_that_show_code_are_found():
    names = ("choose", "custom-layers", "existing-models", "logs", "normalization")
    assert {f"docs/{name}.md" for name in (*names, "strength")} | {"README.md"} == set(
        PAGES
    )


@pytest.mark.parametrize(
    "page",
    [
        page if page in WRITTEN else pytest.param(page, marks=pytest.mark.one_backend)
        for page in PAGES
    ],
)
def test_the_code_of_pages_runs(page, tmp_path, monkeypatch):
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    program = tmp_path / "page.py"
    program.write_text("\n".join(snippets))
    folder = tmp_path / "folder"
    folder.mkdir()
    result = run_python("-W", "error::UserWarning:keras_weissi", program, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in folder.iterdir()} == WRITTEN.get(page, set())


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text)]
    local = [link for link in links if link and "://" not in link]
    assert len(local) > 8
    assert not [link for link in local if not (ROOT / link).exists()]


def test_the_question_about_loading_quotes_keras(tmp_path):
    text = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
    (quoted,) = re.findall(r"```text\n(.*)\n```", text)
    dense = keras.layers.Dense(2, kernel_regularizer=WEISSI())
    keras.Sequential([keras.Input((2,)), dense]).save(tmp_path / "model.keras")
    load = "import keras, sys; keras.models.load_model(sys.argv[1])"
    result = run_python("-c", load, tmp_path / "model.keras")
    assert result.returncode == 1 and quoted in result.stderr


EXAMPLES = [
    "digits",
    "distributed",
    "finetune",
    "generalize",
    "symmetry",
    "transformer",
]


def test_every_example_is_tested():
    names = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert names - {"common", "tour"} == set(EXAMPLES)


@pytest.fixture
def example(request, monkeypatch, tmp_path):
    """The module of an example, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_BACKEND", BACKEND)
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module(request.param)


def parsed(example, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["example.py", *arguments])
    arguments = example.parse_arguments()
    return vars(arguments[0] if isinstance(arguments, tuple) else arguments)


@pytest.mark.parametrize("example", EXAMPLES, indirect=True)
def test_the_first_command_of_an_example_gives_the_defaults(example, monkeypatch):
    first = re.search(r"^    python examples/(\S+)([^#\n]*)", example.__doc__, re.M)
    assert first[1] == f"{example.__name__}.py"
    assert parsed(example, monkeypatch, *first[2].split()) == parsed(
        example, monkeypatch
    )


@pytest.mark.parametrize("example", EXAMPLES, indirect=True)
def test_an_example_notices_first_that_it_cannot_write(example, monkeypatch, capsys):
    with pytest.raises(SystemExit) as info:
        parsed(example, monkeypatch, "--out", "/dev/null/x")
    assert info.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "error: argument --out: cannot write to /dev/null/x" in last


def hiding(names, folder):
    """The environment of a process in which packages are not installed."""
    (folder / "sitecustomize.py").write_text(f"""
import importlib.machinery
finder = importlib.machinery.PathFinder
find = finder.find_spec
def find_spec(name, path=None, target=None):
    hidden = name.split(".")[0] in {names!r}
    return None if hidden else find(name, path, target)
finder.find_spec = find_spec
""")
    (folder / "keras").mkdir()
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return {"PYTHONPATH": path, "KERAS_HOME": str(folder / "keras")}


# They choose with the same code; only the one of many devices asks it for a backend.
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["digits", pytest.param("distributed", marks=pytest.mark.one_backend)]
)
def test_an_example_takes_a_backend_that_is_installed(name, tmp_path):
    program = f"""
import os, runpy, sys
import {BACKEND}
sys.path.insert(0, {str(ROOT / "examples")!r})
example = __import__({name!r})
example.parse_arguments()
print(os.environ["KERAS_BACKEND"])
"""
    others = [b for b in ("tensorflow", "jax", "torch") if b != BACKEND]
    environment = hiding(others, tmp_path) | {"KERAS_BACKEND": ""}
    out = tmp_path / "out"
    result = run_python("-c", program, "--out", out, **environment)
    assert result.returncode == 0, result.stderr
    said = f"tensorflow is not installed: {BACKEND} is the backend instead\n"
    assert result.stdout == said * (BACKEND != "tensorflow") + BACKEND + "\n"
    # What the configuration of Keras names comes before TensorFlow.
    (tmp_path / "keras" / "keras.json").write_text(f'{{"backend": "{BACKEND}"}}')
    result = run_python("-c", program, "--out", out, **environment)
    assert result.stdout == f"{BACKEND}\n"


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_names_a_backend_that_is_not_installed(name, tmp_path):
    result = run_example(f"{name}.py", **hiding([BACKEND], tmp_path))
    assert result.returncode == 2 and "Traceback" not in result.stderr
    message = f"the backend {BACKEND} is not known or not installed"
    assert result.stderr.splitlines()[-1].endswith(message)


@pytest.mark.slow
def test_digits_example_without_tensorflow(tmp_path):
    if BACKEND == "tensorflow":
        pytest.skip("needs another backend")
    environment = hiding(["tensorflow"], tmp_path) | {"KERAS_BACKEND": ""}
    out = tmp_path / "out"
    arguments = ["--epochs", 1, "--out", out]
    result = run_example("digits.py", *arguments, **environment)
    assert result.returncode == 0, result.stderr
    assert "TensorFlow is not installed: no TensorBoard events" in result.stdout
    assert files_named(result.stdout) == {path.name for path in out.iterdir()}
    assert "tensorboard" not in files_named(result.stdout)


@pytest.mark.slow
def test_symmetry_example(tmp_path):
    out = tmp_path / "out"
    result = run_example("symmetry.py", "--epochs", 2, "--out", out)
    assert result.returncode == 0, result.stderr
    rows = {}
    for line in result.stdout.splitlines():
        name, *values = line.split() or [""]
        if name in ("trained", "shifted", "balanced"):
            rows[name] = [float(value.rstrip("%")) for value in values]
    accuracies, moved, l2, weissi = zip(*rows.values(), strict=True)
    assert len(set(accuracies)) == 1 and max(moved) < 1e-5
    assert l2[1] > 20 * l2[0] > 20 * l2[2]
    assert max(weissi) - min(weissi) < 2e-5
    assert "6 groups, 4 of them free" in result.stdout
    assert (out / "symmetry.png").read_bytes().startswith(b"\x89PNG")
    assert files_named(result.stdout) == {path.name for path in out.iterdir()}


@pytest.mark.parametrize(
    "arguments",
    [["--epochs", "0"], ["--spread", "0"], ["--seed", "-1"], ["--spread", "x"]],
)
def test_symmetry_example_names_bad_values(arguments):
    result = run_example("symmetry.py", *arguments)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert f"argument {arguments[0]}: expected" in result.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.one_backend
def test_transformer_example(tmp_path):
    out = tmp_path / "out"
    result = run_example("transformer.py", "--epochs", 2, "--out", out)
    assert result.returncode == 0, result.stderr
    assert "free in 13,\n11 of them independently" in result.stdout
    rows = {}
    for line in result.stdout.splitlines():
        name, *values = line.split() or [""]
        if name in ("new", "shifted", "balanced", "trained"):
            rows[name] = [float(value.rstrip("%")) for value in values]
    right, moved, squares, _ = zip(*rows.values(), strict=True)
    assert max(moved[:3]) < 1e-5
    assert squares[1] > 3 * squares[0] > 3 * squares[2]
    assert right[3] > 50 > max(right[:3])
    assert (out / "transformer.png").read_bytes().startswith(b"\x89PNG")
    assert files_named(result.stdout) == {path.name for path in out.iterdir()}


@pytest.mark.parametrize(
    "arguments",
    [["--epochs", "0"], ["--log-norm", "-1"], ["--spread", "11"], ["--seed", "-1"]],
)
def test_transformer_example_names_bad_values(arguments):
    result = run_example("transformer.py", *arguments)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert f"argument {arguments[0]}: expected" in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_digits_example(tmp_path):
    out = tmp_path / "out"
    result = run_example("digits.py", "--epochs", 3, "--out", out)
    assert result.returncode == 0, result.stderr
    for name in ("none", "L2(0.001)", "L2(0.001) + balancer", "WEISSI(0.03)"):
        assert re.search(rf"│ {re.escape(name)} +│ +\d\d\.\d% │", result.stdout)
    assert "are identical; training goes on from step 108" in result.stdout
    assert (out / "norms.png").read_bytes().startswith(b"\x89PNG")
    with open(out / "norms.csv", newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1", "2", "3"]
    with open(out / "log.csv", newline="") as file:
        assert all(row["norm/hidden_1"] for row in csv.DictReader(file))
    assert (out / "model.keras").exists()
    assert files_named(result.stdout) == {path.name for path in out.iterdir()}
    if BACKEND == "tensorflow":
        assert list((out / "tensorboard").glob("train/events*"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--epochs", "0"],
            "argument --epochs: expected an int of at least 1, got '0'",
        ),
        (["--epochs", "x"], "argument --epochs: expected an int of at least 1"),
        (["--seed", "-1"], "argument --seed: expected"),
        (["--out", "/dev/null/x"], "argument --out: cannot write to"),
    ],
)
def test_digits_example_names_bad_values(arguments, message):
    result = run_example("digits.py", *arguments)
    assert result.returncode == 2
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


@pytest.mark.slow
@pytest.mark.one_backend
def test_overhead_benchmark_runs():
    result = run_python(ROOT / "benchmarks" / "overhead.py", "--quick")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("WEISSI (both)") == (2 if BACKEND == "tensorflow" else 3)
    assert "transfers" in result.stdout and "ResNet50" in result.stdout


@pytest.mark.slow
@pytest.mark.one_backend
def test_the_wheel_has_every_module_and_nothing_else(tmp_path):
    pytest.importorskip("setuptools", "64")
    pytest.importorskip("wheel")
    tree = tmp_path / "tree"  # building leaves files behind
    shutil.copytree(ROOT / "keras_weissi", tree / "keras_weissi")
    for name in ("LICENSE", "README.md", "pyproject.toml", "setup.cfg", "setup.py"):
        shutil.copy(ROOT / name, tree)
    options = ("-q", "--no-deps", "--no-build-isolation", "--no-index")
    result = run_python("-m", "pip", "wheel", *options, "-w", tmp_path, tree)
    assert result.returncode == 0, result.stderr
    (path,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in wheel.namelist() if "/METADATA" in name)
        description = wheel.read(metadata).decode()
    modules = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "keras_weissi").rglob("*.py")
    }
    assert len(modules) > 20
    assert names == modules | {"keras_weissi/py.typed"}
    # On PyPI, there are no files to link to.
    targets = re.findall(r"\]\(([^)]+)\)", description)
    assert targets and all(target.startswith("https://") for target in targets)
    assert "WEISSI(0.1)" in description and "![" not in description
    for words in ("What `examples/digits.py` draws", ".venv", "See ", "docs/"):
        assert words not in description
    assert "pip install 'keras-weissi[tensorflow]'" in description


def test_the_citation_is_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {keras_weissi.__version__}\n" in citation


@pytest.mark.slow
@pytest.mark.one_backend
def test_generalize_example(tmp_path):
    out = tmp_path / "out"
    result = run_example("generalize.py", "--seeds", 2, "--epochs", 2, "--out", out)
    assert result.returncode == 0, result.stderr
    for method in ("L2", "L2 + ScaleBalancer", "WEISSI + ScaleBalancer"):
        assert f"seed 1, {method}: " in result.stdout
    assert "±" in result.stdout and "difference to L2" in result.stdout
    assert (out / "generalize.png").read_bytes().startswith(b"\x89PNG")
    assert files_named(result.stdout) == {path.name for path in out.iterdir()}


@pytest.mark.parametrize("arguments", [["--epochs", "0"], ["--seeds", "-1"]])
def test_generalize_example_names_bad_values(arguments):
    result = run_example("generalize.py", *arguments)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert f"argument {arguments[0]}: expected" in result.stderr.splitlines()[-1]
