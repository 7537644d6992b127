"""What is public has types, a full docstring and an entry in the pages of the API."""

import dataclasses
import importlib
import inspect
import re
import sys

import keras
import pytest
from helpers import ROOT

MODULES = [
    "keras_weissi",
    *(f"keras_weissi.{name}" for name in ("regularizers", "callbacks", "attach")),
    *(f"keras_weissi.{name}" for name in ("model", "symmetry", "plotting")),
]


def exported(module):
    module = importlib.import_module(module)
    return {name: getattr(module, name) for name in module.__all__}


def public():
    """Everything that some public module exports, once each."""
    things = {}
    for module in MODULES:
        things |= exported(module)
    return things


def summary_of(thing):
    """The first line of a docstring of the thing's own."""
    return inspect.cleandoc(thing.__doc__ or "").partition("\n")[0]


def named_in(thing, section):
    """Lists what a section of a docstring, such as `Args:`, has an entry for."""
    text = inspect.cleandoc(thing.__doc__ or "")
    found = re.search(rf"^{section}:\n((?: .*\n?|\n)+)", text, re.MULTILINE)
    return re.findall(r"^    (\w+): ", found[1], re.MULTILINE) if found else []


def undocumented(name, thing):
    """Yields what the docstring of an exported function or class lacks."""
    if not re.fullmatch(r"\S.*\.", summary_of(thing)):
        yield f"{name}: a summary line that ends in a period"
    if dataclasses.is_dataclass(thing):
        needed = [field.name for field in dataclasses.fields(thing)]
        where, there = "Attributes", named_in(thing, "Attributes")
    else:
        needed = list(inspect.signature(thing).parameters)
        where, there = "Args", named_in(thing, "Args")
        held = named_in(thing, "Attributes")
        if inspect.isclass(thing) and held and not there:
            # Functions return it, and it says what it holds.
            code = inspect.getsource(thing.__init__)
            needed = re.findall(r"^ *self\.([a-z]\w*)(?:: .+)? = ", code, re.MULTILINE)
            where, there = "Attributes", held
    if there != needed:
        yield f"{name}: {where} for {needed}, not {there}"
    if inspect.isclass(thing):
        for base in thing.__mro__:
            if not base.__module__.startswith("keras_weissi"):
                continue
            for member, value in vars(base).items():
                is_code = inspect.isroutine(value) or isinstance(value, property)
                # Methods that Keras calls have the docstring of Keras.
                if is_code and member[0] != "_" and not inspect.getdoc(value):
                    if not inspect.getdoc(getattr(thing, member)):
                        yield f"{name}.{member}: a docstring"


@pytest.mark.parametrize("module", MODULES)
def test_every_name_is_exported_once(module):
    module = importlib.import_module(module)
    assert sorted(set(module.__all__)) == sorted(module.__all__)


def test_what_is_public_is_documented():
    things = public()
    missing = [lack for item in things.items() for lack in undocumented(*item)]
    assert not missing, "\n".join(["docstrings lack:", *missing])


def test_what_is_public_has_types():
    seen = []
    for name, thing in public().items():
        members = {"": thing}
        if inspect.isclass(thing):
            members = {k: v for k, v in vars(thing).items() if not k.startswith("_")}
            members |= {k: vars(thing)[k] for k in ("__init__",) if k in vars(thing)}
        for member, function in members.items():
            if isinstance(function, property):
                function = function.fget
            if not inspect.isfunction(function):
                continue
            # The hooks and setters of a callback are those of Keras, without types.
            if hasattr(keras.callbacks.Callback, member) and member != "__init__":
                continue
            parameters = inspect.signature(function).parameters
            typed = set(function.__annotations__)
            missing = {*parameters, "return"} - {"self"} - typed
            assert not missing, (name, member, missing)
            seen.append((name, member))
    assert len(seen) > 25 and ("NormLogger", "__init__") in seen


class _Undocumented:
    """Has a summary without a period

    Args:
        one: int.
    """

    def __init__(self, one, two):
        pass

    def method(self):
        pass

    @property
    def value(self):
        pass


_Undocumented.__module__ = "keras_weissi.example"


@dataclasses.dataclass
class _Row:
    """A row.

    Attributes:
        name: str.
    """

    name: str
    other: str


def test_what_a_docstring_lacks_is_seen():
    assert list(undocumented("thing", _Undocumented)) == [
        "thing: a summary line that ends in a period",
        "thing: Args for ['one', 'two'], not ['one']",
        "thing.method: a docstring",
        "thing.value: a docstring",
    ]
    assert list(undocumented("row", _Row)) == [
        "row: Attributes for ['name', 'other'], not ['name']"
    ]


def home_of(thing):
    """The public module that a thing is documented under."""
    return ".".join(thing.__module__.split(".")[:2])


def test_the_api_pages_list_what_is_public_and_nothing_else():
    pages = {page.stem for page in (ROOT / "docs" / "api").iterdir()}
    assert pages == {"index", *(module.partition(".")[2] for module in MODULES[1:])}
    for module in MODULES[1:]:
        page = ROOT / "docs" / "api" / f"{module.partition('.')[2]}.md"
        text = page.read_text(encoding="utf-8")
        entries = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
        assert sorted(entries) == sorted(f"{module}.{n}" for n in exported(module)), (
            page
        )
        assert text.startswith(f"# {module}\n\n{summary_of(sys.modules[module])}\n")
    index = (ROOT / "docs" / "api" / "index.md").read_text(encoding="utf-8")
    expected = [
        f"| [`{name}`]({home.partition('.')[2]}.md#{home}.{name}) | {summary} |"
        for name, home, summary in (
            (name, home_of(thing), summary_of(thing))
            for name, thing in sorted(
                exported("keras_weissi").items(), key=_ignoring_case
            )
        )
    ]
    assert re.findall(r"^\| \[`\w+`\].*$", index, re.MULTILINE) == expected


def _ignoring_case(item):
    return item[0].lower()
