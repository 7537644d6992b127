"""A callback for `fit` that shows the norms of the kernels."""

import os
import threading
from typing import Literal

import keras

from keras_weissi._utils.backend import is_first_process, of_first_process
from keras_weissi._utils.keras_private import model_in_training
from keras_weissi._utils.user_warnings import Notices, warn
from keras_weissi._utils.validation import check_bool, invalid, is_count
from keras_weissi.callbacks.norm_watcher import Watch
from keras_weissi.callbacks.record import (
    RecordFile,
    is_same,
    read_csv,
    resume,
    write_csv,
)
from keras_weissi.callbacks.step_counter import StepCounter
from keras_weissi.model.selection import Layers, validate_selection


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

    Of several processes that train together, by `torch.distributed` or
    `keras.distribution`, each takes the measurement, but the first alone draws the bar
    and writes the file.

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
        filename: str or path-like: a CSV file that `record` is kept in, saved at the
            end of every epoch and, with an int as `update_freq`, in between. If it
            cannot be written, because the disk is full for one, a warning says so, what
            is in it stays as it is, training goes on, and the next time all is saved.
            A row of a batch is saved with the row after it. Every logger needs a file
            of its own. Defaults to `None`: no file.
        append: bool. Whether to go on with the `record`, of this logger or in a file
            that exists, where a training is resumed with `initial_epoch` or with
            `BackupAndRestore`, which has to stand before this in `callbacks`. Rows of
            epochs that are done once more are replaced; a training that starts from
            epoch 0 is another, whose rows follow. Defaults to `False`: a file that
            exists is replaced when the training begins.

    Attributes:
        record: List of dicts, one a measurement, that starts with the norms before
            the first step (if the model is built by then) and goes on through later
            calls of `fit`. Its keys are those above and `epoch`, the number of epochs
            completed (`initial_epoch` counted in), and `step`, the number of batches
            that the logger has seen. With `steps_per_execution` and data of unknown
            length, an epoch counts as whole executions.

    Raises:
        ValueError: If an argument is invalid or, when `fit` begins, if `layers`
            matches no kernel, or if the file to go on with holds something else.
        OSError: When `fit` begins, if the file to go on with cannot be read.

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
        filename: str | os.PathLike | None = None,
        append: bool = False,
    ) -> None:
        super().__init__()
        if layers is not None:
            validate_selection(layers)
        is_epoch = isinstance(update_freq, str) and update_freq == "epoch"
        if not (is_epoch or is_count(update_freq)):
            raise invalid("update_freq", "'epoch' or a positive int", update_freq)
        check_bool(progress_bar, "progress_bar")
        is_path = isinstance(filename, (str, os.PathLike)) and os.fspath(filename)
        if not (filename is None or is_path):
            raise invalid("filename", "a path, or None", filename)
        check_bool(append, "append")
        if append and filename is None:
            raise invalid("append", "False, as there is no `filename`", append)
        self.layers = layers
        self.update_freq = update_freq
        self.progress_bar = progress_bar
        self.filename = filename
        self.append = append
        self.record: list[dict[str, float]] = []
        # Tells Keras that the batch hook, which draws the bar, may run on JAX while
        # the next batch is computed, as that of its own bar does.
        self.async_safe = update_freq == "epoch"
        self._watch = Watch(layers)
        self._notices = Notices()
        self._file = None if filename is None else RecordFile(filename)
        self._is_first_epoch = False
        self._epoch = 0
        self._steps = StepCounter()
        self._thread: int | None = None

    def set_model(self, model):
        """Takes the model of the `fit`, and lets go of the kernels of another."""
        if model is not model_in_training(self):
            self._watch.let_go()
        super().set_model(model)

    def set_params(self, params):
        """Takes the parameters of the `fit`; `verbose` is for the bar."""
        super().set_params(params)
        self.params = params  # which ProgbarLogger does not keep
        if not (self.progress_bar and is_first_process()):
            self.verbose = 0

    def on_train_begin(self, logs=None):
        """Chooses the kernels to watch, and reads the file to go on with."""
        super().on_train_begin(logs)
        # An interrupted `fit` has left batches of an epoch that never ended.
        self._steps.close_epoch()
        self._is_first_epoch = True
        self._thread = threading.get_ident()
        self._watch.choose(self.model)
        is_new = self.append and not self.record
        if is_new and self._file is not None and os.path.exists(self._file.path):
            self.record += read_csv(self._file.path, "filename")

    def on_epoch_begin(self, epoch, logs=None):
        """Records the state before the first step, and starts the bar."""
        self._epoch = epoch
        if self._is_first_epoch:
            self._record_start(epoch)
            self._save()
        self._is_first_epoch = False
        super().on_epoch_begin(epoch, logs)

    def on_train_batch_end(self, batch, logs=None):
        """Counts batches, records every `update_freq` of them, moves the bar."""
        if not self._watch.is_ready and threading.get_ident() == self._thread:
            self._watch.choose(self.model, has_run=True)
        if self.update_freq == "epoch":
            self._count(batch)
        else:
            self._record_batch(batch)
        super().on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch, logs=None):
        """Measures, records, and adds the measurement to `logs`."""
        logs = {} if logs is None else logs
        if not self._watch.is_ready:
            self._watch.choose(self.model, has_run=True)
        measured = self._measure()
        self._epoch = epoch + 1
        row = self._row(measured)
        last = self.record[-1]["step"] if self.record else None
        if self._steps.is_in_epoch and last == row["step"]:
            # The last batch was recorded already, as one of an unfinished epoch.
            self.record.pop()
        self.record.append(row)
        self._save()
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

    def on_train_end(self, logs=None):
        """Saves what could not be saved before, or says that it is missing."""
        super().on_train_end(logs)
        self._save(has_ended=True)

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

    def _measure(self):
        # On JAX, `self.model` brings the state of training to the model.
        return self._watch.measure(self.model)

    def _record_start(self, epoch):
        if self.append:
            self._resume(epoch)
        if not self._watch.is_ready:
            return
        row = self._row(self._measure())
        last = self.record[-1] if self.record else row
        if self.append and last.keys() != row.keys():
            warn(
                f"The record in {self.filename} is of other kernels, or of another "
                f"model: it has {_norms_in(last)}, and now come {_norms_in(row)}."
            )
        if not (self.record and is_same(last, row)):
            self.record.append(row)

    def _resume(self, epoch):
        """Goes on with the record where the training does."""
        steps = self.params.get("steps")
        self.record[:], total, lack = resume(self.record, epoch, steps)
        # Other processes may not see the file, and have to record the same batches.
        self._steps = StepCounter(of_first_process(total))
        if lack:
            warn(f"The record in {self.filename} {lack}.")

    def _save(self, has_ended=False):
        if self._file is None or not self.record or not is_first_process():
            return
        try:
            self._file.save(self.record)
        except OSError as error:
            if has_ended:
                warn(
                    f"The file of NormLogger lacks a part of its record: {error}. "
                    "`to_csv` writes all of it to another."
                )
                return
            self._notices.once(
                "file",
                "",
                f"NormLogger could not save its record, and training goes on: {error}. "
                "What is missing in the file is saved as soon as it can be.",
            )
        else:
            self._notices.forget("file")

    def _count(self, batch):
        together = getattr(model_in_training(self), "steps_per_execution", 1)
        self._steps.count(batch, together, self.params.get("steps"))

    def _record_batch(self, batch):
        if threading.get_ident() != self._thread:
            self._notices.once(
                "threads",
                "",
                "NormLogger(update_freq=...) cannot record batches when it is not in a "
                "list: pass callbacks=[logger], or Keras calls it from other threads.",
            )
            return
        before = self._steps.total
        self._count(batch)
        is_due = self._steps.total // self.update_freq > before // self.update_freq
        if is_due and self._watch.is_ready:
            # Not yet this row: if the epoch ends here, another takes its place.
            self._save()
            self.record.append(self._row(self._measure()))

    def _row(self, measured):
        return {"epoch": self._epoch, "step": self._steps.total, **measured}


def _norms_in(row):
    return [key for key in row if key.startswith("norm/")]
