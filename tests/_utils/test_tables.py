import builtins
import dataclasses
import html.parser
import inspect

import keras
import pytest
from keras import layers
from test_api import public

from keras_weissi import (
    WEISSI,
    balance_scales,
    deregularize,
    invariant_coefficients,
    norm_table,
    regularize,
    scale_groups,
    shift_scales,
)
from keras_weissi._utils.tables import KernelTable


class Page(html.parser.HTMLParser):
    """Reads the tables and sentences of a page whose elements are all closed.

    Attributes:
        tables: list of tables, which are lists of rows, which are lists of cells.
        styles: the same, with the style of each cell in place of its text.
        sentences: list of str, the paragraphs.
        wrappers: list of str, the style of the element around each table.
    """

    def __init__(self, text):
        super().__init__()
        self.tables, self.styles, self.sentences, self.wrappers = [], [], [], []
        self._open = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        style = dict(attrs).get("style", "")
        if tag == "table":
            assert self._open[-1][0] == "div"
            self.wrappers.append(self._open[-1][1])
            self.tables.append([])
            self.styles.append([])
        elif tag == "tr":
            self.tables[-1].append([])
            self.styles[-1].append([])
        elif tag in ("th", "td"):
            assert self._open[-1][0] == "tr"
            self.tables[-1][-1].append("")
            self.styles[-1][-1].append(style)
        elif tag == "p":
            self.sentences.append("")
        else:
            assert tag in ("div", "thead", "tbody")
        self._open.append((tag, style))

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        if self._open[-1][0] == "p":
            self.sentences[-1] += data
        else:
            assert self._open[-1][0] in ("th", "td")
            self.tables[-1][-1][-1] += data


def page_of(thing):
    return Page(thing._repr_html_())


def model_with_all():
    """A model with a projection shortcut, a normalization and a penalty."""
    x = inputs = keras.Input((4,), name="x")
    x = layers.Dense(4, "relu", name="stem")(x)
    y = layers.Dense(4, name="branch", kernel_regularizer=WEISSI(0.02))(x)
    x = layers.Add(name="add")([y, layers.Dense(4, name="shortcut")(x)])
    x = layers.BatchNormalization(name="bn")(layers.Dense(4, name="before_bn")(x))
    return keras.Model(inputs, layers.Dense(2, name="logits")(x))


TABLES = {
    "regularize": lambda model: regularize(model, WEISSI(0.01)),
    "deregularize": deregularize,
    "norm_table": lambda model: norm_table(model, print_fn=None),
    "shift_scales": lambda model: shift_scales(model, {"bn": 10.0, "logits": 0.1}),
    "balance_scales": balance_scales,
    "invariant_coefficients": invariant_coefficients,
    "scale_groups": scale_groups,
}


def words(text):
    """The words of a text, without the lines of its tables."""
    return sorted("".join(c for c in text if not "─" <= c <= "╿").split())


@pytest.mark.parametrize("name", TABLES)
def test_html_says_what_the_text_says(name, monkeypatch):
    # So wide that no cell of the text is broken.
    monkeypatch.setenv("COLUMNS", "1000")
    table = TABLES[name](model_with_all())
    page = page_of(table)
    cells = [cell for rows in page.tables for row in rows for cell in row]
    assert words(" ".join(cells + page.sentences)) == words(str(table))
    assert [len(rows) for rows in page.tables] == [
        sum(line[0] in "┃│" for line in lines.splitlines())
        for lines in str(table).split("┏")[1:]
    ]


def test_the_cells_are_the_fields_of_the_rows():
    report = regularize(model_with_all(), WEISSI(0.01))
    page = page_of(report)
    ((header, *rows),) = page.tables
    assert header == ["name", "shape", "norm", "regularizer", "scale", "note"]
    assert len(rows) == len(report) == 5
    for cells, row in zip(rows, report, strict=True):
        name, shape, norm, regularizer, scale, note = cells
        assert (name, shape, scale, note) == (
            row.name,
            str(tuple(row.shape)),
            row.scale,
            row.note,
        )
        assert float(norm) == pytest.approx(row.norm, rel=1e-3)
        is_put = row.name != "before_bn"
        assert regularizer == ("WEISSI(log_norm=0.01, min_norm=0.1)" if is_put else "")
    sentence = page.sentences[0]
    assert sentence.startswith("4 of 5 kernels got the penalty; left out: 1 normalized")


def test_scale_groups_shows_both_tables():
    page = page_of(scale_groups(model_with_all()))
    assert [rows[0] for rows in page.tables] == [
        ["group", "scale", "pinned_by", "outputs_of"],
        ["name", "weight", "shape", "source", "target"],
    ]
    groups = [row[1:] for row in page.tables[0][1:]]
    assert ["free", "", "stem"] in groups
    assert ["1", "x: an input of the model", "x"] in groups
    assert ["stem", "kernel", "(4, 4)"] in [row[:3] for row in page.tables[1][1:]]
    assert page.sentences == ["6 groups, 3 of them free"]


def test_invariant_coefficients_shows_the_statement():
    c = invariant_coefficients(model_with_all())
    page = page_of(c)
    shown = {name: float(number) for name, number, _ in page.tables[0][1:]}
    expected = {row.name: row.coefficient for row in c.table}
    assert shown == pytest.approx(expected, rel=1e-3)
    assert page.sentences[-1] == c.statement and len(c.statement) > 50


def test_a_notebook_prints_the_text(monkeypatch, capsys):
    table = norm_table(model_with_all(), print_fn=None)
    text = str(table)
    # What IPython puts there tells programs that they run in a notebook.
    shell = type("ZMQInteractiveShell", (), {})
    monkeypatch.setattr(builtins, "get_ipython", shell, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")  # so do kernels
    assert text and str(table) == text
    assert capsys.readouterr().out == ""


@dataclasses.dataclass
class Line:
    name: str
    norm: float
    note: str


def test_nothing_is_taken_for_markup():
    name, note, caption = "<b>\"a\" & 'b'</b>", "norm < 1 &amp; > 0", "</p><script>&"
    table = KernelTable([Line(name, 1.0, note)], "name norm note", caption)
    page = page_of(table)
    assert page.tables == [[["name", "norm", "note"], [name, "1", note]]]
    assert page.sentences == [caption]
    text = table._repr_html_()
    assert "<b" not in text and "<script" not in text and "&amp;amp;" in text
    assert page_of(KernelTable([], "a<b")).tables == [[["a<b"]]]


def test_each_line_of_a_caption_is_a_paragraph():
    table = KernelTable([], "name", "One.\nTwo.")
    assert page_of(table).sentences == ["One.", "Two."]
    assert page_of(KernelTable([], "name")).sentences == []


def test_numbers_are_on_the_right_and_colours_are_those_of_the_page():
    table = KernelTable([Line("a", float("nan"), "n")], "name norm note", "Caption.")
    page = page_of(table)
    assert page.tables[0][1] == ["a", "", "n"]
    for styles in page.styles[0]:
        sides = [style.split(";")[0] for style in styles]
        assert sides == [f"text-align: {s}" for s in ("left", "right", "left")]
        # Names and numbers are never broken; notes may be.
        assert ["normal" in style for style in styles] == [False, False, True]
    assert page.wrappers == ["overflow-x: auto"]
    text = table._repr_html_()
    assert '<table style="white-space: nowrap">' in text
    assert text.count("class=") == text.count('class="tex2jax_ignore"') == 2
    for word in ("color", "background", "script", "href", "src"):
        assert word not in text


def test_every_class_that_prints_as_a_table_has_html():
    model = model_with_all()
    groups = scale_groups(model)
    things = [groups, invariant_coefficients(model), norm_table(model, print_fn=None)]
    printed = {
        thing
        for thing in public().values()
        if inspect.isclass(thing) and "__str__" in vars(thing)
    }
    tables = {type(thing) for thing in things}
    assert all("┏" in str(thing) and page_of(thing).tables for thing in things)
    # The others print as a few words.
    rest = printed - tables
    assert tables <= printed and {c.__name__ for c in rest} == {
        "ScaleRelation",
        "ScaleStatus",
    }
    assert not any(hasattr(c, "_repr_html_") for c in rest)


def test_names_are_no_emoji_codes():
    assert " :x: " in str(KernelTable([Line(":x:", 1.0, "")], "name norm"))
