"""A callback for `fit` that logs the norms of the kernels."""

import os
import threading
from typing import Literal

import keras
import numpy as np

from keras_weissi._utils.backend import is_first_process
from keras_weissi._utils.keras_private import leave_fit, model_in_training
from keras_weissi._utils.user_warnings import WarnOnce
from keras_weissi._utils.validation import check_bool, invalid, is_count
from keras_weissi.callbacks.csv_file import write_csv
from keras_weissi.callbacks.norm_watcher import NormWatcher
from keras_weissi.callbacks.step_counter import StepCounter
from keras_weissi.model.selection import Layers, validate_selection


class NormLogger(keras.callbacks.ProgbarLogger):
    """Logs the norm of each kernel, their product, and the weight penalty.

    At the end of every epoch it adds to `logs`

    - `norm/<name>`: the Frobenius norm of each watched kernel `W_l`,
    - `norm_product`: `prod_l norm(W_l)`,
    - `log_norm_product`: `sum_l log(norm(W_l))`, which does not overflow,
    - `regularization_loss`: the sum of all weight penalties. `val_loss` contains it,
      so `val_loss - regularization_loss` is what the data contribute.

    They are in the `History` that `fit` returns, and in all callbacks that come after
    this one in `callbacks`, such as `CSVLogger`, `TensorBoard` and `EarlyStopping`.

    The logger is also the progress bar of `fit`, in place of Keras's own. It shows
    `log_norm_product` but not the single norms, so the line stays short. Of several
    processes that train together, only the first draws it.

    If a coefficient of a regularizer is changed in place, the logger follows at once.
    The compiled step of `fit` does not, until the model is compiled again.

    It warns if the `log_norm` of a classifier is half of `largest_log_norm` or more; of
    each kernel with `WEISSI` whose scale is normalized away by the layer after it; and
    once per kernel if its norm is not finite, or is at its floor, the `min_norm` of its
    `WEISSI` regularizer. Training continues.

    Args:
        layers: What to watch: names of layers (or of kernels or nested models), a
            class of layers, or a function from a layer to a bool. Defaults to `None`:
            the kernels with a `WEISSI` regularizer or, if there are none, all kernels.
        update_freq: `"epoch"`, or an int `n`: also records every `n` batches, in
            `record` only. On JAX, this turns off asynchronous dispatch. Defaults to
            `"epoch"`.
        progress_bar: bool. `False` if another `ProgbarLogger` in `callbacks` draws the
            progress bar. Defaults to `True`.

    Attributes:
        record: List of dicts, one for each measurement: the values above; `epoch`, the
            number of epochs completed; and `step`, the number of batches seen. It
            starts with the norms before the first step (on TensorFlow, only if the
            model is built by then), and continues in later calls of `fit`.

    Raises:
        ValueError: If an argument is invalid or, when `fit` begins, if `layers`
            matches no kernel.

    Examples:
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
        >>> [key for key in sorted(history.history) if "norm" in key]
        ['log_norm_product', 'norm/dense', 'norm_product']
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
        # Tells Keras that on JAX the batch hook, which only draws the bar, may run
        # while the next batch is computed, like the hook of Keras's own bar.
        self.async_safe = update_freq == "epoch"
        self._watcher = NormWatcher(layers)
        self._warn_once = WarnOnce()
        self._logged: dict[str, float] = {}
        self._is_first_epoch = False
        self._epoch = 0
        self._steps = StepCounter()
        self._thread: int | None = None

    def set_model(self, model):
        """Takes the model, and forgets all about another one."""
        if model is not model_in_training(self):
            self._watcher.let_go()
            self._warn_once = WarnOnce()
        super().set_model(model)
        self.set_params(self.params or {})  # a loop of the user's may pass none
        leave_fit(self)  # otherwise `evaluate` draws no bar

    def set_params(self, params):
        """Takes the parameters of the `fit`. Only the first process draws the bar."""
        params = {"verbose": 1, "epochs": 1, "steps": None, **params}
        super().set_params(params)
        self.params = params  # ProgbarLogger does not keep them
        if not (self.progress_bar and is_first_process()):
            self.verbose = 0

    def on_train_begin(self, logs=None):
        """Chooses the kernels to watch."""
        super().on_train_begin(logs)
        # An interrupted `fit` has left the batches of an epoch that did not end.
        self._steps.close_epoch()
        self._is_first_epoch = True
        self._thread = threading.get_ident()
        self._watcher.choose(self.model)

    def on_epoch_begin(self, epoch, logs=None):
        """Records the state before the first step, and starts the bar."""
        self._epoch = epoch
        if self._is_first_epoch and self._watcher.is_ready:
            row = self._row(self._measure())
            if not (self.record and _is_same(row, self.record[-1])):
                self.record.append(row)
        self._is_first_epoch = False
        super().on_epoch_begin(epoch, logs)

    def on_train_batch_end(self, batch, logs=None):
        """Counts batches, records every `update_freq` of them, moves the bar."""
        if not self._watcher.is_ready and threading.get_ident() == self._thread:
            self._watcher.choose(self.model, has_run=True)
        if self.update_freq == "epoch":
            self._count(batch)
        else:
            self._record_batch(batch)
        super().on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch, logs=None):
        """Measures, records, and adds the measurement to `logs`."""
        logs = {} if logs is None else logs
        if not self._watcher.is_ready:
            self._watcher.choose(self.model, has_run=True)
        measured = self._measure()
        self._epoch = epoch + 1
        row = self._row(measured)
        last = self.record[-1]["step"] if self.record else None
        if self._steps.is_in_epoch and last == row["step"]:
            # The last batch was recorded already, as one of an unfinished epoch.
            self.record.pop()
        self.record.append(row)
        self._steps.close_epoch()
        self._warn_of_taken(measured, logs)
        self._logged = measured
        logs.update(measured)
        # The bar prints numbers in full; the product alone may have 300 digits.
        hidden = measured.keys() - {"log_norm_product", "regularization_loss"}
        shown = {key: value for key, value in logs.items() if key not in hidden}
        super().on_epoch_end(epoch, shown)

    def to_csv(self, path: str | os.PathLike) -> None:
        """Writes `record` to a CSV file, one row for each measurement.

        An existing file is replaced atomically, and stays as it was if writing fails.

        Args:
            path: str or path-like, the file to write.

        Raises:
            ValueError: If nothing has been recorded yet.
            OSError: If the file cannot be written.
        """
        if not self.record:
            raise ValueError(
                "Nothing has been recorded yet. First call `fit` with this logger in "
                "`callbacks`."
            )
        write_csv(self.record, path)

    def _measure(self):
        # On JAX, `self.model` copies the state of training to the model.
        return self._watcher.measure(self.model)

    def _warn_of_taken(self, measured, logs):
        # Not of its own values, in a loop that passes the same dict every epoch.
        for key in measured.keys() & logs.keys():
            taken, own = logs[key], measured[key]
            is_same = taken == own or (taken != taken and own != own)  # or both NaN
            if not is_same and taken is not self._logged.get(key):
                self._warn_once(
                    "taken",
                    key,
                    f"NormLogger replaces {key!r} in `logs`, which a metric or another "
                    "callback has put there: give that another name.",
                )

    def _count(self, batch):
        together = getattr(model_in_training(self), "steps_per_execution", 1)
        self._steps.count(batch, together, self.params["steps"])

    def _record_batch(self, batch):
        if threading.get_ident() != self._thread:
            self._warn_once(
                "threads",
                "",
                "NormLogger(update_freq=...) cannot record batches, as Keras calls it "
                "from other threads unless it is in a list: pass callbacks=[logger].",
            )
            return
        before = self._steps.total
        self._count(batch)
        is_due = self._steps.total // self.update_freq > before // self.update_freq
        if is_due and self._watcher.is_ready:
            self.record.append(self._row(self._measure()))

    def _row(self, measured):
        return {"epoch": self._epoch, "step": self._steps.total, **measured}


def _is_same(row, other):
    """Whether two rows say the same. NaN is the same as NaN."""
    return row.keys() == other.keys() and np.array_equal(
        list(row.values()), [other[key] for key in row], equal_nan=True
    )
