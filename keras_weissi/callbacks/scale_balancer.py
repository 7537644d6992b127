"""A callback for `fit` that balances the norms of the kernels."""

import math

import keras

from keras_weissi._utils.keras_private import model_in_training
from keras_weissi._utils.user_warnings import warn
from keras_weissi._utils.validation import check_bool, invalid, is_count
from keras_weissi.symmetry.find_groups import scale_groups
from keras_weissi.symmetry.optimizer_state import optimizer_of, state_of
from keras_weissi.symmetry.rescale import balance
from keras_weissi.symmetry.solvers import NotSolvedError


class ScaleBalancer(keras.callbacks.Callback):
    """Balances the norms of the kernels before training and after epochs.

    See `balance_scales`.

    Under the log penalty every kernel loses `norm(W) ** 2` at the same rate, so the
    smallest collapses first. Balancing shifts scale to it from the other kernels. It
    does not change what the model computes, nor the penalty where `WEISSI` is
    invariant. The optimizer's state is rescaled as well.

    It also works with Keras's `L2`: balanced, `sum(norm(W_l) ** 2)` over a chain of
    `k` layers is `k * prod(norm(W_l)) ** (2 / k)`, a penalty on the product alone.

    At the end of every epoch it adds to `logs`

    - `scale_shift`: the largest `abs(log(c))` of the factors `c` that it multiplied
      the kernels by; 0 in an epoch in which it did not balance.

    If it cannot balance, for example because a norm is no longer finite, it warns and
    leaves the model as it is.

    It acts after the validation. Callbacks that should see the balanced weights, such
    as `NormLogger` and `ModelCheckpoint`, come after it in `callbacks`.

    Args:
        every: int. Balances after epochs `every`, `2 * every`, and so on. Epochs
            before `initial_epoch` count. Defaults to `1`.
        optimizer: bool. Whether to rescale the optimizer's state as well. It must be
            an optimizer that `balance_scales` knows. `False` leaves the state as it is.
            Defaults to `True`.
        start: bool. Whether to balance before the first step too, where it matters
            most: a model that starts unbalanced learns slowly. (After the first step on
            TensorFlow, if only that builds the model.) Defaults to `True`.
        exact: bool. Whether to round all factors to powers of 2, as `balance_scales`
            does, so that nothing changes by rounding. Defaults to `False`.

    Attributes:
        record: List of dicts, one per balancing, over all calls of `fit`: `epoch`, the
            number of epochs completed, 0 before the first step; `scale_shift`; and for
            each kernel its norm, `before/<name>` and `after/<name>`.

    Raises:
        ValueError: If an argument is invalid or, when `fit` begins, if `scale_groups`
            does not take the model, or it is not known how the state of its optimizer
            scales.

    Examples:
        >>> import keras, numpy as np
        >>> from keras_weissi import WEISSI, ScaleBalancer
        >>> weissi = {"kernel_regularizer": WEISSI(0.01)}
        >>> model = keras.Sequential([
        ...     keras.Input((3,)),
        ...     keras.layers.Dense(8, "relu", name="hidden", **weissi),
        ...     keras.layers.Dense(1, name="logits", **weissi),
        ... ])
        >>> model.compile("sgd", "mse")
        >>> x = np.ones((8, 3), "float32")
        >>> balancer = ScaleBalancer()
        >>> history = model.fit(x, x[:, :1], epochs=2, verbose=0, callbacks=[balancer])
        >>> last = balancer.record[-1]
        >>> bool(np.isclose(last["after/hidden"], last["after/logits"]))
        True
    """

    # Nothing is read or changed between batches.
    async_safe = True

    def __init__(
        self,
        every: int = 1,
        optimizer: bool = True,
        *,
        start: bool = True,
        exact: bool = False,
    ) -> None:
        super().__init__()
        if not is_count(every):
            raise invalid("every", "a positive int", every)
        for name, value in (
            ("optimizer", optimizer),
            ("start", start),
            ("exact", exact),
        ):
            check_bool(value, name)
        self.every = every
        self.optimizer = optimizer
        self.start = start
        self.exact = exact
        self.record: list[dict[str, float]] = []
        self._warned = False
        self._is_begun = False
        self._completed = 0  # epochs

    def set_model(self, model):
        """Takes the model, and allows its warnings again if it is another one."""
        if model is not model_in_training(self):
            self._warned = False
            self._completed = 0
        super().set_model(model)

    def on_train_begin(self, logs=None):
        """Raises if the model cannot be balanced; balances it before the first step."""
        self._is_begun = self.model.built
        if self._is_begun:
            self._begin()

    def on_train_batch_end(self, batch, logs=None):
        """Balances after the first step if only that has built the model."""
        # On TensorFlow, `fit` builds a model of unknown input shape in its first step.
        if not self._is_begun:
            self._is_begun = True
            self._begin()

    def _begin(self):
        groups = scale_groups(self.model)
        self._check(groups)
        state_of(optimizer_of(self.model, self.optimizer))
        if self.start:
            self._balance(self._completed, groups)

    def on_epoch_end(self, epoch, logs=None):
        """Balances the model if it is due, and adds `scale_shift` to `logs`."""
        logs = {} if logs is None else logs
        self._completed = epoch + 1
        is_due = self._completed % self.every == 0
        logs["scale_shift"] = self._balance(self._completed) if is_due else 0.0

    def _balance(self, epoch, groups=None):
        """Balances the model; returns the largest change, 0 if there is none.

        At the start, the groups are known. Later they are found anew, as layers may
        have been frozen since.
        """
        is_start = groups is not None
        model = self.model  # on JAX, this copies the state of training to the model
        try:
            groups = groups or scale_groups(model)
            self._check(groups)
            rows = balance(model, groups, self.optimizer, self.exact)
        except (NotSolvedError, ValueError) as error:
            # A model that has diverged is for other callbacks to deal with.
            when = f"after epoch {epoch}" if epoch else "before the first step"
            warn(f"ScaleBalancer left the model as it is {when}. {error}")
            return 0.0
        shift = max((abs(math.log(row.factor)) for row in rows), default=0.0)
        if is_start and not shift:
            return shift  # an earlier `fit` has balanced it
        record = {"epoch": epoch, "scale_shift": shift}
        for row in rows:
            record[f"before/{row.name}"] = row.before
            record[f"after/{row.name}"] = row.after
        self.record.append(record)
        return shift

    def _check(self, groups):
        """Warns, once, if there is nothing to balance."""
        if self._warned or groups.changes.any():
            return
        self._warned = True
        warn(
            f"ScaleBalancer has nothing to balance in model {self.model.name!r}: no "
            "scale can be shifted between its kernels, see `scale_groups(model)`."
        )
