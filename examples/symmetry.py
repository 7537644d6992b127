"""Shows the scale symmetry of a trained residual network: audit, shift, balance.

A convolutional network with shortcuts learns scikit-learn's handwritten digits. Then
the scale of its layers is shifted by wild factors: the predictions stay, the L2 penalty
explodes, and WEISSI's, weighted by the coefficients of the audit, stays as well.
Balancing brings the norms back.

    python examples/symmetry.py --spread 100 --epochs 5 --seed 0
    python examples/symmetry.py --spread 1000 --epochs 10
"""

import sys

from common import float_between, make_parser, parse, positive_int, seed


def parse_arguments():
    """Reads the command line; a bad value ends the program with one line."""
    parser = make_parser(__doc__, "symmetry-out")
    parser.add_argument(
        "--epochs", type=positive_int, default=5, help="epochs of training"
    )
    parser.add_argument(
        "--spread",
        type=float_between(1, 1e6),
        default=100.0,
        help="scales go from 1 / SPREAD to it",
    )
    parser.add_argument("--seed", type=seed, default=0, help="of everything")
    return parse(parser)


def make_model():
    """Returns a residual network with one identity and one projection shortcut."""
    from keras import Input, Model, layers

    def convolution(filters, name, size=3, activation=None, strides=1):
        return layers.Conv2D(
            filters,
            size,
            strides,
            padding="same",
            activation=activation,
            kernel_initializer="he_normal",
            name=name,
        )

    inputs = Input((8, 8, 1), name="image")
    x = convolution(16, "stem", activation="relu")(inputs)
    y = convolution(16, "block1_a", activation="relu")(x)
    y = convolution(16, "block1_b")(y)
    x = layers.ReLU(name="relu1")(layers.Add(name="add1")([x, y]))
    y = convolution(32, "block2_a", activation="relu", strides=2)(x)
    y = convolution(32, "block2_b")(y)
    shortcut = convolution(32, "block2_shortcut", size=1, strides=2)(x)
    x = layers.ReLU(name="relu2")(layers.Add(name="add2")([shortcut, y]))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return Model(inputs, layers.Dense(10, name="logits")(x))


def main():
    """Runs the example."""
    arguments = parse_arguments()

    import keras
    import matplotlib
    import numpy as np

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    from keras_weissi import (
        WEISSI,
        balance_scales,
        invariant_coefficients,
        regularize,
        scale_groups,
        shift_scales,
    )

    keras.utils.set_random_seed(arguments.seed)
    digits = load_digits()
    images = (digits.images / 16.0).astype("float32")[..., None]
    x, x_test, y, y_test = train_test_split(
        images,
        digits.target,
        test_size=0.3,
        random_state=arguments.seed,
        stratify=digits.target,
    )
    model = make_model()
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )

    print(
        "The audit: which tensors share a scale, and which kernels lie between them\n"
    )
    groups = scale_groups(model)
    print(groups)
    print("\nThe coefficients of an invariant penalty\n")
    print(f"{invariant_coefficients(model)}\n")
    # A low floor, so that the penalty is a logarithm at every norm that occurs here.
    regularize(model, WEISSI(0.01, min_norm=1e-9), invariant=True)
    print(f"Training, {arguments.epochs} epochs")
    model.fit(
        x,
        y,
        32,
        epochs=arguments.epochs,
        validation_split=0.1,
        verbose=1 if sys.stdout.isatty() else 2,
    )

    def measured():
        kernels = [edge.kernel.variable for edge in groups.edges]
        squares = [
            float(np.sum(np.square(keras.ops.convert_to_numpy(k), dtype="float64")))
            for k in kernels
        ]
        penalties = [float(keras.ops.convert_to_numpy(p)) for p in model.losses]
        return {
            "logits": model.predict(x_test, verbose=0),
            "norms": np.sqrt(squares),
            "L2(0.001)": 0.001 * sum(squares),
            "WEISSI": sum(penalties),
        }

    rng = np.random.default_rng(arguments.seed)
    limit = np.log(arguments.spread)
    scales = {
        group.index: np.exp(rng.uniform(-limit, limit)) if group.free else 1.0
        for group in groups.groups
    }
    factors = {
        edge.kernel.name: float(scales[edge.target] / scales[edge.source])
        for edge in groups.edges
    }

    states = {"trained": measured()}
    print("\nShifted by wild factors\n")
    print(shift_scales(model, factors))
    states["shifted"] = measured()
    print("\nBalanced\n")
    print(balance_scales(model))
    states["balanced"] = measured()

    def accuracy(logits):
        return np.mean(logits.argmax(axis=-1) == y_test)

    trained = states["trained"]["logits"]
    print(
        f"\n{'':10}{'accuracy':>9}{'logits moved':>14}{'L2(0.001)':>12}{'WEISSI':>10}"
    )
    for name, state in states.items():
        moved = np.abs(state["logits"] - trained).max() / np.abs(trained).max()
        print(
            f"{name:10}{accuracy(state['logits']):>9.1%}{moved:>14.1e}"
            f"{state['L2(0.001)']:>12.4g}{state['WEISSI']:>10.5f}"
        )

    figure, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
    names = [edge.kernel.name for edge in groups.edges]
    positions = np.arange(len(names))
    colors = {"trained": "#a6a6a6", "shifted": "#d1495b", "balanced": "#00798c"}
    for i, (name, state) in enumerate(states.items()):
        label = f"{name}: L2 penalty {state['L2(0.001)']:.3g}, WEISSI "
        label += f"{state['WEISSI']:.4f}"
        ax.bar(
            positions + (i - 1) * 0.27,
            state["norms"],
            0.27,
            color=colors[name],
            label=label,
        )
    ax.set_yscale("log")
    ax.set_xticks(positions, names, rotation=20, ha="right")
    ax.set_ylabel("Frobenius norm of the kernel")
    ax.set_title("One function, three distributions of its scale")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=1)
    ax.grid(axis="y", alpha=0.3)
    figure.savefig(arguments.out / "symmetry.png", dpi=120)
    print(
        "\nLook at the last table: accuracy and WEISSI stay, while L2 depends on how "
        "the scale is\ndistributed. symmetry.png shows the norms."
        f"\nIn {arguments.out}: symmetry.png"
    )


if __name__ == "__main__":
    main()
