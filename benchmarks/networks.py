"""What the symmetry finds in the networks people have: free scales, exactness, time.

    KERAS_BACKEND=jax python benchmarks/networks.py

All models of `keras.applications`, and the backbones of `keras_hub` at small sizes if
that is installed, with random weights. The table goes to `results/NETWORKS.md`, next to
the free scales that `--before` has written to `results/networks-before.json` with the
version before. Each model has a process of its own, one at a time, so that nothing is
cached and times do not mix. It takes about half an hour. If it is stopped, it goes on
where it was: the results of the same code are kept in the folder `--work`.
"""

import argparse
import hashlib
import inspect
import json
import math
import pathlib
import re
import subprocess
import sys
import time
import warnings

HERE = pathlib.Path(__file__).parent
TABLE = HERE / "results" / "NETWORKS.md"
BEFORE = HERE / "results" / "networks-before.json"
QUICK = ("MobileNetV2", "ResNet50V2", "VGG16")
# The sides of images, by what the name of the model contains. The first two are the
# smallest that are accepted; at 64, five poolings leave something to convolve.
SIZES = {"Inception": 75, "Xception": 71, "": 64}
SUSPICIOUS = 1e-5  # as a change of an output
LIMIT = 2  # seconds
COLUMNS = (
    "family",
    "model",
    "weights",
    "kernels",
    "free before",
    "free now",
    "output change",
    "seconds",
    "call",
    "note",
)
TEXTS = ("family", "model", "call", "note")
RESULT = "result: "


def names_of(family):
    """The names of the models of a family, or none if it is not installed."""
    if family == "applications":
        from keras import applications

        return [n for n, _ in inspect.getmembers(applications, inspect.isfunction)]
    try:
        import keras_hub  # noqa: F401
    except ImportError:
        return []
    from backbones import BACKBONES

    return list(BACKBONES)


def build(family, name):
    """Builds a model with random weights."""
    import keras

    if family == "applications":
        size = next(size for start, size in SIZES.items() if start in name)
        application = getattr(keras.applications, name)
        # A softmax would hide changes.
        return application(
            weights=None, input_shape=(size, size, 3), classifier_activation=None
        )
    import keras_hub
    from backbones import BACKBONES

    return BACKBONES[name](keras_hub)


def input_shapes(family, name):
    """The shapes of inputs that have to be special, by their names."""
    if family == "applications":
        return {}
    from backbones import INPUT_SHAPES

    return INPUT_SHAPES.get(name, {})


def randomize(model, rng):
    """Gives weights that are constant at the start random values.

    A bias of 0 or a gamma of 1 could be scaled wrongly, and nobody would see it. What
    is positive, such as a variance, stays so.
    """
    from keras import ops

    for variable in model.weights:
        if not str(variable.dtype).startswith("float"):
            continue
        value = ops.convert_to_numpy(variable.value)
        if value.size and value.min() == value.max():
            # A layer scale of 1e-6 would hide the branch that it is for.
            if abs(value.flat[0]) < 1e-3:
                value = rng.normal(0, 0.1, value.shape)
            else:
                value = value * rng.uniform(0.8, 1.25, value.shape)
            variable.assign(value)


def random_inputs(model, rng, shapes):
    """Random inputs for a model: ids of tokens, masks of ones, images, positions.

    Args:
        model: A Functional `keras.Model`.
        rng: `numpy.random.Generator`.
        shapes: dict of tuples of ints, the shapes of inputs of some names.
    """
    import keras
    import numpy as np

    has_pixels = any(isinstance(x, keras.layers.Rescaling) for x in model.layers)

    def random_input(tensor):
        shape = tuple(8 if n is None else n for n in (2, *tensor.shape[1:]))
        shape = shapes.get(tensor.name, shape)
        if "mask" in tensor.name:
            value = np.ones(shape)
        elif "float" in tensor.dtype:
            value = rng.uniform(0, 255, shape) if has_pixels else rng.normal(size=shape)
        elif "position" in tensor.name:
            value = np.broadcast_to(np.arange(shape[-1]), shape)
        else:
            value = rng.integers(0, 2 if "segment" in tensor.name else 50, shape)
        return value.astype(tensor.dtype)

    return keras.tree.map_structure(random_input, model.input)


def outputs_of(model, inputs):
    """The outputs of a model at inference, each a float64 array."""
    import keras

    outputs = keras.tree.flatten(model(inputs, training=False))
    return [keras.ops.convert_to_numpy(x).astype("float64") for x in outputs]


def relative_change(before, after):
    """The largest change of an output, over the largest of its values."""
    import numpy as np

    changes = []
    for old, new in zip(before, after, strict=True):
        if not np.isfinite(old).all():
            raise ValueError("the outputs are not finite before anything is changed")
        if old.size:
            largest = np.abs(old).max()
            changes.append(np.abs(new - old).max() / (largest if largest else 1.0))
    return float(np.max(changes))


def free_scales(groups):
    """The number of scales that may be chosen."""
    return getattr(groups, "dimension", len(groups.free))


def random_factors(groups, rng):
    """Factors of kernels, by their names, that leave what the model computes."""
    if hasattr(groups, "random_factors"):
        return groups.random_factors(rng)
    scales = {group.index: math.exp(rng.normal()) for group in groups.free}
    return {
        edge.kernel.name: scales.get(edge.target, 1.0) / scales.get(edge.source, 1.0)
        for edge in groups.edges
    }


def measure(family, name):
    """Measures one model, in this process.

    Yields:
        Dict: the cells of the row that are known so far, the free scales first, and
        "note", the first error.
    """
    import numpy as np

    import keras_weissi as kw

    result = {"note": ""}
    rng = np.random.default_rng(0)

    def timed(function, *arguments):
        start = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            seconds = time.perf_counter() - start
            if seconds > result.get("seconds", 0.0):
                result.update(seconds=seconds, call=function.__name__)

    def make():
        model = build(family, name)
        result["weights"] = model.count_params()
        randomize(model, rng)
        return model

    def find():
        groups = timed(kw.scale_groups, model)
        result["free"] = free_scales(groups)
        return groups

    def shift_and_balance():
        inputs = random_inputs(model, rng, input_shapes(family, name))
        before = outputs_of(model, inputs)
        kw.shift_scales(model, random_factors(groups, rng))
        shifted = outputs_of(model, inputs)
        timed(kw.balance_scales, model)
        balanced = outputs_of(model, inputs)
        changes = [relative_change(before, after) for after in (shifted, balanced)]
        result["change"] = float(np.max(changes))  # which lets NaN through
        if result["change"] > SUSPICIOUS:
            result["note"] = compare_with_rounding(inputs)

    def compare_with_rounding(inputs):
        kw.shift_scales(model, random_factors(groups, rng))
        shifted = outputs_of(model, inputs)
        kw.balance_scales(model, exact=True)
        exact = relative_change(shifted, outputs_of(model, inputs))
        for variable in model.trainable_variables:
            rounding = 2.0**-23 * rng.choice([-1, 1], variable.shape)
            variable.assign(variable * np.float32(1 + rounding))
        rounded = relative_change(shifted, outputs_of(model, inputs))
        return (
            f"by {exact:.1g} with exact=True; its outputs change by {rounded:.1e} if "
            "each weight moves by a rounding error"
        )

    def regularize():
        result["kernels"] = len(timed(kw.regularize, model, kw.WEISSI(0.01)))

    def tried(job):
        try:
            return job()
        except Exception as error:
            result["note"] = result["note"] or _message(error)

    model = tried(make)
    yield result
    if model is not None:
        groups = tried(find)
        yield result
        tried(regularize)
        yield result
        if groups is not None:
            tried(shift_and_balance)
            yield result


def _message(error):
    # Keras prints some words in bold, and paragraphs.
    text = re.sub(r"\x1b\[\d+m", "", f"{type(error).__name__}: {error}")
    text = " ".join(text.split())
    return text if len(text) <= 200 else f"{text[:199]}…"


def measure_apart(family, name, timeout, *options):
    """Measures one model in a process of its own."""
    options = ("--family", family, "--measure", name, *options)
    command = [sys.executable, __file__, *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        output, note = done.stdout, f"exit code {done.returncode}"
        failed = done.returncode != 0
    except subprocess.TimeoutExpired as error:
        # Bytes, whatever was asked for.
        output, note = (error.stdout or b"").decode(), f"stopped after {timeout:g} s"
        failed = True
    rows = [
        json.loads(line.removeprefix(RESULT))
        for line in output.splitlines()
        if line.startswith(RESULT)
    ]
    result = rows[-1] if rows else {"note": ""}
    return result | {"note": result["note"] or note} if failed else result


def fingerprint():
    """What results depend on: the code of the package, Keras and the backend."""
    import keras

    import keras_weissi

    digest = hashlib.sha256(f"{keras.__version__} {keras.backend.backend()}".encode())
    package = pathlib.Path(keras_weissi.__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def results_of(jobs, path, timeout, anew, *options):
    """Measures what has not been measured yet; failures are tried again.

    Args:
        jobs: list of pairs of str, the family and the name of a model.
        path: Path of the file that the results are kept in.
        timeout: float, the seconds that a model may take.
        anew: Whether all are measured again.
        *options: str, of this script, for the process of each model.

    Returns:
        Dict from these pairs to the results.
    """
    from rich.progress import track

    path.parent.mkdir(parents=True, exist_ok=True)
    code, known = fingerprint(), {}
    for line in path.read_text().splitlines() if path.exists() else ():
        row = json.loads(line)
        if row["code"] == code:
            known[row["family"], row["model"]] = row
    for family, name in track(jobs, "measuring"):
        row = known.get((family, name))
        if row is None or row["note"] or anew:
            row = {"code": code, "family": family, "model": name}
            row |= measure_apart(family, name, timeout, *options)
            known[family, name] = row
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
    return {job: known[job] for job in jobs}


def table_of(results, before, without):
    """The table as Markdown, with what it comes to in front of it."""
    import keras

    rows = []
    for (family, name), row in results.items():
        cells = {
            "family": family,
            "model": name,
            "weights": _cell(row, "weights", ","),
            "kernels": _cell(row, "kernels"),
            "free before": _cell(before.get(family, {}), name),
            "free now": _cell(row, "free"),
            "output change": _cell(row, "change", ".1e"),
            "seconds": _cell(row, "seconds", ".2f"),
            "call": _cell(row, "call"),
            "note": row["note"].replace("|", "\\|"),
        }
        rows.append(f"| {' | '.join(cells[column] for column in COLUMNS)} |")
    lines = [
        "# The networks people have",
        "",
        "Made by `python benchmarks/networks.py` with Keras "
        f"{keras.__version__} on {keras.backend.backend()}. Weights are random, and "
        "the backbones of `keras_hub` small. *Free* counts the scales that may be "
        "chosen, before layers were seen through and now; *output change* is the "
        "largest relative change of an output (float32) after a random shift and after "
        "balancing; *seconds* is the longest of the first calls of `scale_groups`, "
        "`balance_scales` and `regularize`, and *call* is which.",
        "",
        *(f"- {line}" for line in _summary(results, before)),
        *["- keras_hub is left out: it is not installed."] * ("hub" in without),
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"| {' | '.join('---' if c in TEXTS else '---:' for c in COLUMNS)} |",
        *rows,
    ]
    return "\n".join(lines) + "\n"


def _cell(row, key, form=""):
    value = row.get(key)
    return "" if value is None else format(value, form)


def _summary(results, before):
    import numpy as np

    for family in sorted({family for family, _ in results}):
        rows = [row for (own, _), row in results.items() if own == family]
        free = sum(bool(row.get("free")) for row in rows)
        old = sum(bool(before.get(family, {}).get(row["model"])) for row in rows)
        yield f"{family}: {free} of {len(rows)} models have free scales ({old} before)."
    rows = list(results.values())
    changes = [row["change"] for row in rows if "change" in row]
    if changes:
        most = np.max([change for change in changes if change <= SUSPICIOUS])
        rest = len(changes) - sum(change <= SUSPICIOUS for change in changes)
        count = len(changes) - rest
        yield (
            f"{count} outputs change by at most {most:.1e}, {rest} by more: see the "
            "notes."
        )
    times = [row["seconds"] for row in rows if "call" in row and row["weights"] < 3e7]
    if times:
        slow = sum(seconds > LIMIT for seconds in times)
        yield (
            f"Below 30 million weights, {len(times) - slow} of {len(times)} take "
            f"at most {LIMIT} s for each call, and none over {max(times):.1f} s."
        )


def main():
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--family", choices=["applications", "hub"])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these anew")
    parser.add_argument("--quick", action="store_true", help=f"only {QUICK}")
    parser.add_argument("--before", action="store_true", help=f"write {BEFORE.name}")
    parser.add_argument("--timeout", type=float, default=120, help="s per model")
    parser.add_argument("--work", type=pathlib.Path, default="networks-out")
    parser.add_argument("--out", type=pathlib.Path, help="where the table goes")
    parser.add_argument("--measure", metavar="NAME", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for result in measure(arguments.family, arguments.measure):
                print(RESULT + json.dumps(result), flush=True)
                if arguments.before and "call" in result:
                    return
        return
    families = [arguments.family] if arguments.family else ["applications", "hub"]
    names = {family: names_of(family) for family in families}
    only = QUICK if arguments.quick else arguments.only
    jobs = [
        (family, name)
        for family, own in names.items()
        for name in own
        if only is None or name in only
    ]
    if not jobs:
        parser.error(f"no model of that name; there are {names}")
    before = json.loads(BEFORE.read_text()) if BEFORE.exists() else {}
    how = arguments.timeout, bool(arguments.only)
    if arguments.before:
        path = arguments.work / "before.jsonl"
        results = results_of(jobs, path, *how, "--before")
        for (family, name), row in results.items():
            before.setdefault(family, {})[name] = row.get("free")
        BEFORE.write_text(json.dumps(before, indent=2) + "\n")
        return
    results = results_of(jobs, arguments.work / "results.jsonl", *how)
    table = table_of(results, before, [f for f, own in names.items() if not own])
    out = arguments.out or (TABLE if only is None and len(families) == 2 else None)
    print(table)
    if out is not None:
        out.write_text(table)


if __name__ == "__main__":
    main()
