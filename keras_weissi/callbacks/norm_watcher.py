"""Chooses the kernels that a logger watches, measures them, and warns of them."""

import numbers

import keras
import numpy as np

from keras_weissi._utils.user_warnings import WarnOnce, listed, warn
from keras_weissi.callbacks.collapse import coefficient_warning, kernels_at_floor
from keras_weissi.callbacks.norm_reader import make_norm_reader
from keras_weissi.model.graph import Graph
from keras_weissi.model.kernels import kernels, kernels_and_gammas
from keras_weissi.model.selection import names_in, select_kernels
from keras_weissi.model.walk import layers_of
from keras_weissi.regularizers import WEISSI

# Compared by value; all else by identity.
_PLAIN = (type(None), str, bytes, numbers.Real)


class NormWatcher:
    """Measures the norms of the watched kernels of a model.

    Args:
        layers: As for `NormLogger`.
    """

    def __init__(self, layers):
        self._layers = layers
        self.let_go()

    def __getstate__(self):
        # A compiled function can be neither copied nor pickled, and is made again.
        return {"layers": self._layers}

    def __setstate__(self, state):
        self._layers = state["layers"]
        self.let_go()

    @property
    def is_ready(self):
        """Whether the kernels have been chosen."""
        return self._read is not None

    def let_go(self):
        """Forgets a model, so that it can be freed, and what it was warned of."""
        self._warn_once = WarnOnce()
        self._kernels = []
        self._penalties = []
        self._read = None
        self._read_key = None

    def choose(self, model, has_run=False):
        """Chooses the kernels of a model, unless some of its layers are unbuilt.

        Args:
            model: The `keras.Model`, in training.
            has_run: bool. Whether there was a training step, so that all layers that
                are used are built. On TensorFlow, `fit` builds layers of unknown input
                shape in its first step. Defaults to `False`.

        Raises:
            ValueError: If `layers` matches no kernel.
        """
        if not has_run and not all(layer.built for layer in layers_of(model)):
            return
        found = kernels(model)
        if self._layers is not None:
            # Embeddings and gammas are watched if they are named.
            everything = kernels_and_gammas(model) if names_in(self._layers) else found
            is_float = keras.backend.is_float_dtype
            candidates = [k for k in everything if is_float(k.variable.dtype)]
            try:
                self._kernels = select_kernels(candidates, self._layers)
            except ValueError as error:
                if not str(self._layers).endswith(".csv"):
                    raise
                raise ValueError(
                    f"{error}. To write a file, pass "
                    f"keras.callbacks.CSVLogger({self._layers!r}) after NormLogger()"
                ) from None
        else:
            carriers = [k for k in found if isinstance(k.regularizer, WEISSI)]
            self._kernels = carriers or found
        if not self._kernels:
            warn(f"NormLogger found no kernel to watch in model {model.name!r}.")
        self._reader(model)
        if warning := coefficient_warning(model, found):
            self._warn_once("limit", warning, warning)
        self._warn_of_normalized(model, found)

    def measure(self, model):
        """Measures what is logged. Warns if a norm is not finite or at its floor."""
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
        """Returns the reader, a new one if a regularizer has changed."""
        variables = model.trainable_variables
        penalties = [list(_state_of(variable.regularizer)) for variable in variables]
        key = [
            getattr(model, "run_eagerly", False),
            [id(kernel.variable) for kernel in self._kernels],
            [id(variable) for variable in variables],
            [[x if isinstance(x, _PLAIN) else id(x) for x in p] for p in penalties],
        ]
        if self._read is None or key != self._read_key:
            self._read = make_norm_reader(self._kernels, model)
            self._read_key = key
            # Kept, so that no later object gets the id of an earlier one.
            self._penalties = penalties
        return self._read

    def _warn_of_normalized(self, model, found):
        carriers = [
            kernel
            for kernel in found
            if isinstance(kernel.regularizer, WEISSI)
            and kernel.regularizer.log_norm
            and kernel.variable.trainable
        ]
        if not carriers:
            return
        graph = Graph(model)
        new = []
        for kernel in carriers:
            normalization = graph.normalization_of(kernel)
            is_known = normalization not in (None, "?")
            if is_known and self._warn_once.is_first("normalized", kernel.name):
                new.append(f"{kernel.name!r} (by {normalization!r})")
        if new:
            warn(
                "The scale of these kernels is normalized away by the layer after "
                f"them: {listed(new)}. There, the log term of WEISSI only raises the "
                "effective learning rate. If you do not want that, leave them out, as "
                "`regularize` does by default."
            )

    def _warn(self, norms):
        for kernel, norm in zip(self._kernels, norms, strict=True):
            if not np.isfinite(norm):
                self._warn_once(
                    "not finite",
                    kernel.name,
                    f"The norm of kernel {kernel.name!r} is no longer finite: {norm}.",
                )
        new = [
            message
            for name, message in kernels_at_floor(self._kernels, norms)
            if self._warn_once.is_first("floor", name)
        ]
        if new:
            warn(
                f"These kernels are at their floor: {listed(new)}. Reduce `log_norm` "
                "if their norms have been falling. If they started so small, "
                "`balance_scales` evens out the norms, where scale can be shifted."
            )


def _state_of(value, around=()):
    """Yields what tells that a regularizer was changed in place: it, and what it holds.

    Compiled code follows the variables of TensorFlow, and makes constants of the rest.
    """
    if isinstance(value, np.ndarray):
        value = value.tobytes()
    yield value
    if isinstance(value, _PLAIN):
        return
    if isinstance(value, keras.Variable):
        yield value.value  # on JAX, another one after each `assign`
    inside = list(value) if isinstance(value, (list, tuple, set, dict)) else []
    if isinstance(value, dict):
        inside += value.values()
    elif not around or isinstance(value, keras.regularizers.Regularizer):
        inside += getattr(value, "__dict__", {}).values()
        for kind in type(value).__mro__:
            slots = vars(kind).get("__slots__", ())
            inside += [getattr(value, name, None) for name in slots]
    for item in inside:
        if not any(item is one for one in around):
            yield from _state_of(item, (*around, value))
