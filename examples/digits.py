"""Trains a ReLU network on handwritten digits: with and without penalties.

The digits are the 1,797 real images of 8 x 8 pixels that scikit-learn ships. The norms
of every layer are logged while training; then the WEISSI model is saved, loaded by a
new process that imports nothing but `keras_weissi`, checked, and trained on.

    python examples/digits.py --epochs 40 --seed 0 --out digits-out
"""

import json
import pathlib
import subprocess
import sys
import tempfile

from common import make_parser, parse, positive_int, seed

# What the new process runs. The import is all the preparation it needs.
RELOAD = """
import json, sys
import numpy as np
import keras_weissi
import keras

model_path, data_path = sys.argv[1:]
model = keras.models.load_model(model_path)
data = np.load(data_path)
predictions = model.predict(data["x_test"], verbose=0)
penalty = sum(float(keras.ops.convert_to_numpy(loss)) for loss in model.losses)
steps = int(model.optimizer.iterations)
history = model.fit(data["x"], data["y"], epochs=1, verbose=0)
print(json.dumps({
    "difference": float(abs(predictions - data["predictions"]).max()),
    "penalty": penalty,
    "steps": steps,
    "steps_after": int(model.optimizer.iterations),
    "loss": history.history["loss"][0],
}))
"""


def parse_arguments():
    """Reads the command line; a bad value ends the program with one line."""
    parser = make_parser(__doc__, "digits-out")
    parser.add_argument(
        "--epochs", type=positive_int, default=40, help="epochs of each training"
    )
    parser.add_argument("--seed", type=seed, default=0, help="of split and weights")
    return parse(parser)


def tensorboard(folder):
    """Returns a list with the TensorBoard callback, which needs TensorFlow."""
    import keras

    try:
        import tensorflow  # noqa: F401
    except ImportError:
        print("TensorFlow is not installed: no TensorBoard events are written")
        return []
    return [keras.callbacks.TensorBoard(folder, write_graph=False)]


def main():
    """Runs the example."""
    arguments = parse_arguments()

    import keras
    import matplotlib.pyplot as plt
    import numpy as np
    from rich.console import Console
    from rich.table import Table
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    from keras_weissi import WEISSI, NormLogger, ScaleBalancer
    from keras_weissi.plotting import plot_norms

    console = Console(width=100)
    images, labels = load_digits(return_X_y=True)
    images = (images / 16.0).astype("float32")
    x, x_test, y, y_test = train_test_split(
        images, labels, test_size=0.3, random_state=arguments.seed, stratify=labels
    )

    def make_model(regularizer):
        keras.utils.set_random_seed(arguments.seed)
        model = keras.Sequential(
            [
                keras.Input((64,)),
                *(
                    keras.layers.Dense(
                        128,
                        activation="relu",
                        kernel_regularizer=regularizer,
                        name=f"hidden_{i}",
                    )
                    for i in (1, 2, 3)
                ),
                keras.layers.Dense(10, kernel_regularizer=regularizer, name="logits"),
            ]
        )
        model.compile(
            keras.optimizers.SGD(0.05, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        return model

    l2 = keras.regularizers.L2(0.001)
    methods = {  # a penalty, and callbacks
        "none": (None, []),
        "L2(0.001)": (l2, []),
        "L2(0.001) + balancer": (l2, [ScaleBalancer()]),
        "WEISSI(0.03)": (WEISSI(0.03), []),
    }
    table = Table(title="After training", title_justify="left")
    table.add_column("method")
    for column in (
        "test accuracy",
        "penalty's value",
        "log norm product",
        "least norm",
    ):
        table.add_column(column, justify="right")
    loggers = {}
    shown = ["loss", "accuracy", "log_norm_product", "regularization_loss"]
    out = arguments.out
    files = ["norms.png", "norms.csv", "log.csv", "model.keras"]

    for name, (regularizer, before) in methods.items():
        console.print(f"\nTraining with {name}, {arguments.epochs} epochs")
        model = make_model(regularizer)
        # One bar for all the epochs instead.
        logger = loggers[name] = NormLogger(progress_bar=False)
        bar = keras.utils.Progbar(
            arguments.epochs,
            unit_name="epoch",
            stateful_metrics=shown,
            verbose=1 if sys.stdout.isatty() else 2,  # 2: only the last line
        )

        def advance(epoch, logs, bar=bar):
            bar.update(epoch + 1, [(key, logs[key]) for key in shown])

        callbacks = [*before, logger]
        callbacks.append(keras.callbacks.LambdaCallback(on_epoch_end=advance))
        if isinstance(regularizer, WEISSI):
            callbacks.append(keras.callbacks.CSVLogger(out / "log.csv"))
            events = tensorboard(out / "tensorboard")
            callbacks += events
            files += ["tensorboard/"] * len(events)
        model.fit(
            x,
            y,
            32,
            epochs=arguments.epochs,
            validation_split=0.1,
            callbacks=callbacks,
            verbose=0,
        )
        _, accuracy = model.evaluate(x_test, y_test, verbose=0)
        last = logger.record[-1]
        norms = [value for key, value in last.items() if key.startswith("norm/")]
        table.add_row(
            name,
            f"{accuracy:.1%}",
            f"{last['regularization_loss']:.4f}",
            f"{last['log_norm_product']:.2f}",
            f"{min(norms):.2f}",
        )

    console.print()
    console.print(table)
    drawn = list(methods)[1:]  # all with a penalty
    figure, axes = plt.subplots(1, len(drawn), figsize=(13, 4), layout="constrained")
    for ax, name in zip(axes, drawn, strict=True):
        plot_norms(loggers[name], ax).set_title(name)
    for ax in axes[1:]:
        ax.get_legend().remove()  # the colors are the same in all
    figure.savefig(out / "norms.png", dpi=120)
    logger.to_csv(out / "norms.csv")
    model.save(out / "model.keras")

    console.print("\nLoading model.keras in a new process ...")
    predictions = model.predict(x_test, verbose=0)
    penalty = sum(float(keras.ops.convert_to_numpy(loss)) for loss in model.losses)
    with tempfile.TemporaryDirectory() as folder:
        data = pathlib.Path(folder) / "data.npz"
        np.savez(data, x=x, y=y, x_test=x_test, predictions=predictions)
        process = subprocess.run(
            [sys.executable, "-c", RELOAD, str(out / "model.keras"), str(data)],
            capture_output=True,
            text=True,
        )
    if process.returncode:
        sys.exit(f"loading failed:\n{process.stderr}")
    loaded = json.loads(process.stdout.splitlines()[-1])
    if loaded["difference"] != 0.0 or loaded["penalty"] != penalty:
        sys.exit(
            f"the loaded model differs: predictions by {loaded['difference']}, the "
            f"penalty is {loaded['penalty']} and was {penalty}"
        )
    trains_on = loaded["steps_after"] > loaded["steps"] > 0
    if not (trains_on and np.isfinite(loaded["loss"])):
        sys.exit(f"the loaded model does not train on: {loaded}")
    console.print(
        f"predictions and penalty ({penalty:.4f}) are identical; training goes on from "
        f"step {loaded['steps']}: loss {loaded['loss']:.4f}"
    )
    print(
        "\nLook at norms.png: the balancer makes all norms equal. Under WEISSI, here "
        "without it,\nthe product of the norms falls once the digits are learned, and "
        "the smallest norm falls\nmost. One split of so few rows says little about "
        "accuracy: run examples/generalize.py\nfor that."
        f"\nIn {out}: {', '.join(files)}"
    )


if __name__ == "__main__":
    main()
