"""Trains one small network on many devices, in every way that Keras 3 supports.

Copy the `train_...` function for your engine, and what it calls. On a machine without
accelerators the devices are virtual CPUs. Whatever the engine, the penalty is
counted once, `NormLogger` records one row per epoch, and the weights equal those of a
single device, up to rounding.

    python examples/distributed.py                                # what is installed
    python examples/distributed.py --engine model --devices 8     # JAX, kernels sharded
    python examples/distributed.py --engine ddp --out ddp-out     # PyTorch, 2 processes
"""

import os
import pathlib
import tempfile

import numpy as np
from common import choose_backend, make_folder, make_parser

BATCH = 64  # rows of a global batch; each device gets its share of them
EPOCHS = 5
RATE, MOMENTUM = 0.05, 0.9
DEFAULT_ENGINES = {"tensorflow": "mirrored", "jax": "data", "torch": "ddp"}


def make_data():
    """Returns 256 rows of 16 features, and labels from a random network."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 16)).astype("float32")
    hidden = np.maximum(x @ rng.normal(size=(16, 8)), 0.0)
    return x, (hidden @ rng.normal(size=(8, 4))).argmax(axis=1)


def make_model():
    """Returns the network, the same one every time."""
    import keras

    from keras_weissi import WEISSI

    keras.utils.set_random_seed(0)
    weissi = {"kernel_regularizer": WEISSI(0.05, direction_l1=0.001)}
    return keras.Sequential(
        [
            keras.Input((16,)),
            keras.layers.Dense(32, "relu", name="hidden_1", **weissi),
            keras.layers.Dense(32, "relu", name="hidden_2", **weissi),
            keras.layers.Dense(4, name="logits", **weissi),
        ],
        name="network",
    )


def compile_and_fit(model, out=None):
    """Trains with `fit`, which is the same for one device and for many."""
    import keras

    from keras_weissi import NormLogger

    model.compile(
        keras.optimizers.SGD(RATE, momentum=MOMENTUM),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    logger = NormLogger()
    callbacks = [logger]
    if out is not None:
        callbacks.append(keras.callbacks.CSVLogger(out / "log.csv"))
    x, y = make_data()
    # Not shuffled, so that all engines see the same batches.
    model.fit(x, y, BATCH, EPOCHS, verbose=2, callbacks=callbacks, shuffle=False)
    return logger


# One device, to compare with.


def train_single(devices, out=None):
    """Trains on one device."""
    model = make_model()
    logger = compile_and_fit(model, out)
    return report(model, logger, out)


# JAX: the batch is split, the weights are on every device.


def train_data(devices, out=None):
    """Trains with `keras.distribution.DataParallel`."""
    import keras

    distribution = keras.distribution.DataParallel(devices=jax_devices(devices))
    # Before the model is made, as it decides how the variables are laid out.
    keras.distribution.set_distribution(distribution)
    model = make_model()
    logger = compile_and_fit(model, out)
    return report(model, logger, out)


# JAX: the batch is split in two, and the kernels are sharded over the rest.


def train_model(devices, out=None):
    """Trains with `keras.distribution.ModelParallel`."""
    import keras

    rows = 2 if devices > 1 else 1
    mesh = keras.distribution.DeviceMesh(
        (rows, devices // rows), ("batch", "model"), jax_devices(devices)
    )
    # A pattern must match a whole path, such as "network/hidden_1/kernel". A variable
    # that no pattern matches is silently copied to every device.
    layout = keras.distribution.LayoutMap(mesh)
    layout[".*hidden_./kernel"] = (None, "model")
    layout[".*hidden_./bias"] = ("model",)
    layout[".*logits/kernel"] = ("model", None)
    # Before the model is made, as it decides how the variables are laid out.
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")
    )
    model = make_model()
    logger = compile_and_fit(model, out)
    # The norms are of whole kernels, though no device holds one.
    for layer in model.layers:
        shard = layer.kernel.value.addressable_shards[0].data.shape
        print(f"{layer.name}: kernel {layer.kernel.shape}, on each device {shard}")
    return report(model, logger, out)


# TensorFlow: the batch is split, the weights are on every device.


def train_mirrored(devices, out=None):
    """Trains with `tf.distribute.MirroredStrategy`."""
    import tensorflow as tf

    kind = "GPU" if len(tf.config.list_physical_devices("GPU")) >= devices else "CPU"
    if kind == "CPU":
        # Before anything is computed: afterwards, TensorFlow refuses.
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * devices,
        )
    strategy = tf.distribute.MirroredStrategy([f"{kind}:{i}" for i in range(devices)])
    with strategy.scope():
        model = make_model()
        logger = compile_and_fit(model, out)
    return report(model, logger, out)


# PyTorch: one process per device, each with the whole network and a part of the batch.


def train_ddp(devices, out=None):
    """Trains with `torch.nn.parallel.DistributedDataParallel`."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        torch.multiprocessing.spawn(ddp_process, (devices, folder, out), devices)
        with np.load(folder / "result.npz") as result:
            return dict(result)


def ddp_process(rank, devices, folder, out):
    """Runs in each process. The first process saves the result in a file."""
    import keras
    import torch
    import torch.distributed as dist

    from keras_weissi import NormLogger

    on_gpus = torch.cuda.device_count() >= devices
    if on_gpus:
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if on_gpus else "gloo",
        init_method=(folder / "meeting-point").as_uri(),
        rank=rank,
        world_size=devices,
    )
    model = make_model()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=MOMENTUM)
    criterion = torch.nn.CrossEntropyLoss()
    x, y = map(keras.ops.convert_to_tensor, make_data())
    steps = len(x) // BATCH

    # In every process, as all must measure alike; CSVLogger only where it should write.
    logger = NormLogger()
    callbacks = [logger]
    if rank == 0 and out is not None:
        callbacks.append(keras.callbacks.CSVLogger(out / "log.csv"))
    callbacks = keras.callbacks.CallbackList(
        callbacks, model=parallel, verbose=2, epochs=EPOCHS, steps=steps
    )

    callbacks.on_train_begin()
    for epoch in range(EPOCHS):
        callbacks.on_epoch_begin(epoch)
        total = 0.0
        for step in range(steps):
            own = slice(step * BATCH + rank, (step + 1) * BATCH, devices)
            # DDP takes the mean of the gradients over the processes, so each adds the
            # whole penalty. Without this line there is none.
            loss = criterion(parallel(x[own]), y[own]) + sum(model.losses)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
            callbacks.on_train_batch_end(step)
        dist.all_reduce(total)
        callbacks.on_epoch_end(epoch, {"loss": float(total) / (steps * devices)})
    callbacks.on_train_end()

    if rank == 0:
        np.savez(folder / "result.npz", **report(model, logger, out))
    dist.destroy_process_group()


def jax_devices(count):
    """Returns the names of that many devices."""
    import keras

    devices = keras.distribution.list_devices()
    if len(devices) < count:
        raise SystemExit(
            f"--devices {count}: JAX has only {len(devices)}, {devices}. With "
            "JAX_PLATFORMS=cpu they are virtual."
        )
    return devices[:count]


def report(model, logger, out):
    """Prints the norms and the penalty, saves the record, and returns the arrays."""
    import keras

    from keras_weissi import norm_table

    norm_table(model)
    if out is not None:
        logger.to_csv(out / "norms.csv")
    last = logger.record[-1]
    print(f"penalty: {last['regularization_loss']:.6f}")
    result = {v.path: keras.ops.convert_to_numpy(v.value) for v in model.weights}
    for key, value in last.items():
        result[key] = np.array(value)
    result["penalty"] = np.array(
        sum(float(keras.ops.convert_to_numpy(loss)) for loss in model.losses)
    )
    result["rows"] = np.array(len(logger.record))
    return result


ENGINES = {  # and the backend that each needs
    "single": (train_single, None),
    "data": (train_data, "jax"),
    "model": (train_model, "jax"),
    "mirrored": (train_mirrored, "tensorflow"),
    "ddp": (train_ddp, "torch"),
}


def parse_arguments():
    """Reads the command line; a bad value ends the program with one line."""
    parser = make_parser(__doc__)
    parser.epilog = (
        "KERAS_BACKEND chooses the backend. If it is not set, the engine does, or else "
        "Keras's configuration. If that one is not installed, another is taken."
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        help="data, model: JAX DataParallel and ModelParallel; mirrored: TensorFlow "
        "MirroredStrategy; ddp: PyTorch DistributedDataParallel; single: one device, "
        "any backend (default: mirrored, data or ddp, by the backend)",
    )
    parser.add_argument(
        "--devices",
        type=int,
        help=f"how many, a divisor of {BATCH}, the batch size (default: 4; for ddp, "
        "where each is a process, 2; for single, 1)",
    )
    arguments = parser.parse_args()
    backend = os.environ.get("KERAS_BACKEND")
    needed = ENGINES[arguments.engine][1] if arguments.engine else None
    if needed and backend not in (None, needed):
        parser.error(
            f"argument --engine: expected one for KERAS_BACKEND={backend}, got "
            f"{arguments.engine}, which needs {needed}"
        )
    backend = choose_backend(parser, needed)
    arguments.engine = arguments.engine or DEFAULT_ENGINES[backend]
    if arguments.devices is None:
        arguments.devices = {"single": 1, "ddp": 2}.get(arguments.engine, 4)
    if arguments.devices < 1 or BATCH % arguments.devices:
        parser.error(
            f"argument --devices: expected a divisor of {BATCH}, got "
            f"{arguments.devices}"
        )
    if arguments.engine == "single" and arguments.devices > 1:
        parser.error(f"argument --devices: expected 1, got {arguments.devices}")
    if arguments.out is not None:
        make_folder(parser, arguments.out)
    return arguments


def main():
    """Runs the example."""
    arguments = parse_arguments()
    train, backend = ENGINES[arguments.engine]
    if backend == "jax":
        # Before JAX is imported. It has no effect on GPUs and TPUs.
        flag = f"--xla_force_host_platform_device_count={arguments.devices}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    how = train.__doc__.splitlines()[0].rstrip(".").replace("`", "")
    print(f"{how}, on {arguments.devices} device(s), by {os.environ['KERAS_BACKEND']}.")
    result = train(arguments.devices, arguments.out)
    if arguments.out is not None:
        np.savez(arguments.out / "result.npz", **result)
        print(f"In {arguments.out}: result.npz, norms.csv, log.csv")
    print(
        "Compare the norms and the penalty with those of --engine single: they are the "
        "same, up to rounding."
    )


if __name__ == "__main__":
    main()
