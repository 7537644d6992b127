"""Fine-tunes trained networks: with which penalty, with or without balancing?

A ReLU network is trained on scikit-learn's digits. Then it gets a new last layer and
learns from a few images, with a penalty that `regularize` puts on the trained layers
too (setting their `kernel_regularizer` would do nothing), and with `ScaleBalancer`.

- New digits: trained on 0 to 4, it learns 5 to 9.
- The same digits: trained on half of all images, it learns others of the same digits.

Over ten other seeds (`--seeds 10 --seed 100`), `ScaleBalancer` with L2 or WEISSI turned
the trained layers more. Against no penalty it gained 0.7 to 0.9 points with new digits
and cost 0.4 with the same digits; training from scratch gained 1.9 and cost 11.4. Each
95 % interval excludes 0. L2 alone changed next to nothing.

    python examples/finetune.py --seeds 3 --epochs 30 --images 50 --log-norm 0.03
    python examples/finetune.py --model VGG16            # of keras.applications
    python examples/finetune.py --model VGG16 --weights imagenet  # if you are online
    python examples/finetune.py --model MobileNetV2      # mostly normalized kernels
"""

import argparse
import sys

import common
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

TASKS = ("new digits", "the same digits")
FIRST = "no penalty"
NOT_TRAINED = "L2 from scratch"  # not trained before
BALANCED = ("L2 + ScaleBalancer", "WEISSI + ScaleBalancer")
VARIANTS = (FIRST, "L2", NOT_TRAINED, *BALANCED)


def parse_arguments():
    """Reads the command line; a bad value ends the program with one line."""
    parser = common.make_parser(__doc__, "finetune-out")
    for name, kind, default, text in (
        ("--epochs", common.positive_int, 30, "epochs of fine-tuning"),
        ("--images", common.int_between(20, 800), 50, "images to fine-tune on"),
        ("--log-norm", common.float_between(0, 1e6), 0.03, "WEISSI's strength"),
        ("--seed", common.seed, 0, "the first seed"),
        ("--seeds", common.positive_int, 3, "of each variant, without --model"),
        ("--model", str, None, "name in keras.applications: trains only this model"),
        ("--size", common.int_between(32, 1024), 32, "pixels per side, with --model"),
    ):
        parser.add_argument(name, type=kind, default=default, help=text)
    parser.add_argument(
        "--weights", choices=["random", "imagenet"], default="random", help="of --model"
    )
    arguments = common.parse(parser)
    # Parsed again without these defaults, to see which options were given.
    unset = argparse.Namespace(seeds=None, size=None, weights=None)
    given = vars(parser.parse_args(namespace=unset))
    is_comparing = arguments.model is None
    for name in ("size", "weights") if is_comparing else ("seeds",):
        if given[name] is not None:
            when = "with" if is_comparing else "without"
            parser.error(f"argument --{name}: has an effect only {when} --model")
    return arguments, parser


def split(x, y, train_size, seed):
    """Splits images and their classes into two pairs, at random."""
    x, x_rest, y, y_rest = train_test_split(
        x, y, train_size=train_size, random_state=seed, stratify=y
    )
    return (x, y), (x_rest, y_rest)


def split_digits(task, count, seed):
    """Returns what to train on first, `count` images to fine-tune on, and a test."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16.0).astype("float32")
    if task == "new digits":
        old, new = (x[y < 5], y[y < 5]), (x[y >= 5], y[y >= 5] - 5)
    else:
        old, new = split(x, y, 0.5, seed)
    return old, *split(*new, count, seed)


def make_network(classes):
    """Returns a compiled network with a last layer for that many classes."""
    import keras
    from keras import layers

    model = keras.Sequential([keras.Input((64,))])
    for i in range(1, 4):
        model.add(layers.Dense(128, "relu", name=f"hidden_{i}"))
    model.add(layers.Dense(classes, name="new"))
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def fine_tune(trained, variant, rows, rows_test, arguments):
    """Fine-tunes a copy of a network; returns it, its test accuracies, and a report."""
    import keras

    from keras_weissi import WEISSI, ScaleBalancer, regularize

    model = make_network(len(set(rows[1])))
    if variant != NOT_TRAINED:
        for layer, old in zip(model.layers[:-1], trained.layers[:-1], strict=True):
            layer.set_weights(old.get_weights())
    report = None
    if variant != FIRST:
        penalty = keras.regularizers.L2(0.001)  # like WEISSI's strength, not tuned
        if variant.startswith("WEISSI"):
            penalty = WEISSI(arguments.log_norm)
        report = regularize(model, penalty)
    history = model.fit(
        *rows,
        batch_size=10,
        epochs=arguments.epochs,
        validation_data=rows_test,
        validation_batch_size=1000,
        callbacks=[ScaleBalancer()] if variant in BALANCED else [],
        verbose=0,
    )
    return model, history.history["val_accuracy"], report


def turned_by(trained, model):
    """Returns the degrees by which the kernels that were kept turned, on average.

    Balancing alone does not turn a kernel: it only scales it.
    """
    angles = []
    for old, new in zip(trained.layers[:-1], model.layers[:-1], strict=True):
        a, b = (layer.get_weights()[0].ravel() for layer in (old, new))
        cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
        angles.append(np.degrees(np.arccos(min(cosine, 1.0))))
    return np.mean(angles)


def compare(arguments):
    """Fine-tunes with all variants; prints and draws what came out."""
    import keras

    console = Console(width=100)
    console.print(
        f"Fine-tuning on {arguments.images} images, {arguments.epochs} epochs, with "
        f"{arguments.seeds} seed(s)"
    )
    curves = {(task, variant): [] for task in TASKS for variant in VARIANTS}
    angles = {key: [] for key in curves}
    jobs = [(n, *key) for n in range(arguments.seeds) for key in curves]
    for n, task, variant in track(jobs, "training", console=console):
        run_seed = (arguments.seed + n) % 2**32
        if variant == FIRST:
            keras.utils.set_random_seed(run_seed)
            old, *rows = split_digits(task, arguments.images, run_seed)
            trained = make_network(len(set(old[1])))
            trained.fit(*old, epochs=15, verbose=0)
        # All variants get the same new layer, and see the same batches.
        keras.utils.set_random_seed(run_seed)
        model, curve, report = fine_tune(trained, variant, *rows, arguments)
        curves[task, variant].append(100 * np.array(curve))
        angles[task, variant].append(turned_by(trained, model))
    console.print(f"\nWhat `regularize` reports at the end: {variant}\n\n{report}")
    for task in TASKS:
        print_results(task, curves, angles, console)
    draw(curves, arguments)
    save_and_load(model, arguments.out / "model.keras")
    print(f"In {arguments.out}: finetune.png, model.keras")


def print_results(task, curves, angles, console):
    """Prints the table of one task, and what follows from it."""
    table = Table(
        title=f"\nLearning {task}",
        title_justify="left",
        caption="95 %: over splits of the same images, so too narrow for other images",
        caption_justify="left",
    )
    table.add_column("variant")
    for column in ("test accuracy", f"difference to {FIRST} (95 %)", "turned by"):
        table.add_column(column, justify="right")
    final = {variant: np.array(curves[task, variant])[:, -1] for variant in VARIANTS}
    differences = {}
    for variant, values in final.items():
        if variant != FIRST:
            differences[variant] = common.interval(values - final[FIRST])
        angle = f"{np.mean(angles[task, variant]):.0f}°"
        table.add_row(
            variant,
            f"{values.mean():.1f} %",
            differences.get(variant),
            None if variant == NOT_TRAINED else angle,
        )
    console.print(table)
    is_one = len(final[FIRST]) == 1
    print("One seed shows no clear difference." if is_one else conclude(differences))


def conclude(differences):
    """Says which variants differ from no penalty by more than their interval.

    It reads what the table shows, so that both always agree.
    """
    found = {"better": [], "worse": [], "no clear difference": []}
    for variant, text in differences.items():
        mean, _, half = text.partition(" ± ")
        is_clear = half and abs(float(mean)) > float(half)
        side = "better" if float(mean) > 0 else "worse"
        found[side if is_clear else "no clear difference"].append(variant)
    lines = [f"  {key}: {', '.join(names)}" for key, names in found.items() if names]
    return "\n".join([f"Compared with {FIRST}:", *lines])


def draw(curves, arguments):
    """Draws the curves, each a mean over the seeds."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.subplots(1, 2)
    epochs = np.arange(arguments.epochs) + 1
    marker = "." if arguments.epochs == 1 else None
    for ax, task in zip(axes, TASKS, strict=True):
        means = [np.mean(curves[task, variant], axis=0) for variant in VARIANTS]
        for i, (variant, mean) in enumerate(zip(VARIANTS, means, strict=True)):
            style = "--" if variant == NOT_TRAINED else "-"
            # Thick below thin, as some curves are nearly the same.
            ax.plot(epochs, mean, style, lw=4 - 0.7 * i, marker=marker, label=variant)
        # The first epochs would hide the differences at the end.
        last = [mean[-1] for mean in means]
        ax.set(title=f"Learning {task}: test accuracy, %", xlabel="epoch")
        ax.set(ylim=(min(last) - 3, max(last) + 2))
        ax.grid(alpha=0.3)
    lines = axes[0].get_lines()
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines))
    figure.savefig(arguments.out / "finetune.png", dpi=120)


def save_and_load(model, path):
    """Saves the model and loads it: the penalty comes along."""
    import keras

    model.save(path)
    loaded = keras.models.load_model(path)
    print(f"\nsaved and loaded: {len(loaded.losses)} kernels with a penalty")


def make_model(arguments, parser):
    """Returns the application with ten classes on it, and how to prepare its input."""
    import keras

    name, weights = arguments.model, arguments.weights
    application = getattr(keras.applications, name, None)
    if not callable(application):
        known = sorted(n for n in dir(keras.applications) if n[0].isupper())
        parser.error(f"argument --model: no {name!r} there, but {', '.join(known)}")
    try:
        body = application(
            weights=None if weights == "random" else weights,
            include_top=False,
            input_shape=(arguments.size, arguments.size, 3),
            pooling="avg",
        )
    except Exception as error:
        # Keras raises a bare Exception if a download fails.
        parser.error(f"cannot make {name} with --weights {weights}: {error}")
    if weights == "random" and name.startswith("VGG"):
        # Glorot's initial weights are too small for so deep a ReLU network.
        he = keras.initializers.HeNormal(seed=0)
        for layer in body.layers:
            if hasattr(layer, "kernel"):
                layer.kernel.assign(he(layer.kernel.shape))
    prepare = next(
        module.preprocess_input
        for module in vars(keras.applications).values()
        if hasattr(module, name) and hasattr(module, "preprocess_input")
    )
    logits = keras.layers.Dense(10, name="logits")(body.output)
    return keras.Model(body.input, logits), prepare


def train_application(arguments, parser):
    """Regularizes and trains a model of `keras.applications`."""
    import keras

    from keras_weissi import WEISSI, NormLogger, regularize
    from keras_weissi.plotting import plot_norms

    keras.utils.set_random_seed(arguments.seed)
    model, prepare = make_model(arguments, parser)
    model.compile(
        keras.optimizers.Adam(1e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    print(regularize(model, WEISSI(arguments.log_norm)))

    x, y = load_digits(return_X_y=True)
    x = (x * 255.0 / 16.0).astype("float32").reshape(-1, 8, 8, 1).repeat(3, axis=-1)
    rows, (x_test, y_test) = split(x, y, arguments.images, arguments.seed)

    def resize(x):
        x = keras.ops.image.resize(x, (arguments.size, arguments.size))
        return prepare(keras.ops.convert_to_numpy(x))

    logger = NormLogger()
    model.fit(
        resize(rows[0]),
        rows[1],
        epochs=arguments.epochs,
        validation_data=(resize(x_test[:200]), y_test[:200]),
        validation_freq=arguments.epochs,  # only at the end: it takes long
        verbose=1 if sys.stdout.isatty() else 2,
        callbacks=[logger],
    )
    plot_norms(logger).figure.savefig(arguments.out / "norms.png", dpi=120)
    save_and_load(model, arguments.out / "model.keras")
    print(f"In {arguments.out}: norms.png, model.keras")


def main():
    """Runs the example."""
    arguments, parser = parse_arguments()
    if arguments.model is None:
        compare(arguments)
    else:
        train_application(arguments, parser)


if __name__ == "__main__":
    main()
