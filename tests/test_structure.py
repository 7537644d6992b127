"""The architecture: which module may import which, and what no module may touch."""

import ast
import graphlib
import importlib
import inspect

import pytest
from helpers import ROOT

PACKAGE = ROOT / "keras_weissi"
MODULES = sorted(PACKAGE.rglob("*.py"))
# Each may import itself and those before it.
ORDER = [
    *("_utils", "regularizers", "model", "symmetry", "attach", "callbacks"),
    *("plotting", "__init__"),
]


def private_touches(source):
    """Lists what a module uses that is not published, as far as it can be seen."""
    tree = ast.parse(source)
    own = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    } | {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    by_name = ("getattr", "setattr", "hasattr", "delattr")
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Attribute):
            is_self = isinstance(node.value, ast.Name) and node.value.id == "self"
            if not (is_self and node.attr in own):
                names = [node.attr]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in by_name:
            names = [a.value for a in node.args[1:2] if isinstance(a, ast.Constant)]
        elif isinstance(node, ast.Import):
            names = [part for n in node.names for part in n.name.split(".")]
        elif isinstance(node, ast.ImportFrom):
            module = node.module.split(".")
            if module[0] != "keras_weissi":
                names = [*module, *(n.name for n in node.names)]
        for name in names:
            is_public = name == "_repr_html_" or (  # which IPython documents
                name.startswith("__") and name.endswith("__")
            )
            if name == "src" or (name.startswith("_") and not is_public):
                yield f"{node.lineno}: {name}"


@pytest.mark.parametrize(
    "source",
    [
        "layer._nodes",
        "self._model",
        "import keras.src",
        "from keras.src import layers",
        "from keras import _tf_keras",
        "getattr(layer, '_nodes')",
        "setattr(layer, '_kernel_regularizer', None)",
    ],
)
def test_what_is_private_is_seen(source):
    assert list(private_touches(source))


def test_no_other_module_touches_what_is_private():
    for path in MODULES:
        if path.name != "keras_private.py":
            assert not list(private_touches(path.read_text(encoding="utf-8"))), path


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def wrong_imports(name, source):
    """Lists the imports that do not run one way, or not the one way they are written.

    Args:
        name: str, of the module, such as `"keras_weissi.model.graph"`.
        source: str, its code.
    """
    own = ORDER.index(name.split(".")[1])
    is_face = name.endswith("__init__")  # re-exports what is public of a sub-package
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [f"{'.' * node.level}{node.module or ''}"]
        else:
            continue
        for module in modules:
            first, *rest = module.split(".")
            if first not in ("", "keras_weissi"):
                continue
            if not (first and rest) or ORDER.index(rest[0]) > own:
                yield f"{node.lineno}: {module}"
            elif not is_face and (PACKAGE / rest[-1]).is_dir():
                yield f"{node.lineno}: {module}"


@pytest.mark.parametrize(
    "source",
    [
        "from keras_weissi.attach.attach import regularize",
        "import keras_weissi.callbacks.norm_logger",
        "def f():\n    from keras_weissi.plotting import plot_norms",
        "from keras_weissi import WEISSI",
        "from keras_weissi.model import Kernel",
        "from .kernels import Kernel",
        "from . import kernels",
    ],
)
def test_what_runs_the_other_way_is_seen(source):
    assert list(wrong_imports("keras_weissi.model.graph", source))


def test_imports_run_one_way():
    imports = {}
    for path in MODULES:
        source = path.read_text(encoding="utf-8")
        assert not list(wrong_imports(name_of(path), source)), path
        nodes = ast.walk(ast.parse(source))
        modules = [n.module for n in nodes if isinstance(n, ast.ImportFrom)]
        imports[name_of(path)] = [m for m in modules if m.startswith("keras_weissi.")]
    list(graphlib.TopologicalSorter(imports).static_order())  # raises if in a circle
    assert len(imports) > 20


def test_no_module_bears_the_name_of_a_function_that_is_exported():
    for face in PACKAGE.rglob("__init__.py"):
        package = importlib.import_module(".".join(face.parent.relative_to(ROOT).parts))
        for name in getattr(package, "__all__", ()):
            assert not (face.parent / f"{name}.py").exists(), name
            assert not inspect.ismodule(getattr(package, name)), name
