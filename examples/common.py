"""What the examples share: the choice of a backend, and checks of the arguments.

None of it is needed to use `keras_weissi`. Whoever copies an example can leave it out.
"""

import argparse
import importlib.util
import json
import math
import os
import pathlib
import tempfile

# TensorFlow and its log of the machine's features are not what this is about.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

BACKENDS = ("tensorflow", "jax", "torch")


def make_parser(doc, out=None):
    """Returns a parser with the first line of `doc` and the option `--out`.

    Its help adds the default to each option, unless `out` is `None`.
    """
    kind = "HelpFormatter" if out is None else "ArgumentDefaultsHelpFormatter"
    parser = argparse.ArgumentParser(
        description=doc.split("\n")[0],
        formatter_class=getattr(argparse, kind),
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=out,
        help="folder for the results"
        + " (default: nothing is written)" * (out is None),
    )
    return parser


def parse(parser):
    """Reads the command line; a bad value ends the program with one line.

    Also makes the folder `--out` and chooses the backend, so call it before Keras is
    imported.
    """
    arguments = parser.parse_args()
    choose_backend(parser)
    make_folder(parser, arguments.out)
    return arguments


def make_folder(parser, path):
    """Makes a folder, or ends the program if nothing can be written to it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        parser.error(f"argument --out: cannot write to {path}: {error}")


def choose_backend(parser, needed=None):
    """Sets `KERAS_BACKEND` to a backend that is installed, and returns it.

    If it is not set, it is `needed` or the one that Keras would take. If that one is
    not installed, the first that is installed.
    """
    installed = [name for name in BACKENDS if importlib.util.find_spec(name)]
    chosen = os.environ.get("KERAS_BACKEND") or needed
    backend = chosen or configured_backend()
    if backend not in installed:
        if chosen or not installed:
            parser.error(f"the backend {backend} is not known or not installed")
        print(f"{backend} is not installed: {installed[0]} is the backend instead")
        backend = installed[0]
    os.environ["KERAS_BACKEND"] = backend
    return backend


def configured_backend():
    """Returns the backend of Keras's configuration file, TensorFlow by default."""
    folder = pathlib.Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    try:
        return json.loads((folder / "keras.json").read_text()).get(
            "backend", "tensorflow"
        )
    except (OSError, ValueError):
        return "tensorflow"


def int_between(low, high=math.inf):
    """Returns a function that parses an int in this range."""
    limits = f"of at least {low}" if high == math.inf else f"from {low} to {high}"

    def parse_int(text):
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"expected an int {limits}, got {text!r}")
        return int(text)

    return parse_int


def float_between(low, high):
    """Returns a function that parses a float in this range."""

    def parse_float(text):
        try:
            if low <= float(text) <= high:
                return float(text)
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(
            f"expected a float from {low:g} to {high:g}, got {text!r}"
        )

    return parse_float


positive_int = int_between(1)
seed = int_between(0, 2**32 - 1)


def interval(differences):
    """Writes the mean of a few differences, with its 95 % interval if there is one."""
    from scipy import stats

    mean = differences.mean()
    if len(differences) < 2 or not differences.any():
        return f"{mean:+.1f}"
    half = stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences)
    return f"{mean:+.1f} ± {half:.1f}"
