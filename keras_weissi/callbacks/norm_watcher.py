"""What a logger watches: it chooses the kernels, measures them, and warns of them."""

import numpy as np

from keras_weissi._utils.user_warnings import Notices, listed, warn
from keras_weissi.callbacks.collapse import at_floor, outlooks
from keras_weissi.callbacks.norm_reader import make_norm_reader
from keras_weissi.model.kernels import kernels
from keras_weissi.model.selection import select_kernels
from keras_weissi.model.walk import layers_of
from keras_weissi.regularizers import WEISSI


class Watch:
    """Measures the kernels of a model that are to be watched.

    Args:
        layers: As for `NormLogger`.
    """

    def __init__(self, layers):
        self._layers = layers
        self._notices = Notices()
        self.let_go()

    def __getstate__(self):
        # What is compiled can be neither copied nor pickled, and is made again.
        return {"_layers": self._layers, "_notices": self._notices}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self.let_go()

    @property
    def is_ready(self):
        """Whether the kernels are chosen."""
        return self._read is not None

    def let_go(self):
        """Forgets the kernels of a model, so that it can be freed."""
        self._kernels = []
        self._penalties = []
        self._read = None
        self._read_key = None

    def choose(self, model, has_run=False):
        """Chooses the kernels of a model, if it has all that it will have by now.

        Args:
            model: The `keras.Model`, in training.
            has_run: bool. Whether there was a step: on TensorFlow, `fit` builds layers
                of unknown input shape in its first. Defaults to `False`.

        Raises:
            ValueError: If `layers` matches no kernel.
        """
        if not has_run and not all(layer.built for layer in layers_of(model)):
            return
        found = kernels(model)
        if self._layers is not None:
            self._kernels = select_kernels(found, self._layers)
        else:
            carriers = [k for k in found if isinstance(k.regularizer, WEISSI)]
            self._kernels = carriers or found
        if not self._kernels:
            warn(f"NormLogger found no kernel to watch in model {model.name!r}.")
        self._reader(model)
        for name, message in outlooks(model, found):
            self._notices.once("limit", name, message)

    def measure(self, model):
        """Returns a dict of what `NormLogger` adds to `logs`; warns of norms."""
        norms, penalty = self._reader(model)()
        self._warn(norms)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            log_product = float(np.sum(np.log(norms)))
            product = float(np.exp(log_product))
        measured = {
            f"norm/{kernel.name}": float(norm)
            for kernel, norm in zip(self._kernels, norms, strict=True)
        }
        measured["norm_product"] = product
        measured["log_norm_product"] = log_product
        measured["regularization_loss"] = penalty
        return measured

    def _reader(self, model):
        """Returns the reader, made anew if a callback has called `regularize`."""
        penalties = [(id(v), id(v.regularizer)) for v in model.trainable_variables]
        watched = (id(kernel.variable) for kernel in self._kernels)
        key = (model.run_eagerly, *watched, *penalties)
        if self._read is None or key != self._read_key:
            self._read = make_norm_reader(self._kernels, model)
            self._read_key = key
            # Held, so that no later regularizer is given the id of an earlier one.
            self._penalties = [v.regularizer for v in model.trainable_variables]
            self._notices.forget("limit", "floor")
        return self._read

    def _warn(self, norms):
        for kernel, norm in zip(self._kernels, norms, strict=True):
            if not np.isfinite(norm):
                self._notices.once(
                    "not finite",
                    kernel.name,
                    f"The norm of kernel {kernel.name!r} is no longer finite: {norm}.",
                )
        fallen = at_floor(self._kernels, norms)
        new = [
            message for name, message in fallen if self._notices.is_new("floor", name)
        ]
        if new:
            warn(
                f"Norms of kernels are at their floor: {listed(new)}. The layers are "
                "collapsing, which a smaller `log_norm` prevents, or were initialized "
                "too small."
            )
