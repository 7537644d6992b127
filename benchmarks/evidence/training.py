"""Trains one network with one method.

The networks are so small that `fit` mostly spends its time between the steps. Here, all
steps of an epoch are one call of JAX's `scan`, which makes a step of the smaller
networks several times as fast. The penalties, the optimizers and the networks are those
of Keras, and the balancing is that of `keras_weissi`. The strength is an argument of
the compiled function, so all runs of a method share one compilation.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import keras
import numpy as np

from evidence.tasks import CONVOLUTIONAL, NETWORKS
from keras_weissi import WEISSI
from keras_weissi.symmetry.find_groups import scale_groups
from keras_weissi.symmetry.rescale import balance

BATCH = 32
RATES = {"sgd": 0.02, "adam": 1e-3}


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to regularize.

    Attributes:
        start: float, the middle of the grid of strengths, or 0 without a strength.
        penalty: Function from a kernel to a scalar, which `strength` multiplies.
            Defaults to `None`.
        decay: str, the decay outside of the loss, which `strength` multiplies: `"l2"`
            for decoupled weight decay, `"weissi"` for the decoupled log penalty.
            Defaults to `""`.
        balanced: bool, whether the scales are balanced after every epoch, or about
            every 25 steps where epochs are shorter. Defaults to `False`.
    """

    start: float
    penalty: object = None
    decay: str = ""
    balanced: bool = False


def _orthogonal(kernel):
    if len(kernel.shape) != 2:
        return 0.0
    return keras.regularizers.OrthogonalRegularizer(factor=1.0)(kernel)


METHODS = {
    "none": Method(0.0),
    "l2": Method(3e-3, keras.regularizers.L2(1.0)),
    "l2-balanced": Method(3e-3, keras.regularizers.L2(1.0), balanced=True),
    "l1l2": Method(1e-3, keras.regularizers.L1L2(l1=0.1, l2=1.0)),
    "decay": Method(1e-2, decay="l2"),
    "orthogonal": Method(1e-1, _orthogonal),
    "weissi": Method(0.1, WEISSI(1.0)),
    "weissi-both": Method(0.1, WEISSI(1.0, direction_l1=0.01)),
    "weissi-balanced": Method(0.1, WEISSI(1.0), balanced=True),
    "weissi-decoupled": Method(1.0, decay="weissi"),
}


class Trainer:
    """Trains the network of a task with a method and an optimizer.

    Args:
        task: `evidence.tasks.Task`.
        method: str, a key of `METHODS`.
        optimizer: `"sgd"` or `"adam"`.
        split: `evidence.tasks.Split`, for its shapes.
    """

    def __init__(self, task, method, optimizer, split):
        self.task = task
        self.method = METHODS[method]
        self.model = NETWORKS[task.network](split.x.shape[1:], split.classes)
        self.steps = len(split.x) // BATCH
        self.rate = keras.optimizers.schedules.CosineDecay(
            RATES[optimizer], self.steps * task.epochs
        )
        self.optimizer = (
            keras.optimizers.SGD(self.rate, momentum=0.9)
            if optimizer == "sgd"
            else keras.optimizers.Adam(self.rate)
        )
        self.model.compile(self.optimizer)
        self.optimizer.build(self.model.trainable_variables)
        self.iterations = [v.path for v in self.optimizer.variables].index(
            self.optimizer.iterations.path
        )
        self.groups = scale_groups(self.model)
        self.balance_every = max(1, 25 // self.steps)
        self.kernels = [
            i
            for i, variable in enumerate(self.model.trainable_variables)
            if variable.name == "kernel"
        ]
        # On a CPU, XLA has no fast code for a convolution inside a `scan`.
        self._scans = task.network not in CONVOLUTIONAL
        self._epoch = jax.jit(self._all_steps if self._scans else self._step)
        self._measured = jax.jit(self._measures)

    def train(self, split, strength, seed):
        """Trains once. The initial weights and the order of rows depend on the seed.

        Args:
            split: `evidence.tasks.Split`.
            strength: float.
            seed: int.

        Returns:
            Pair of the trained weights, a list of arrays, and the curves: a dict of
            lists with one element for each of about 20 epochs.
        """
        rng = np.random.default_rng(seed)
        weights = []
        for variable in self.model.trainable_variables:
            make = keras.initializers.Zeros()
            if variable.name == "kernel":
                make = keras.initializers.HeNormal(seed=int(rng.integers(2**31)))
            weights.append(make(variable.shape))
        state = [jnp.zeros(v.shape, v.dtype) for v in self.optimizer.variables]
        x, y = jnp.asarray(split.x), jnp.asarray(split.y)
        curves = {"epoch": [], "log_norm": [], "input_gradient": [], "loss": []}
        every = max(1, self.task.epochs // 20)
        for epoch in range(self.task.epochs):
            order = rng.permutation(len(split.x))[: self.steps * BATCH]
            batches = order.reshape(self.steps, BATCH)
            if self._scans:
                weights, state = self._epoch(weights, state, x, y, batches, strength)
            else:
                for batch in batches:
                    weights, state = self._epoch(weights, state, x, y, batch, strength)
            if self.method.balanced and (epoch + 1) % self.balance_every == 0:
                weights, state = self._balanced(weights, state)
            if (epoch + 1) % every == 0 or epoch + 1 == self.task.epochs:
                measured = self._measured(
                    weights, split.x_validation[:100], split.y_validation[:100]
                )
                curves["epoch"].append(epoch + 1)
                for key, value in measured.items():
                    curves[key].append(float(value))
        return [np.asarray(w) for w in weights], curves

    def logits(self, weights, x):
        """Returns the outputs of the network with the given weights, as an array."""
        return np.asarray(self._outputs(weights, x))

    @functools.partial(jax.jit, static_argnums=0)
    def _outputs(self, weights, x):
        return self.model.stateless_call(weights, [], x)[0]

    def _cross_entropy(self, weights, x, y):
        logits = self.model.stateless_call(weights, [], x)[0]
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1))

    def _step(self, weights, state, x, y, batch, strength):
        def loss(weights):
            total = self._cross_entropy(weights, x[batch], y[batch])
            if self.method.penalty is not None:
                penalty = sum(self.method.penalty(weights[i]) for i in self.kernels)
                total += strength * penalty
            return total

        gradients = jax.grad(loss)(weights)
        rate = self.rate(state[self.iterations])
        old = weights
        weights, state = self.optimizer.stateless_apply(state, gradients, weights)
        for i in self.kernels if self.method.decay else ():
            shrink = strength
            if self.method.decay == "weissi":
                square = jnp.sum(old[i] * old[i])
                shrink = strength / jnp.maximum(square, WEISSI().min_norm ** 2)
            weights[i] = weights[i] - jnp.minimum(rate * shrink, 1.0) * old[i]
        return weights, state

    def _all_steps(self, weights, state, x, y, batches, strength):
        def step(carry, batch):
            return self._step(*carry, x, y, batch, strength), None

        (weights, state), _ = jax.lax.scan(step, (weights, state), batches)
        return weights, state

    def _balanced(self, weights, state):
        for variables, values in (
            (self.model.trainable_variables, weights),
            (self.optimizer.variables, state),
        ):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
        try:
            balance(self.model, self.groups)
        except ValueError:  # a run that has diverged is left as it is
            return weights, state
        return (
            [v.value for v in self.model.trainable_variables],
            [v.value for v in self.optimizer.variables],
        )

    def _measures(self, weights, x, y):
        def logit(row, label):
            return self.model.stateless_call(weights, [], row[None])[0][0, label]

        gradients = jax.vmap(jax.grad(logit))(x, y).reshape(len(x), -1)
        norms = jnp.stack([jnp.sqrt(jnp.sum(weights[i] ** 2)) for i in self.kernels])
        return {
            "log_norm": jnp.sum(jnp.log(norms)),
            "input_gradient": jnp.mean(jnp.sqrt(jnp.sum(gradients**2, axis=1))),
            "loss": self._cross_entropy(weights, x, y),
        }
