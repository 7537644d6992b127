"""Fine-tunes trained networks: when do a penalty and balancing help?

A ReLU network is trained on scikit-learn's digits. Then it gets a new last layer and
learns from 50 images, with a penalty that `regularize` puts on the trained layers too
(setting their `kernel_regularizer` would do nothing), and with `ScaleBalancer`.

- New digits: trained on 0 to 4, it learns 5 to 9. L2 and balancing help a little, but
  a network that was not trained before is at least as good: what was learned is of
  little use.
- The same digits: trained on half of all images, it learns others of the same ten
  digits. Now what was learned is worth a lot, and L2 and balancing cost accuracy.

Both make the trained layers change more, as the angle shows by which they turn.
Added to L2, `ScaleBalancer` gains little with new digits, and costs a little more
with the same digits.

    python examples/finetune.py --seeds 3 --epochs 30 --images 50 --log-norm 0.07
    python examples/finetune.py --model VGG16            # of keras.applications
    python examples/finetune.py --model VGG16 --weights imagenet  # if you are online
    python examples/finetune.py --model MobileNetV2      # mostly normalized kernels
"""

import argparse
import sys

from common import (
    float_between,
    int_between,
    interval,
    make_parser,
    parse,
    positive_int,
    seed,
)

TASKS = ("new digits", "the same digits")
COLORS = {  # of the variants
    "no penalty": "#999999",
    "L2": "#d1495b",
    "L2 + ScaleBalancer": "#00798c",
    "WEISSI + ScaleBalancer": "#edae49",
    "L2, not trained before": "#222222",
}
FIRST = "no penalty"
NOT_TRAINED = "L2, not trained before"
# Defaults without --model, and with it.
DEFAULTS = {"epochs": (30, 3), "images": (50, 500), "log_norm": (0.07, 0.01)}


def parse_arguments():
    """Reads the command line; a bad value ends the program with one line."""
    parser = make_parser(__doc__, "finetune-out")
    parser.add_argument(
        "--model",
        default=argparse.SUPPRESS,
        help="name in keras.applications: regularizes and trains it instead",
    )
    for name, kind, what in (
        ("epochs", positive_int, "epochs of fine-tuning"),
        ("images", int_between(20, 800), "images to fine-tune on"),
        ("log_norm", float_between(0, 1e6), "WEISSI's strength"),
    ):
        usual, with_model = DEFAULTS[name]
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            default=argparse.SUPPRESS,
            help=f"{what} (default: {usual}; with --model: {with_model})",
        )
    parser.add_argument("--seeds", type=positive_int, default=3, help="of each variant")
    parser.add_argument("--seed", type=seed, default=0, help="the first seed")
    parser.add_argument(
        "--weights", choices=["random", "imagenet"], default="random", help="of --model"
    )
    parser.add_argument(
        "--size",
        type=int_between(32, 1024),
        default=32,
        help="pixels of an image's side, with --model",
    )
    arguments = parse(parser)
    arguments.model = getattr(arguments, "model", None)
    for name, defaults in DEFAULTS.items():
        if not hasattr(arguments, name):
            setattr(arguments, name, defaults[arguments.model is not None])
    return arguments, parser


def split_digits(task, count, seed):
    """Returns what to train on first, `count` images to fine-tune on, and a test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x = (x / 16.0).astype("float32")
    if task == "new digits":
        old, new = (x[y < 5], y[y < 5]), (x[y >= 5], y[y >= 5] - 5)
    else:
        x_old, x_new, y_old, y_new = train_test_split(
            x, y, test_size=0.5, random_state=seed, stratify=y
        )
        old, new = (x_old, y_old), (x_new, y_new)
    x, x_test, y, y_test = train_test_split(
        *new, train_size=count, random_state=seed, stratify=new[1]
    )
    return old, (x, y), (x_test, y_test)


def make_network(classes):
    """Returns a compiled network with a last layer for that many classes."""
    import keras

    model = keras.Sequential(
        [
            keras.Input((64,)),
            *(keras.layers.Dense(128, "relu", name=f"hidden_{i}") for i in (1, 2, 3)),
            keras.layers.Dense(classes, name="new"),
        ]
    )
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def fine_tune(trained, variant, rows, rows_test, arguments):
    """Fine-tunes a copy of a network; returns it, its history, and a report."""
    from keras_weissi import WEISSI, NormLogger, ScaleBalancer, regularize

    model = make_network(len(set(rows[1])))
    if variant != NOT_TRAINED:
        for layer, old in zip(model.layers[:-1], trained.layers[:-1], strict=True):
            layer.set_weights(old.get_weights())
    report = None
    if variant != FIRST:
        # "l2" is Keras's L2 with its default strength, 0.01.
        is_weissi = variant.startswith("WEISSI")
        penalty = WEISSI(arguments.log_norm) if is_weissi else "l2"
        report = regularize(model, penalty)
    callbacks = [NormLogger(progress_bar=False)]
    if variant.endswith("ScaleBalancer"):
        callbacks.insert(0, ScaleBalancer())
    history = model.fit(
        *rows,
        batch_size=10,
        epochs=arguments.epochs,
        validation_data=rows_test,
        validation_batch_size=1000,
        callbacks=callbacks,
        verbose=0,
    )
    return model, history.history, report


def turned_by(trained, model):
    """Returns the degrees by which the kernels that were kept turned, on average.

    Balancing alone does not turn a kernel: it only scales it.
    """
    import numpy as np

    angles = []
    for old, new in zip(trained.layers[:-1], model.layers[:-1], strict=True):
        a, b = (layer.get_weights()[0].ravel() for layer in (old, new))
        cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
        angles.append(np.degrees(np.arccos(min(cosine, 1.0))))
    return float(np.mean(angles))


def compare(arguments):
    """Fine-tunes with all variants; prints and draws what came out."""
    import keras
    import numpy as np
    from rich.console import Console
    from rich.progress import track

    console = Console(width=100)
    console.print(
        f"Fine-tuning on {arguments.images} images, {arguments.epochs} epochs, with "
        f"{arguments.seeds} seed(s)"
    )
    runs = {(task, variant): [] for task in TASKS for variant in COLORS}
    jobs = [(n, *key) for n in range(arguments.seeds) for key in runs]
    shown = None
    for n, task, variant in track(jobs, "training", console=console):
        run_seed = (arguments.seed + n) % 2**32
        if variant == FIRST:
            keras.utils.set_random_seed(run_seed)
            old, rows, rows_test = split_digits(task, arguments.images, run_seed)
            trained = make_network(len(set(old[1])))
            trained.fit(*old, epochs=15, verbose=0)
        # All variants get the same new layer, and see the same batches.
        keras.utils.set_random_seed(run_seed)
        model, history, report = fine_tune(trained, variant, rows, rows_test, arguments)
        history["turned"] = turned_by(trained, model)
        runs[task, variant].append(history)
        if shown is None and variant.startswith("WEISSI"):
            shown = model
            console.print(f"\nWhat `regularize` reports: {variant}\n\n{report}\n")
    for task in TASKS:
        console.print(table_of(task, runs))

    def mean(task, variant, key):
        return np.mean([history[key] for history in runs[task, variant]], axis=0)

    draw(mean, arguments)
    save_and_load(shown, arguments.out)
    print(
        "Compare the two tables. L2 and balancing make the trained layers turn more. "
        "That may help a\nlittle if they are of little use, as for new digits: there, "
        "try a network that was not trained\nbefore. It costs accuracy if they are "
        "worth keeping, as for the same digits."
        f"\nIn {arguments.out}: finetune.png, model.keras"
    )


def table_of(task, runs):
    """Makes the table of one task."""
    import numpy as np
    from rich.table import Table

    table = Table(title=f"\nLearning {task}", title_justify="left")
    for column in (
        "variant",
        "test accuracy",
        "difference to no penalty (95 %)",
        "turned by",
    ):
        table.add_column(column, justify="left" if column == "variant" else "right")
    first = np.array([run["val_accuracy"][-1] for run in runs[task, FIRST]])
    for variant in COLORS:
        found = runs[task, variant]
        final = np.array([run["val_accuracy"][-1] for run in found])
        turned = np.mean([run["turned"] for run in found])
        table.add_row(
            variant,
            f"{100 * final.mean():.1f} %",
            "" if variant == FIRST else interval(100 * (final - first)),
            "" if variant == NOT_TRAINED else f"{turned:.0f}°",
        )
    return table


def draw(mean, arguments):
    """Draws the curves, each a mean over the seeds."""
    import matplotlib
    import numpy as np

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4.5), layout="constrained")
    epochs = np.arange(arguments.epochs) + 1
    marker = "." if arguments.epochs == 1 else None
    for variant, color in COLORS.items():
        style = {"color": color, "ls": "--" if variant == NOT_TRAINED else "-"}
        style |= {"marker": marker, "label": variant}
        style["lw"] = 3 if variant == "L2 + ScaleBalancer" else 1.5  # another is on it
        for ax, task in zip(axes, TASKS, strict=False):
            accuracy = 100 * mean(task, variant, "val_accuracy")
            ax.plot(epochs, accuracy, **style)
            ax.set(title=f"Learning {task}: test accuracy, %", xlabel="epoch")
        norms = [mean(TASKS[0], variant, f"norm/hidden_{i}") for i in (1, 2, 3)]
        ratio = mean(TASKS[0], variant, "norm/new") / np.mean(norms, axis=0)
        axes[2].plot(epochs, ratio, **style)
    axes[2].set(
        title="Norm of the new layer / of the others",
        xlabel=f"epoch ({TASKS[0]})",
        ylim=(0, 1.1),
    )
    for ax, task in zip(axes, TASKS, strict=False):
        # The first epochs would hide the differences at the end.
        last = [100 * mean(task, variant, "val_accuracy")[-1] for variant in COLORS]
        ax.set_ylim(min(last) - 3, max(last) + 2)
    for ax in axes:
        ax.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(COLORS), frameon=False
    )
    figure.savefig(arguments.out / "finetune.png", dpi=120)


def save_and_load(model, out):
    """Saves the model, loads it, and compares the penalty."""
    import keras

    def penalty_of(model):
        losses = [keras.ops.convert_to_numpy(loss) for loss in model.losses]
        return sum(map(float, losses)), len(losses)

    path = out / "model.keras"
    model.save(path)
    loaded = keras.models.load_model(path)
    if penalty_of(loaded) != penalty_of(model):
        sys.exit(f"the penalty was {penalty_of(model)} and is {penalty_of(loaded)}")
    penalty, count = penalty_of(loaded)
    print(
        f"saved and loaded: {count} kernels with a penalty, {penalty:.4f}, as before\n"
    )


def load_images(size, count, seed):
    """Returns digits as RGB images from 0 to 255, split into training and test."""
    import keras
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x = (digits.images / 16.0 * 255.0).astype("float32")[..., None].repeat(3, axis=-1)
    x = keras.ops.convert_to_numpy(keras.ops.image.resize(x, (size, size)))
    return train_test_split(
        x, digits.target, train_size=count, random_state=seed, stratify=digits.target
    )


def make_model(name, weights, size, parser):
    """Returns the application with ten classes on it, and how to prepare its input."""
    import keras

    application = getattr(keras.applications, name, None)
    if not callable(application):
        known = sorted(n for n in dir(keras.applications) if n[0].isupper())
        parser.error(f"argument --model: no {name!r} there, but {', '.join(known)}")
    try:
        body = application(
            weights=None if weights == "random" else weights,
            include_top=False,
            input_shape=(size, size, 3),
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
    modules = [
        module
        for module in vars(keras.applications).values()
        if hasattr(module, name) and hasattr(module, "preprocess_input")
    ]
    logits = keras.layers.Dense(10, name="logits")(body.output)
    return keras.Model(body.input, logits), modules[0].preprocess_input


def train_application(arguments, parser):
    """Regularizes and trains a model of `keras.applications`."""
    import keras

    from keras_weissi import WEISSI, NormLogger, regularize
    from keras_weissi.plotting import plot_norms

    keras.utils.set_random_seed(arguments.seed)
    x, x_test, y, y_test = load_images(arguments.size, arguments.images, arguments.seed)
    model, prepare = make_model(
        arguments.model, arguments.weights, arguments.size, parser
    )
    x, x_test = prepare(x), prepare(x_test)
    model.compile(
        keras.optimizers.Adam(1e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )

    print(regularize(model, WEISSI(arguments.log_norm)))

    logger = NormLogger()
    model.fit(
        x,
        y,
        32,
        epochs=arguments.epochs,
        validation_data=(x_test[:200], y_test[:200]),
        verbose=1 if sys.stdout.isatty() else 2,
        callbacks=[logger],
    )
    plot_norms(logger).figure.savefig(arguments.out / "norms.png", dpi=120)
    save_and_load(model, arguments.out)
    print(
        "The report above says which kernels got the penalty. Those directly before a "
        "normalization did not:\nit takes their scale away."
        f"\nIn {arguments.out}: norms.png, model.keras"
    )


def main():
    """Runs the example."""
    arguments, parser = parse_arguments()
    if arguments.model is None:
        compare(arguments)
    else:
        train_application(arguments, parser)


if __name__ == "__main__":
    main()
