"""Callbacks that show, during `fit`, what the regularizer does to the weights."""

import csv
import os
import tempfile
import warnings

import keras
import numpy as np

from keras_weissi.norms import kernels, make_norm_reader, select_kernels
from keras_weissi.regularizers import WEISSI


class NormLogger(keras.callbacks.ProgbarLogger):
    """Logs the norm of each kernel, their product, and the weight penalty.

    At the end of every epoch it adds to `logs`

    - `norm/<name>`: the Frobenius norm of each watched kernel `W_l`,
    - `norm_product`: `prod_l norm(W_l)`, in float64,
    - `log_norm_product`: `sum_l log(norm(W_l))`, which neither over- nor underflows,
    - `regularization_loss`: the sum of all weight penalties. `loss` and `val_loss`
      both contain it, so `loss - regularization_loss` is what the data contribute.

    History gets them by itself. `CSVLogger`, `TensorBoard`, `EarlyStopping`,
    `ModelCheckpoint` and other callbacks that read `logs` get them if they stand
    after this one in `callbacks`; those that add to `logs`, such as
    `LearningRateScheduler`, are best put before it.

    It is also the progress bar of the `fit`: it takes the place of the one that Keras
    adds and leaves the norms of the single kernels out, so that a line stays short
    however many layers there are.

    A measurement is computed on the device, and brought over in one transfer. A
    warning names each kernel whose norm falls to the `min_norm` of its regularizer or
    stops being finite, once; training goes on.

    Args:
        layers: What to watch: names of layers (of kernels, or of nested models), or a
            function from a layer to a bool. Defaults to `None`: the kernels that
            carry a `WEISSI` regularizer or, if there are none, all kernels, so that
            a baseline can be compared.
        update_freq: `"epoch"`, or an int: also records every so many batches, in
            `record` alone. That reads the state of the model between batches, which
            on JAX ends its asynchronous dispatch. Defaults to `"epoch"`.
        progress_bar: bool. `False` if another `ProgbarLogger` in `callbacks` does
            the drawing. Defaults to `True`.

    Attributes:
        record: List of dicts, one a measurement, that starts with the norms before
            the first step (if the model is built by then) and goes on through later
            calls of `fit`. Its keys are those above and `epoch`, the number of epochs
            completed (`initial_epoch` counted in), and `step`, the number of batches
            that the logger has seen.

    Raises:
        ValueError: If an argument is invalid or, when `fit` begins, if `layers`
            matches no kernel.

    Example:

    >>> import keras, numpy as np
    >>> from keras_weissi import WEISSI, NormLogger
    >>> model = keras.Sequential([
    ...     keras.Input((3,)),
    ...     keras.layers.Dense(1, kernel_regularizer=WEISSI(0.01), name="dense"),
    ... ])
    >>> model.compile("sgd", "mse")
    >>> logger = NormLogger()
    >>> x = np.ones((8, 3), "float32")
    >>> history = model.fit(x, x[:, :1], epochs=2, verbose=0, callbacks=[logger])
    >>> sorted(history.history)[1:]
    ['loss', 'norm/dense', 'norm_product', 'regularization_loss']
    >>> [row["epoch"] for row in logger.record]
    [0, 1, 2]
    """

    def __init__(self, layers=None, update_freq="epoch", progress_bar=True):
        super().__init__()
        if not (layers is None or callable(layers) or _is_names(layers)):
            raise ValueError(
                "Invalid value for argument `layers`. Expected None, a name, a "
                f"non-empty list of names, or a function. Received: layers={layers!r}"
            )
        is_count = isinstance(update_freq, int) and not isinstance(update_freq, bool)
        if update_freq != "epoch" and not (is_count and update_freq > 0):
            raise ValueError(
                "Invalid value for argument `update_freq`. Expected 'epoch' or a "
                f"positive int. Received: update_freq={update_freq!r}"
            )
        self.layers = layers
        self.update_freq = update_freq
        self.progress_bar = bool(progress_bar)
        self.record = []
        # Tells Keras that the batch hook, which draws the bar, may run on JAX while
        # the next batch is computed, as that of its own bar does.
        self.async_safe = update_freq == "epoch"
        self._watched = []
        self._read = None
        self._warned = set()
        self._epoch = 0
        self._steps_before_epoch = 0
        self._batches_done = []

    def set_params(self, params):
        """Takes the parameters of the `fit`; `verbose` is for the bar."""
        super().set_params(params)
        self.params = params
        if not self.progress_bar:
            self.verbose = 0

    def on_train_begin(self, logs=None):
        """Chooses the kernels to watch, if the model is built."""
        super().on_train_begin(logs)
        self._read = None
        self._is_first_epoch = True
        self._prepare()

    def on_epoch_begin(self, epoch, logs=None):
        """Records the state before the first step, and starts the bar."""
        self._epoch = epoch
        if self._is_first_epoch and self._read is not None:
            row = self._row(self._measure())
            if not self.record or self.record[-1] != row:
                self.record.append(row)
        self._is_first_epoch = False
        super().on_epoch_begin(epoch, logs)

    def on_train_batch_end(self, batch, logs=None):
        """Counts batches, records every `update_freq` of them, moves the bar."""
        if self._read is None:
            self._prepare()
        step_before = self._step()
        # Keras may call this from several threads, where only `append` is safe; and
        # `batch` makes jumps under `steps_per_execution`.
        self._batches_done.append(batch + 1)
        if self.update_freq != "epoch":
            if self._step() // self.update_freq > step_before // self.update_freq:
                self.record.append(self._row(self._measure()))
        super().on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch, logs=None):
        """Measures, records, and adds the measurement to `logs`."""
        logs = {} if logs is None else logs
        measured = self._measure()
        self._epoch = epoch + 1
        row = self._row(measured)
        last = self.record[-1]["step"] if self.record else None
        if self._batches_done and last == row["step"]:
            # The last batch was recorded already, as one of an unfinished epoch.
            self.record.pop()
        self.record.append(row)
        self._steps_before_epoch = row["step"]
        self._batches_done = []
        logs.update(measured)
        super().on_epoch_end(epoch, _shown_in_bar(logs))

    def to_csv(self, path):
        """Writes `record` to a CSV file, a row for each measurement.

        The file is replaced in one go: if writing fails, an old one is left whole.

        Args:
            path: str or path-like, the file to write.
        """
        columns = list(dict.fromkeys(key for row in self.record for key in row))
        path = os.fspath(path)
        handle, temporary = tempfile.mkstemp(
            suffix=".csv", dir=os.path.dirname(path) or "."
        )
        try:
            with open(handle, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns or ["epoch", "step"])
                writer.writeheader()
                writer.writerows(self.record)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise

    def _prepare(self):
        # On TensorFlow, `fit` builds a model of unknown input shape in its first step.
        if not self.model.built:
            return
        found = kernels(self.model)
        if self.layers is not None:
            self._watched = select_kernels(found, self.layers)
        else:
            carriers = [k for k in found if isinstance(k.regularizer, WEISSI)]
            self._watched = carriers or found
        if not self._watched:
            warnings.warn(
                f"NormLogger found no kernel to watch in model {self.model.name!r}.",
                stacklevel=2,
            )
        self._read = make_norm_reader(self._watched, self.model)

    def _measure(self):
        self.model  # noqa: B018 - on JAX, brings the state of training to the model
        norms, penalty = self._read()
        self._warn(norms)
        with np.errstate(divide="ignore", over="ignore"):
            log_product = float(np.sum(np.log(norms)))
            product = float(np.exp(log_product))
        measured = {
            f"norm/{kernel.name}": float(norm)
            for kernel, norm in zip(self._watched, norms, strict=True)
        }
        measured["norm_product"] = product
        measured["log_norm_product"] = log_product
        measured["regularization_loss"] = penalty
        return measured

    def _step(self):
        return self._steps_before_epoch + max(self._batches_done, default=0)

    def _row(self, measured):
        return {"epoch": self._epoch, "step": self._step(), **measured}

    def _warn(self, norms):
        for kernel, norm in zip(self._watched, norms, strict=True):
            regularizer = kernel.regularizer
            if not np.isfinite(norm):
                self._warn_once(
                    "not finite",
                    kernel,
                    f"The norm of kernel {kernel.name!r} is no longer finite: {norm}.",
                )
            elif isinstance(regularizer, WEISSI) and norm <= regularizer.min_norm:
                self._warn_once(
                    "at the floor",
                    kernel,
                    f"The norm of kernel {kernel.name!r} has fallen to {norm:.3g}, "
                    f"not above min_norm={regularizer.min_norm:g} of its regularizer: "
                    "the layer is collapsing. A smaller `log_norm` lets it live.",
                )

    def _warn_once(self, what, kernel, message):
        if (what, kernel.name) not in self._warned:
            self._warned.add((what, kernel.name))
            warnings.warn(message, stacklevel=2)


def _shown_in_bar(logs):
    shown = {k: v for k, v in logs.items() if not k.startswith("norm/")}
    # The bar prints numbers in full, and this one may have 300 digits. Its logarithm
    # stands beside it.
    if not logs["norm_product"] < 1e6:
        del shown["norm_product"]
    return shown


def _is_names(layers):
    if isinstance(layers, str):
        return True
    return (
        isinstance(layers, (list, tuple, set))
        and bool(layers)
        and all(isinstance(name, str) for name in layers)
    )
