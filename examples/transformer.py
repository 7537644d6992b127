"""Shows the scale symmetry of a small transformer, and trains it balanced.

The network is built like Llama, from layers of Keras alone: grouped attention with a
causal mask, SwiGLU, RMSNormalization, shortcuts. First, the scales of its layers are
shifted by wild factors: the outputs do not move. Then it is balanced, and learns to
sort eight digits with WEISSI, `ScaleBalancer` and `NormLogger`, in about a minute.

    python examples/transformer.py --spread 3 --epochs 5 --log-norm 0.01 --seed 0
    python examples/transformer.py --spread 6 --epochs 8
"""

import math
import sys

from common import float_between, make_parser, parse, positive_int, seed

BATCH = 64
LENGTH = 8  # digits to sort
SEPARATOR = 10  # the token between the digits and the answer


def parse_arguments():
    """Reads the command line; a bad value ends the program with one line."""
    parser = make_parser(__doc__, "transformer-out")
    parser.add_argument(
        "--epochs", type=positive_int, default=5, help="epochs of training"
    )
    parser.add_argument(
        "--log-norm",
        type=float_between(0, 1),
        default=0.01,
        help="strength of the penalty",
    )
    parser.add_argument(
        "--spread",
        type=float_between(0, 10),
        default=3.0,
        help="standard deviation of the random scales, in powers of two",
    )
    parser.add_argument("--seed", type=seed, default=0, help="of everything")
    return parse(parser)


def make_data(rng, count):
    """Draws digits; returns what the model reads, and the sorted digits.

    The model reads the digits, the separator and all of the answer but its last digit,
    and predicts the next digit of the answer at each place. If all are right, then it
    also finds them if it reads its own answer.
    """
    import numpy as np

    digits = rng.integers(10, size=(count, LENGTH))
    answers = np.sort(digits, axis=1)
    separators = np.full((count, 1), SEPARATOR)
    tokens = np.concatenate([digits, separators, answers[:, :-1]], axis=1)
    return tokens.astype("int32"), answers.astype("int32")


def make_model(width=64, heads=4, groups=2, hidden=128, blocks=2):
    """Returns a small model like Llama. The causal mask tells it where a token is."""
    from keras import Input, Model, layers

    # Before Keras 3.9, there is no RMSNormalization.
    rms = getattr(layers, "RMSNormalization", layers.LayerNormalization)

    def dense(units, name, activation=None):
        return layers.Dense(units, activation, use_bias=False, name=name)

    tokens = Input((2 * LENGTH,), dtype="int32", name="tokens")
    x = layers.Embedding(SEPARATOR + 1, width, name="embedding")(tokens)
    for i in range(1, blocks + 1):
        y = rms(name=f"norm{i}_a")(x)
        attention = layers.GroupQueryAttention(
            width // heads, heads, groups, use_bias=False, name=f"attention{i}"
        )
        y = attention(y, y, use_causal_mask=True)
        x = layers.Add(name=f"add{i}_a")([x, y])
        y = rms(name=f"norm{i}_b")(x)
        gate, up = dense(hidden, f"gate{i}", "silu")(y), dense(hidden, f"up{i}")(y)
        y = layers.Multiply(name=f"swiglu{i}")([gate, up])
        x = layers.Add(name=f"add{i}_b")([x, dense(width, f"down{i}")(y)])
    x = layers.Cropping1D((LENGTH, 0), name="answer")(x)
    return Model(tokens, dense(10, "logits")(rms(name="norm")(x)))


def print_audit(groups):
    """Prints the groups whose scale is free, and what pins the others."""
    print(
        f"{len(groups.groups)} groups of tensors have a scale of their own; it is free "
        f"in {len(groups.free)},\n{groups.dimension} of them independently. Each lies "
        "between kernels (or gammas):\n"
    )
    for group in groups.free:
        into, out = (
            ", ".join(
                edge.kernel.name
                for edge in groups.edges
                if getattr(edge, end) == group.index
            )
            for end in ("target", "source")
        )
        print(f"    {into:16} -> {out or '(see below)'}")
    print()
    for relation in groups.relations:
        names = " · ".join(groups.groups[i].layers[0] for i, _ in relation.powers)
        print(f"    {names} = 1 (the scores are pinned by the softmax)")
    for group in groups.pinned:
        layer, reason = group.pins[0]
        more = f" (and {len(group.layers) - 1} more)" if group.layers[1:] else ""
        print(f"    pinned: {group.layers[0]}{more}, by {layer}: {reason}")


def main():
    """Runs the example."""
    arguments = parse_arguments()

    import keras
    import matplotlib
    import numpy as np

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from keras_weissi import (
        WEISSI,
        NormLogger,
        ScaleBalancer,
        balance_scales,
        regularize,
        scale_groups,
        shift_scales,
    )

    keras.utils.set_random_seed(arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    x, y = make_data(rng, 20_000)
    x_test, y_test = make_data(rng, 2_000)
    model = make_model()
    steps = arguments.epochs * math.ceil(len(x) / BATCH)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.003, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    groups = scale_groups(model)
    print_audit(groups)
    regularize(model, WEISSI(arguments.log_norm))

    def measured():
        kernels = [edge.kernel.variable for edge in groups.edges]
        norms = [
            np.linalg.norm(keras.ops.convert_to_numpy(kernel)) for kernel in kernels
        ]
        penalties = [float(keras.ops.convert_to_numpy(p)) for p in model.losses]
        logits = model.predict(x_test, batch_size=500, verbose=0)
        return {
            "logits": logits,
            "sorted": np.mean((logits.argmax(axis=-1) == y_test).all(axis=1)),
            "norms": np.array(norms),
            "squares": np.sum(np.square(norms)),
            "WEISSI": sum(penalties),
        }

    states = {"new": measured()}
    shift_scales(model, groups.random_factors(rng, arguments.spread))
    states["shifted"] = measured()
    balance_scales(model)
    states["balanced"] = measured()

    print(f"\nTraining, {arguments.epochs} epochs")
    logger = NormLogger()
    model.fit(
        x,
        y,
        BATCH,
        epochs=arguments.epochs,
        verbose=1 if sys.stdout.isatty() else 2,
        callbacks=[ScaleBalancer(), logger],
    )
    states["trained"] = measured()

    logits = states["new"]["logits"]
    print(
        f"\n{'':10}{'all 8 right':>12}{'logits moved':>14}{'sum of squares':>16}"
        f"{'WEISSI':>10}"
    )
    for name, state in states.items():
        moved = np.abs(state["logits"] - logits).max() / np.abs(logits).max()
        print(
            f"{name:10}{state['sorted']:>12.1%}{moved:>14.1e}{state['squares']:>16.5g}"
            f"{state['WEISSI']:>10.5f}"
        )
    first, last = logger.record[0], logger.record[-1]
    print(
        "\nlog of the product of all norms: "
        f"{first['log_norm_product']:.2f} before training, "
        f"{last['log_norm_product']:.2f} after it"
    )

    figure, ax = plt.subplots(figsize=(9, 5.5), layout="constrained")
    names = [edge.kernel.name for edge in groups.edges]
    colors = {"new": "#a6a6a6", "shifted": "#d1495b", "balanced": "#00798c"}
    for i, (name, color) in enumerate(colors.items()):
        ax.bar(
            np.arange(len(names)) + (i - 1) * 0.27,
            states[name]["norms"],
            0.27,
            color=color,
            label=f"{name}: Σ‖W‖² = {states[name]['squares']:,.0f}",
        )
    ax.set_yscale("log")
    ax.set_xticks(np.arange(len(names)), names, rotation=45, ha="right")
    ax.set_ylabel("Frobenius norm of the kernel or gamma")
    ax.set_title("One transformer, three distributions of its scale")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    ax.grid(axis="y", alpha=0.3)
    figure.savefig(arguments.out / "transformer.png", dpi=120)
    print(
        "\nLook at the table: the shift and the balancing leave the outputs as they "
        "are. transformer.png\nshows the norms."
        f"\nIn {arguments.out}: transformer.png"
    )


if __name__ == "__main__":
    main()
