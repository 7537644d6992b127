"""A callback for `fit` that shows the norms of the kernels."""

import os
import threading
import warnings
from collections.abc import Callable
from typing import Literal

import keras
import numpy as np

from keras_weissi.collapse import at_floor, outlooks
from keras_weissi.norms import Kernel, kernels
from keras_weissi.private import model_in_training
from keras_weissi.readers import make_norm_reader
from keras_weissi.regularizers import WEISSI
from keras_weissi.selection import Layers, select_kernels, validate_selection
from keras_weissi.steps import StepCounter
from keras_weissi.tables import write_csv
from keras_weissi.validation import check_bool, invalid, is_count


class NormLogger(keras.callbacks.ProgbarLogger):
    """Logs the norm of each kernel, their product, and the weight penalty.

    At the end of every epoch it adds to `logs`

    - `norm/<name>`: the Frobenius norm of each watched kernel `W_l`,
    - `norm_product`: `prod_l norm(W_l)`, in float64,
    - `log_norm_product`: `sum_l log(norm(W_l))`, which neither over- nor underflows,
    - `regularization_loss`: the sum of all weight penalties at the end of the epoch.
      `val_loss` contains it, so `val_loss - regularization_loss` is what the data
      contribute; `loss` contains its mean over the epoch.

    History gets them by itself. `CSVLogger`, `TensorBoard`, `EarlyStopping`,
    `ModelCheckpoint` and other callbacks that read `logs` get them if they stand
    after this one in `callbacks`; those that add to `logs`, such as
    `LearningRateScheduler`, are best put before it.

    It is also the progress bar of the `fit`: it takes the place of the one that Keras
    adds, and leaves the norms and their product out, so that a line stays short
    however many layers there are.

    A measurement is computed on the device, and brought over in one transfer. A
    warning names each kernel whose norm falls to the `min_norm` of its regularizer or
    stops being finite, once; training goes on.

    Args:
        layers: What to watch: names of layers (of kernels, or of nested models), a
            class of layers, or a function from a layer to a bool. Defaults to `None`:
            the kernels that carry a `WEISSI` regularizer or, if there are none, all
            kernels, so that a baseline can be compared.
        update_freq: `"epoch"`, or an int: also records every so many batches, in
            `record` alone. That reads the state of the model between batches, which
            on JAX ends its asynchronous dispatch. Defaults to `"epoch"`.
        progress_bar: bool. `False` if another `ProgbarLogger` in `callbacks` does
            the drawing: Keras adds none of its own in either case. Defaults to `True`.

    Attributes:
        record: List of dicts, one a measurement, that starts with the norms before
            the first step (if the model is built by then) and goes on through later
            calls of `fit`. Its keys are those above and `epoch`, the number of epochs
            completed (`initial_epoch` counted in), and `step`, the number of batches
            that the logger has seen. With `steps_per_execution` and data of unknown
            length, an epoch counts as whole executions.

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
    >>> sorted(history.history)
    ['log_norm_product', 'loss', 'norm/dense', 'norm_product', 'regularization_loss']
    >>> [row["epoch"] for row in logger.record]
    [0, 1, 2]
    """

    def __init__(
        self,
        layers: Layers | None = None,
        update_freq: int | Literal["epoch"] = "epoch",
        progress_bar: bool = True,
    ) -> None:
        super().__init__()
        if layers is not None:
            validate_selection(layers)
        is_epoch = isinstance(update_freq, str) and update_freq == "epoch"
        if not (is_epoch or is_count(update_freq)):
            raise invalid("update_freq", "'epoch' or a positive int", update_freq)
        check_bool(progress_bar, "progress_bar")
        self.layers = layers
        self.update_freq = update_freq
        self.progress_bar = progress_bar
        self.record: list[dict[str, float]] = []
        # Tells Keras that the batch hook, which draws the bar, may run on JAX while
        # the next batch is computed, as that of its own bar does.
        self.async_safe = update_freq == "epoch"
        self._watched: list[Kernel] = []
        self._read: Callable | None = None
        self._read_key: tuple | None = None
        self._penalties: list = []
        self._warned: set[tuple[str, str]] = set()
        self._is_first_epoch = False
        self._epoch = 0
        self._steps = StepCounter()
        self._thread: int | None = None

    def __getstate__(self):
        # What is compiled can be neither copied nor pickled, and is made again.
        left_out: dict = {
            "_watched": [],
            "_read": None,
            "_read_key": None,
            "_penalties": [],
        }
        return {**self.__dict__, **left_out}

    def set_model(self, model):
        """Takes the model of the `fit`, and lets go of the kernels of another."""
        if model is not model_in_training(self):
            self._watched, self._penalties = [], []
            self._read = self._read_key = None
        super().set_model(model)

    def set_params(self, params):
        """Takes the parameters of the `fit`; `verbose` is for the bar."""
        super().set_params(params)
        self.params = params  # which ProgbarLogger does not keep
        if not self.progress_bar:
            self.verbose = 0

    def on_train_begin(self, logs=None):
        """Chooses the kernels to watch, if the model has them by now."""
        super().on_train_begin(logs)
        # An interrupted `fit` has left batches of an epoch that never ended.
        self._steps.close_epoch()
        self._is_first_epoch = True
        self._thread = threading.get_ident()
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
        if self._read is None and threading.get_ident() == self._thread:
            self._prepare()
        if self.update_freq == "epoch":
            self._count(batch)
        else:
            self._record_batch(batch)
        super().on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch, logs=None):
        """Measures, records, and adds the measurement to `logs`."""
        logs = {} if logs is None else logs
        if self._read is None:
            self._prepare(last_chance=True)
        measured = self._measure()
        self._epoch = epoch + 1
        row = self._row(measured)
        last = self.record[-1]["step"] if self.record else None
        if self._steps.is_in_epoch and last == row["step"]:
            # The last batch was recorded already, as one of an unfinished epoch.
            self.record.pop()
        self.record.append(row)
        self._steps.close_epoch()
        logs.update(measured)
        # The bar prints numbers in full; the product alone may have 300 digits.
        super().on_epoch_end(
            epoch,
            {
                key: value
                for key, value in logs.items()
                if not key.startswith("norm/") and key != "norm_product"
            },
        )

    def to_csv(self, path: str | os.PathLike) -> None:
        """Writes `record` to a CSV file, a row for each measurement.

        The file is replaced in one go: if writing fails, an old one is left whole.

        Args:
            path: str or path-like, the file to write.

        Raises:
            ValueError: If nothing has been recorded yet.
            OSError: If the file cannot be written.
        """
        if not self.record:
            raise ValueError(
                "There is nothing to write yet. Expected the logger to be among the "
                "`callbacks` of a `fit` before."
            )
        write_csv(self.record, path)

    def _prepare(self, last_chance=False):
        model = self.model
        found = kernels(model)
        # On TensorFlow, `fit` builds a model of unknown input shape in its first step.
        if not found and not last_chance:
            return
        if self.layers is not None:
            self._watched = select_kernels(found, self.layers)
        else:
            carriers = [k for k in found if isinstance(k.regularizer, WEISSI)]
            self._watched = carriers or found
        if not self._watched:
            warnings.warn(
                f"NormLogger found no kernel to watch in model {model.name!r}.",
                stacklevel=2,
            )
        key = self._key(model)
        if self._read is None or key != self._read_key:
            self._read = make_norm_reader(self._watched, model)
            self._read_key = key
            # Held, so that no later regularizer is given the id of an earlier one.
            self._penalties = [v.regularizer for v in model.trainable_variables]
            self._warned.clear()
        for name, message in outlooks(model, found):
            self._warn_once("limit", name, message)

    def _key(self, model):
        """What the compiled reader depends on."""
        penalties = ((id(v), id(v.regularizer)) for v in model.trainable_variables)
        return (model.run_eagerly, *(id(k.variable) for k in self._watched), *penalties)

    def _measure(self):
        model = self.model  # on JAX, brings the state of training to the model
        if self._key(model) != self._read_key:
            self._prepare()  # a callback may have called `regularize`
        assert self._read is not None  # made in the first step at the latest
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

    def _count(self, batch):
        together = getattr(model_in_training(self), "steps_per_execution", 1)
        self._steps.count(batch, together, self.params.get("steps"))

    def _record_batch(self, batch):
        if threading.get_ident() != self._thread:
            self._warn_once(
                "threads",
                "",
                "NormLogger(update_freq=...) cannot record batches when it is not in a "
                "list: pass callbacks=[logger], or Keras calls it from other threads.",
            )
            return
        before = self._steps.total
        self._count(batch)
        is_due = self._steps.total // self.update_freq > before // self.update_freq
        if is_due and self._read is not None:
            self.record.append(self._row(self._measure()))

    def _row(self, measured):
        return {"epoch": self._epoch, "step": self._steps.total, **measured}

    def _warn(self, norms):
        for kernel, norm in zip(self._watched, norms, strict=True):
            if not np.isfinite(norm):
                self._warn_once(
                    "not finite",
                    kernel.name,
                    f"The norm of kernel {kernel.name!r} is no longer finite: {norm}.",
                )
        fallen = at_floor(self._watched, norms)
        new = [
            message for name, message in fallen if ("floor", name) not in self._warned
        ]
        self._warned.update(("floor", name) for name, _ in fallen)
        if new:
            more = f"; and {len(new) - 3} more" if len(new) > 3 else ""
            warnings.warn(
                f"Norms of kernels are at their floor: {'; '.join(new[:3])}{more}. "
                "The layers are collapsing, which a smaller `log_norm` prevents, or "
                "were initialized too small.",
                stacklevel=2,
            )

    def _warn_once(self, what, name, message):
        if (what, name) not in self._warned:
            self._warned.add((what, name))
            warnings.warn(message, stacklevel=2)
