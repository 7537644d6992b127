"""What is public has types, a full docstring and a line in `docs/api.md`."""

import dataclasses
import importlib
import inspect
import re

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


def test_the_api_page_lists_what_is_public_and_nothing_else():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    sections = re.split(r"^## `(.*)`\n", page, flags=re.MULTILINE)
    listed = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert list(listed) == MODULES == sections[1::2]
    wrong = []
    for module in MODULES:
        lines = [f"- `{n}`: {summary_of(t)}" for n, t in exported(module).items()]
        expected = sorted(lines, key=str.lower)
        if re.findall(r"^ *[-*+] .*$", listed[module], re.MULTILINE) != expected:
            wrong += [f"## `{module}`", "", *expected, ""]
    assert not wrong, "\n".join(["docs/api.md should have:", "", *wrong])
