"""Does balancing help a deep network? Trains it three ways, with a few seeds each.

A network of 8 layers learns MNIST-1D (digits drawn as a line of 40 points, generated
anew for each seed) with L2, with L2 and the balancer, and with WEISSI and the balancer.
Rates and strengths are those that `benchmarks/evidence/claims` found for each of them.

    python examples/generalize.py --seeds 3 --epochs 100 --out generalize-out
"""

from common import interval, make_parser, parse, positive_int

TRAIN, TEST = 2000, 4000


def parse_arguments():
    """Reads the command line; a bad value ends the program with one line."""
    parser = make_parser(__doc__, "generalize-out")
    parser.add_argument("--seeds", type=positive_int, default=3, help="of each method")
    parser.add_argument(
        "--epochs", type=positive_int, default=100, help="epochs of each training"
    )
    return parse(parser)


def generate(seed):
    """Makes rows of MNIST-1D that no other seed has."""
    from mnist1d.data import get_dataset_args, make_dataset

    settings = get_dataset_args()
    settings.num_samples = TRAIN + TEST
    settings.train_split = TRAIN / (TRAIN + TEST)
    settings.seed = 5000 + seed
    made = make_dataset(settings)
    x, x_test = made["x"].astype("float32"), made["x_test"].astype("float32")
    return (x, made["y"]), (x_test, made["y_test"])


def main():
    """Runs the example."""
    arguments = parse_arguments()

    import keras
    import matplotlib
    import numpy as np
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from keras_weissi import WEISSI, NormLogger, ScaleBalancer

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    methods = {
        "L2": (0.1, keras.regularizers.L2(0.0005), False),
        "L2 + ScaleBalancer": (0.1, keras.regularizers.L2(0.0007), True),
        "WEISSI + ScaleBalancer": (0.12, WEISSI(0.14), True),
    }

    def train(method, seed, rows, rows_test):
        rate, regularizer, is_balanced = methods[method]
        keras.utils.set_random_seed(seed)
        model = keras.Sequential([keras.Input((40,))])
        for _ in range(7):
            model.add(
                keras.layers.Dense(
                    128,
                    "relu",
                    kernel_initializer="he_normal",
                    kernel_regularizer=regularizer,
                )
            )
        model.add(keras.layers.Dense(10, kernel_regularizer=regularizer))
        schedule = keras.optimizers.schedules.CosineDecay(rate, 20 * arguments.epochs)
        model.compile(
            keras.optimizers.SGD(schedule, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        logger = NormLogger(progress_bar=False)
        callbacks = [logger, ScaleBalancer()] if is_balanced else [logger]
        history = model.fit(
            *rows,
            batch_size=100,
            epochs=arguments.epochs,
            validation_data=rows_test,
            validation_batch_size=TEST,
            callbacks=callbacks,
            verbose=0,
        )
        names = [key for key in history.history if key.startswith("norm/")]
        norms = np.array([history.history[key] for key in names])
        return 100 * np.array(history.history["val_accuracy"]), norms

    console = Console(width=100)
    console.print(
        f"Training 8 layers on {TRAIN:,} rows, {arguments.epochs} epochs, "
        f"{arguments.seeds} seeds of each method"
    )
    curves = {method: [] for method in methods}
    norms = {}
    jobs = [(seed, method) for seed in range(arguments.seeds) for method in methods]
    data = {}
    for seed, method in track(jobs, "training", console=console):
        if seed not in data:
            data = {seed: generate(seed)}
        curve, norms[method] = train(method, seed, *data[seed])
        curves[method].append(curve)
        console.print(
            f"  seed {seed}, {method}: {curve[-1]:.1f} % of {TEST:,} test rows"
        )

    final = {method: np.array(found)[:, -1] for method, found in curves.items()}
    table = Table(title="After training", title_justify="left")
    for column in ("method", "test accuracy", "difference to L2, with 95 % interval"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for method, values in final.items():
        table.add_row(method, f"{values.mean():.1f} %", interval(values - final["L2"]))
    console.print(table)
    is_short = arguments.epochs < 100

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    epochs = np.arange(arguments.epochs) + 1
    colors = dict(zip(methods, ("#777777", "#2a9d8f", "#e76f51"), strict=True))
    for method, found in curves.items():
        axes[0].plot(epochs, np.mean(found, axis=0), color=colors[method], label=method)
        low, high = norms[method].min(axis=0), norms[method].max(axis=0)
        axes[1].fill_between(epochs, low, high, color=colors[method], alpha=0.35)
        axes[1].plot(epochs, high, color=colors[method])
    axes[0].set(title="Test accuracy, %", xlabel="epoch")
    axes[0].legend(loc="lower right")
    axes[1].set(
        title="Norms of the kernels: smallest to largest",
        xlabel="epoch",
        ylim=(0, None),
    )
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.savefig(arguments.out / "generalize.png", dpi=120)
    print(
        "\nLook at generalize.png: the balancer keeps the norms of all layers equal, "
        "L2 alone does not.\nThe table shows what that is worth."
        + "\nRates and strengths are for 100 epochs; fewer say little." * is_short
        + f"\nIn {arguments.out}: generalize.png"
    )


if __name__ == "__main__":
    main()
