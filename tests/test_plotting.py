import keras
import numpy as np
import pytest
from helpers import run_python

from keras_weissi import WEISSI, NormLogger
from keras_weissi.plotting import plot_norms

plt = pytest.importorskip("matplotlib.pyplot")
pytestmark = pytest.mark.one_backend
X = np.ones((8, 4), "float32")


def train(depth, logger, more=(), **arguments):
    model = keras.Sequential(
        [keras.Input((4,))]
        + [
            keras.layers.Dense(4, kernel_regularizer=WEISSI(), name=f"layer_{i}")
            for i in range(depth)
        ]
    )
    model.compile("sgd", "mse")
    arguments = {"epochs": 3, "batch_size": 2, "verbose": 0, **arguments}
    return model, model.fit(X, X, callbacks=[logger, *more], **arguments)


@pytest.mark.parametrize("depth", [5, 50])
def test_every_norm_is_drawn_on_a_log_axis(depth, tmp_path):
    logger = NormLogger()
    train(depth, logger)
    ax = plot_norms(logger)
    assert ax.get_yscale() == "log" and ax.get_xlabel() == "epoch"
    drawn = [line for line in ax.get_lines() if len(line.get_xdata())]
    assert len(drawn) == depth
    for i in (0, depth - 1):
        expected = [row[f"norm/layer_{i}"] for row in logger.record]
        np.testing.assert_allclose(drawn[i].get_ydata(), expected)
        np.testing.assert_array_equal(drawn[i].get_xdata(), [0, 1, 2, 3])
    (product_ax,) = [other for other in ax.figure.axes if other is not ax]
    (product,) = product_ax.get_lines()
    expected = [row["norm_product"] for row in logger.record]
    np.testing.assert_allclose(product.get_ydata(), expected)
    assert product_ax.get_yscale() == "log"
    (legend,) = ax.figure.legends
    assert len(legend.get_texts()) == (6 if depth == 5 else 3)
    ax.figure.savefig(tmp_path / "norms.png")


def test_history_and_its_dict_are_drawn_too():
    _, history = train(2, NormLogger())
    for source in (history, history.history):
        line = plot_norms(source).get_lines()[0]
        np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
        np.testing.assert_allclose(line.get_ydata(), history.history["norm/layer_0"])


def train_with_csv_logger(path, logger, **arguments):
    """Trains for three epochs; other callbacks add columns to the file."""

    def add(epoch, logs):
        logs.update(lr=[0.1, 0.2], alpha="a,b", best=None, loss_scale=float("nan"))

    add = keras.callbacks.LambdaCallback(on_epoch_end=add)
    log = keras.callbacks.CSVLogger(path, append=True)
    return train(2, logger, more=[add, log], **arguments)


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_file_of_a_csv_logger_is_drawn_as_the_history(kind, tmp_path):
    path = tmp_path / "log.csv"
    logger = NormLogger(update_freq=1)
    _, history = train_with_csv_logger(path, logger)
    ends = [row for row in logger.record[1:] if row["step"] % 4 == 0]
    for source in (kind(path), history):
        ax = plot_norms(source)
        lines = {line.get_label(): line for line in ax.get_lines()}
        for name in ("layer_0", "layer_1"):
            # The first row of the file is of epoch 0, and one epoch is completed.
            np.testing.assert_array_equal(lines[name].get_xdata(), [1, 2, 3])
            expected = [row[f"norm/{name}"] for row in ends]
            np.testing.assert_array_equal(lines[name].get_ydata(), expected)
        (product,) = ax.figure.axes[1].get_lines()
        expected = [row["norm_product"] for row in ends]
        np.testing.assert_allclose(product.get_ydata(), expected, rtol=1e-13)


def drawn(path):
    line = plot_norms(path).get_lines()[0]
    return line.get_xdata().tolist(), line.get_ydata().tolist()


HEADER = "val_norm/a,norm/a,epoch,lr,log_norm_product\r\n"


def write_log(path, *rows, header=HEADER):
    lines = [f'NA,{norm},{epoch},"[0.1, 0.2]",1.5\r\n' for epoch, norm in rows]
    path.write_bytes((header + "".join(lines)).encode())


def test_a_csv_log_of_trainings_that_were_resumed_or_repeated(tmp_path):
    path = tmp_path / "log.csv"
    # Epoch 2 was done twice, then 1 and 2 once more, from an older backup.
    write_log(path, (0, 9.0), (1, 8.0), (2, 7.0), (2, 6.0), (1, 5.0), (2, 4.0))
    assert drawn(path) == ([1, 2, 3], [9.0, 5.0, 4.0])
    # A row is missing.
    write_log(path, (0, 9.0), (2, 7.0))
    assert drawn(path) == ([1, 3], [9.0, 7.0])
    # Other trainings, of which the second was resumed.
    write_log(path, (0, 9.0), (1, 8.0), (0, 7.0), (0, 6.0), (1, 5.0), (1, 4.0))
    assert drawn(path) == ([1, 2, 3, 4, 5], [9.0, 8.0, 7.0, 6.0, 4.0])


def test_cells_that_are_no_number_are_gaps(tmp_path):
    path = tmp_path / "log.csv"
    write_log(path, (0, 2.0), (1, "NA"), (2, ""), (3, "nan"), (4, 0.0), (5, 3.0))
    np.testing.assert_array_equal(drawn(path)[1], [2, *[np.nan] * 4, 3])


def test_a_line_that_is_cut_off_is_left_out(tmp_path):
    path = tmp_path / "log.csv"
    write_log(path, (0, 4.0), (1, 3.0), (2, 2.0))
    whole = path.read_bytes()
    for missing in (1, 2, 5, 20):  # without its end, a number may be any
        path.write_bytes(whole[:-missing])
        expected = ([1, 2, 3], [4.0, 3.0, 2.0]) if missing < 1 else ([1, 2], [4.0, 3.0])
        assert drawn(path) == expected
    # The training was resumed, and goes on in that line.
    path.write_bytes(whole[:-20] + b'NA,1.0,3,"[0.1]",1.5\r\n' + whole[-2:])
    write_log(path, (3, 1.0), (4, 0.5), header=path.read_text())
    assert drawn(path) == ([1, 2, 4, 5], [4.0, 3.0, 1.0, 0.5])


def test_empty_lines_say_nothing(tmp_path):
    path = tmp_path / "log.csv"
    write_log(path, (0, 4.0), (1, 3.0))
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\r\n\r\n"))
    assert drawn(path) == ([1, 2], [4.0, 3.0])


@pytest.mark.parametrize(
    "content",
    [
        "",
        "no newline",
        "epoch,loss\r\n0,1.5\r\n",
        "epoch,norm/a\r\n0,1.5\r\n",
        "norm/a,log_norm_product\r\n1.5,1.0\r\n",
        "epoch,norm/a,log_norm_product\r\n",
        "epoch,norm/a,log_norm_product\r\n0,1.5\r\n",
        "epoch,norm/a,log_norm_product\r\n0,1.5,1,2\r\n",
        "epoch,norm/a,log_norm_product\r\n0.5,1.5,1.0\r\n",
        "epoch,norm/a,log_norm_product\r\n,1.5,1.0\r\n",
        "epoch,step,norm/a,log_norm_product\r\n0,zero,1.5,1.0\r\n",
        "epoch,step,norm/a,log_norm_product\r\n0,,1.5,1.0\r\n",
        "epoch;norm/a;log_norm_product\r\n0;1.5;1.0\r\n",
        "epoch,step,log_norm_product\r\n0,0,1.0\r\n",
        b"\x89PNG\r\n\x1a\n\x00\xff\xfe\r\n",
    ],
)
def test_a_file_of_something_else_is_refused(content, tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = r"Invalid value for argument `source`. Expected .* NormLogger .*log.csv"
    with pytest.raises(ValueError, match=message):
        plot_norms(path)


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_file_is_drawn_as_its_logger(kind, tmp_path):
    path = tmp_path / "norms.csv"
    logger = NormLogger(update_freq=2)
    train(2, logger)
    logger.to_csv(path)
    drawn = [
        [
            line.get_xydata()
            for axes in plot_norms(source).figure.axes
            for line in axes.get_lines()
        ]
        for source in (logger, kind(path))
    ]
    for of_logger, of_file in zip(*drawn, strict=True):
        np.testing.assert_array_equal(of_logger, of_file)
    with pytest.raises(FileNotFoundError, match="none.csv"):
        plot_norms(kind(tmp_path / "none.csv"))
    path.write_text("loss\n1\n")
    with pytest.raises(ValueError, match="argument `source`. Expected .*norms.csv"):
        plot_norms(kind(path))


def test_batches_and_further_fits_have_their_place():
    logger = NormLogger(update_freq=2)
    model, _ = train(2, logger, epochs=1)
    model.fit(X, X, batch_size=2, verbose=0, epochs=2, callbacks=[logger])
    line = plot_norms(logger).get_lines()[0]
    # Four batches an epoch; the second fit starts at 0 again, where the first ended.
    np.testing.assert_allclose(line.get_xdata(), [0, 0.5, 1, 1, 1.5, 2, 2.5, 3])


def test_an_axes_of_the_user_is_used():
    logger = NormLogger()
    train(2, logger)
    _, ax = plt.subplots()
    assert plot_norms(logger, ax=ax) is ax
    assert is_within(ax.get_legend(), ax)


def is_within(part, whole):
    whole.figure.canvas.draw()
    inner, outer = part.get_window_extent(), whole.get_window_extent()
    return (outer.min <= inner.min).all() and (inner.max <= outer.max).all()


@pytest.mark.parametrize("length", [1, 12, 50, 300])
@pytest.mark.parametrize("count", [1, 3, 9])
@pytest.mark.filterwarnings("error")
def test_long_names_leave_room_for_the_lines(length, count):
    history = {f"norm/{'W' * length}/{i}": [2.0, 1.0] for i in range(count)}
    ax = plot_norms({**history, "log_norm_product": [1.0, 0.0]})
    (legend,) = ax.figure.legends
    assert is_within(legend, ax.figure)
    (width, height), size = ax.get_window_extent().size, ax.figure.bbox.size
    assert width > 0.38 * size[0] and height > 300
    assert not legend.get_window_extent().overlaps(ax.get_window_extent())
    names = [text.get_text() for text in legend.get_texts()]
    assert len(set(names)) == count + 1
    for i, name in enumerate(names[:-1]):
        assert name.startswith("W") and name.endswith(f"/{i}")
        assert ("…" in name) == (length > 30)


LARGE_FONT = """
import matplotlib.pyplot as plt
from keras_weissi.plotting import plot_norms

plt.rcParams["font.size"] = 250
names = ["w" * 50, "a", "b"]
history = {f"norm/{name}": [2.0, 1.0] for name in names}
plot_norms({**history, "log_norm_product": [1.0, 0.0]}).figure.savefig("norms.png")
"""


def test_a_font_that_is_too_large_is_drawn_all_the_same(tmp_path):
    process = run_python("-c", LARGE_FONT, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "norms.png").exists()


def test_a_change_of_a_few_percent_looks_small():
    norms = [3.0, 3.1]
    ax = plot_norms({"norm/a": norms, "log_norm_product": list(np.log(norms))})
    for axes in ax.figure.axes:
        (line,) = [line for line in axes.get_lines() if len(line.get_xdata())]
        pixels = axes.transData.transform(line.get_xydata())[:, 1]
        assert abs(np.diff(pixels)) < 0.1 * axes.get_window_extent().height


def test_the_ticks_of_a_single_epoch_are_whole():
    ax = plot_norms({"norm/a": [2.0], "log_norm_product": [0.7]})
    ax.figure.canvas.draw()
    low, high = ax.get_xlim()
    assert [tick for tick in ax.get_xticks() if low < tick < high] == [1]


def test_values_that_no_log_axis_can_show_are_gaps():
    history = {"norm/a": [1.0, 0.0, np.inf], "log_norm_product": [0.0, -np.inf, np.inf]}
    ax = plot_norms(history)
    np.testing.assert_array_equal(ax.get_lines()[0].get_ydata(), [1, np.nan, np.nan])
    np.testing.assert_array_equal(
        ax.figure.axes[1].get_lines()[0].get_ydata(), [1, np.nan, np.nan]
    )
    ax.figure.canvas.draw()


@pytest.mark.parametrize("log", [900.0, -900.0])
def test_products_beyond_the_range_of_floats_are_drawn_from_their_logarithm(log):
    logs = [log, log * 1.1]
    ax = plot_norms({"norm/a": [1.0, 2.0], "log_norm_product": logs})
    product_ax = ax.figure.axes[1]
    (product,) = product_ax.get_lines()
    np.testing.assert_allclose(product.get_ydata(), np.array(logs) / np.log(10))
    assert product_ax.get_ylabel() == "log10 of the product of the norms"
    assert product_ax.get_yscale() == "linear"


@pytest.mark.parametrize(
    "source",
    [
        NormLogger(),
        {},
        {"loss": [1.0]},
        {"norm/a": [1.0]},
        {"norm/a": [], "log_norm_product": []},
        keras.Sequential(),
        None,
    ],
)
def test_a_source_without_norms_is_refused(source):
    with pytest.raises(ValueError, match="argument `source`. Expected a NormLogger"):
        plot_norms(source)


@pytest.mark.parametrize("growth", [1.0, 1.0005, 1.05, 1.6, 30.0, 1e9, 1e60])
def test_no_two_ticks_have_the_same_label(growth):
    norms = np.geomspace(6.068, 6.068 * growth, 5)
    source = {"norm/only": list(norms), "log_norm_product": list(np.log(norms))}
    ax = plot_norms(source)
    ax.figure.canvas.draw()
    low, high = ax.get_ylim()
    assert low < norms[0] and norms[-1] < high
    for axis in (ax.yaxis, ax.figure.axes[1].yaxis):
        labels = [
            t.get_text() for t in axis.get_ticklabels(which="both") if t.get_text()
        ]
        assert len(labels) == len(set(labels)) > 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_training_that_diverged_from_the_start_is_drawn(value, tmp_path):
    with np.errstate(divide="ignore"):
        log = np.log(value)
    ax = plot_norms({"norm/a": [value] * 3, "log_norm_product": [log] * 3})
    assert np.isnan(ax.get_lines()[0].get_ydata()).all()
    ax.figure.savefig(tmp_path / "norms.png")
