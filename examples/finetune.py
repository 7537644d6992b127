"""Puts WEISSI on a `keras.applications` model that already exists, and trains it.

The images are scikit-learn's handwritten digits, scaled up. The report shows which
kernels are regularized and why the others are not; after a few epochs the model is
saved and loaded, and the penalty compared.

    python examples/finetune.py                          # VGG16, random weights
    python examples/finetune.py --weights imagenet       # if you are online
    python examples/finetune.py --model MobileNetV2      # mostly normalized kernels
"""

import argparse
import os
import pathlib
import sys

# TensorFlow and its log of the machine's features are not what this is about.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


def parse_arguments():
    """Reads the command line; a bad value ends the program with one line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", default="VGG16", help="name in keras.applications")
    parser.add_argument(
        "--weights", choices=["random", "imagenet"], default="random", help="to start"
    )
    parser.add_argument(
        "--log-norm", type=float, default=0.01, help="WEISSI's strength"
    )
    parser.add_argument("--epochs", type=int, default=3, help="epochs of training")
    parser.add_argument("--images", type=int, default=500, help="images to train on")
    parser.add_argument(
        "--size", type=int, default=32, help="pixels of an image's side"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of split and weights")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default="finetune-out",
        help="folder for the results",
    )
    arguments = parser.parse_args()
    if not 0 <= arguments.log_norm < 1e6:
        parser.error("argument --log-norm: expected a float of at least 0")
    if arguments.images > 1500:  # of 1,797, the rest is for the test
        parser.error("argument --images: expected an int of at most 1500")
    for name, least in (("epochs", 1), ("images", 10), ("size", 32), ("seed", 0)):
        if getattr(arguments, name) < least:
            parser.error(f"argument --{name}: expected an int of at least {least}")
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --out: cannot make {arguments.out}: {error}")
    return arguments, parser


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


def main():
    """Runs the example."""
    arguments, parser = parse_arguments()

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

    path = arguments.out / "model.keras"
    model.save(path)
    loaded = keras.models.load_model(path)

    def penalty_of(model):
        losses = [keras.ops.convert_to_numpy(loss) for loss in model.losses]
        return sum(map(float, losses)), len(losses)

    if penalty_of(loaded) != penalty_of(model):
        sys.exit(f"the penalty was {penalty_of(model)} and is {penalty_of(loaded)}")
    penalty, count = penalty_of(loaded)
    print(f"saved and loaded: {count} kernels with a penalty, {penalty:.4f}, as before")
    print(f"in {arguments.out}: norms.png, model.keras")


if __name__ == "__main__":
    main()
