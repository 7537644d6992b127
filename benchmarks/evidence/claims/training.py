"""Trains many networks at once: one program, in which a run is a row of numbers.

The networks, the optimizers and the penalties are those of Keras and `keras_weissi`,
and so are the scales that may be shifted. A run's method is a set of strengths and
flags, so that all methods share a program, and all runs of a network are trained
together by `jax.vmap`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import keras
import numpy as np

from evidence.claims.data import TEST, TRAIN, VALIDATION
from evidence.claims.networks import NETWORKS
from keras_weissi import WEISSI, invariant_coefficients, scale_groups

jax.config.update("jax_default_matmul_precision", "highest")  # as on a CPU

BATCH, STEPS, POINTS = 100, 3000, 30
MOMENTUM = 0.9
EVERY = 20  # steps: an epoch of 2,000 rows
_NEWTON_STEPS = 8  # where the balance has no formula


@dataclasses.dataclass(frozen=True)
class Run:
    """What one network is trained with.

    Attributes:
        seed: int, the place of the seed among those that were loaded.
        rate: float, the largest learning rate, from which a cosine leads to 0.
        rows: int, for training.
        noise: int, the place of the fraction of wrong labels in `data.NOISE`.
        l2, log, direction: floats, the strengths of the penalties.
        decay: float, of decoupled weight decay.
        rescaling: float, of soft weight rescaling, see `_rescaled`.
        on: str, what the penalties are on: `"kernels"`, `"gammas"`, or
            `"coefficients"`: the kernels, with their coefficients.
        every: int, the steps from one balancing to the next, 0 for none.
        start: bool, whether the scales are balanced before the first step.
        by: str, what is balanced: `"layer"`, `"channel"`, or `"channel-weights"`: by
            channel and without the biases.
        shift: float, how far the start is from balance: every other kernel is
            multiplied by it, and the rest divided.
        half: str, what changes in the middle: `"rows"` is the number of rows, of which
            there are half before; `"task"` is a new last layer, a fourth as large as
            it would be at the start, and an eighth of the rows, all of them new.
            Methods act in the second half only then. `""` is nothing.
    """

    seed: int
    rate: float
    rows: int = 2000
    noise: int = 0
    l2: float = 0.0
    log: float = 0.0
    direction: float = 0.0
    decay: float = 0.0
    rescaling: float = 0.0
    on: str = "kernels"
    every: int = 0
    start: bool = False
    by: str = "layer"
    shift: float = 1.0
    half: str = ""


class Trainer:
    """Trains networks of one kind with one optimizer.

    Args:
        network: str, a key of `NETWORKS`.
        optimizer: `"sgd"` or `"adam"`.
        data: dict, see `data.load`.
        seeds: tuple of ints, those of the data.
        steps: int. Defaults to 3000.
    """

    def __init__(self, network, optimizer, data, seeds, steps=STEPS):
        self.model = NETWORKS[network]()
        self.steps = steps
        self.is_adam = optimizer == "adam"
        self.optimizer = (
            keras.optimizers.Adam()
            if self.is_adam
            else keras.optimizers.SGD(momentum=MOMENTUM)
        )
        self.variables = self.model.trainable_variables
        self.optimizer.build(self.variables)
        self.kernels = [i for i, v in enumerate(self.variables) if v.name == "kernel"]
        self.gammas = [i for i, v in enumerate(self.variables) if v.name == "gamma"]
        self.symmetry = _Symmetry(self.model)
        self.coefficients = self._coefficients()
        self.is_chain = network.startswith("mlp")
        self.data = {key: jnp.asarray(value) for key, value in data.items()}
        self.starts = [
            jnp.stack(values)
            for values in zip(*(self._initial(s) for s in seeds), strict=True)
        ]
        self._train = jax.jit(
            lambda each_step, *args: jax.vmap(
                functools.partial(self._train_one, each_step=each_step),
                in_axes=(0, None, None),
            )(*args),
            static_argnums=0,
        )

    def train(self, runs):
        """Trains runs, all at once.

        Args:
            runs: list of `Run`.

        Returns:
            Dict of arrays, whose first axis is that of the runs: `weights`, a list of
            arrays; `validation` (accuracy and loss), `test` (accuracy, loss,
            calibration error), `curve` (the accuracy at 30 points), and `log_norms` of
            the kernels at the start and the end.
        """
        columns = {
            f.name: np.array([getattr(run, f.name) for run in runs])
            for f in dataclasses.fields(Run)
        }
        flags = {
            "on_gammas": columns["on"] == "gammas",
            "on_coefficients": columns.pop("on") == "coefficients",
            "by_channel": columns["by"] != "layer",
            "without_biases": columns.pop("by") == "channel-weights",
            "more_rows": columns["half"] == "rows",
            "new_task": columns.pop("half") == "task",
        }
        each_step = bool(any(run.rescaling or run.every == 1 for run in runs))
        found = self._train(each_step, columns | flags, self.data, self.starts)
        return jax.tree.map(np.asarray, found)

    def _initial(self, seed):
        rng = np.random.default_rng(seed)
        found = []
        for variable in self.variables:
            value = variable.value
            if variable.name == "kernel":
                make = keras.initializers.HeNormal(seed=int(rng.integers(2**31)))
                value = make(variable.shape)
            found.append(value)
        return found

    def _train_one(self, run, data, starts, each_step):
        weights = [value[run["seed"]] for value in starts]
        first = weights
        alternating = self.symmetry.alternating() * jnp.log(run["shift"])
        weights = self.symmetry.shifted(weights, alternating)
        state = [jnp.zeros(v.shape, v.dtype) for v in self.optimizer.variables]
        fixed = [v.value for v in self.model.non_trainable_variables]
        norms = [self._log_norms(weights)]
        x, y = data["x"][run["seed"]], data["y"][run["noise"], run["seed"]]
        validation, test = slice(TRAIN, TRAIN + VALIDATION), slice(-TEST, None)
        run["start_norms"] = jnp.exp(norms[0])

        def step(carry, t):
            weights, state, fixed = carry
            rows, rate, acts = self._schedule(run, t)
            batch = x[rows], y[rows]
            carry = self._step(weights, state, fixed, run, batch, rate, acts)
            if each_step:
                weights, state, fixed = carry
                weights = self._rescaled(weights, jnp.where(acts, 1.0, 0.0), run)
                due = acts & (run["every"] == 1)
                carry = *self._balanced(weights, state, run, due), fixed
            return carry, None

        def epoch(carry, t):
            carry, _ = jax.lax.scan(step, carry, t + jnp.arange(EVERY))
            due = self._schedule(run, t)[2] & (run["every"] > 1)
            return (*self._balanced(*carry[:2], run, due), carry[2]), None

        def point(carry, t):
            carry = self._begun(carry, run, t, first)
            epochs = t + EVERY * jnp.arange(self.steps // POINTS // EVERY)
            carry, _ = jax.lax.scan(epoch, carry, epochs)
            judged = self._judged(carry[0], carry[2], x[validation], y[validation])
            return carry, judged[:2]

        points = self.steps // POINTS * jnp.arange(POINTS)
        carry, curve = jax.lax.scan(point, (weights, state, fixed), points)
        weights, _, fixed = carry
        right = data["y"][0, run["seed"], test]
        return {
            "weights": weights,
            "validation": (curve[0][-1], curve[1][-1]),
            "test": self._judged(weights, fixed, x[test], right),
            "curve": curve[0],
            "log_norms": jnp.stack([*norms, self._log_norms(weights)]),
        }

    def _schedule(self, run, t):
        """Returns the rows of a step, its learning rate, and whether methods act."""
        is_second = t >= self.steps // 2
        new, more = run["new_task"], run["more_rows"]
        acts = is_second | ~new
        # Of a new task, the first half is the same for all methods.
        largest = jnp.where(acts, run["rate"], 1e-3 if self.is_adam else 0.1)
        part = jnp.where(new | more, (2 * t) % self.steps, t) / self.steps
        half, eighth = run["rows"] // 2, run["rows"] // 8
        count = jnp.where(more & ~is_second, half, run["rows"])
        count = jnp.where(new, jnp.where(is_second, eighth, half), count)
        key = jax.random.fold_in(jax.random.key(run["seed"]), t)
        rows = jax.random.randint(key, (BATCH,), 0, count)
        rows += jnp.where(new & is_second, half, 0)
        return rows, largest * 0.5 * (1 + jnp.cos(jnp.pi * part)), acts

    def _begun(self, carry, run, t, first):
        """Makes the new last layer, and balances before the first step."""
        weights, state, fixed = carry
        is_new = run["new_task"] & (t == self.steps // 2)
        head = first[-2] / 4, jnp.zeros_like(first[-1])
        head = [
            jnp.where(is_new, a, b) for a, b in zip(head, weights[-2:], strict=True)
        ]
        weights = [*weights[:-2], *head]
        state = [jnp.where(is_new, jnp.zeros_like(v), v) for v in state]
        begins = t == jnp.where(run["new_task"], self.steps // 2, 0)
        weights, state = self._balanced(weights, state, run, begins & run["start"])
        return weights, state, fixed

    def _log_norms(self, weights):
        return jnp.stack(
            [0.5 * jnp.log(jnp.sum(weights[i] ** 2)) for i in self.kernels]
        )

    def _step(self, weights, state, fixed, run, batch, rate, acts):
        x, y = batch

        def loss(weights):
            logits, after = self.model.stateless_call(weights, fixed, x, training=True)
            total = -jnp.mean(
                jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1)
            )
            return total + jnp.where(acts, self._penalty(weights, run), 0.0), after

        gradients, fixed = jax.grad(loss, has_aux=True)(weights)
        paths = [v.path for v in self.optimizer.variables]
        state = list(state)
        state[paths.index(self.optimizer.learning_rate.path)] = rate
        before = weights
        weights, state = self.optimizer.stateless_apply(state, gradients, weights)
        weights = list(weights)
        for i in self.kernels:
            shrink = jnp.where(acts, rate * run["decay"], 0.0)
            weights[i] = weights[i] - jnp.minimum(shrink, 1.0) * before[i]
        return weights, state, fixed

    def _penalty(self, weights, run):
        log, l2 = WEISSI(1.0), keras.regularizers.L2(1.0)
        direction = WEISSI(0.0, direction_l1=1.0)
        total = 0.0
        for i, coefficient in zip(self.kernels, self.coefficients, strict=True):
            coefficient = jnp.where(run["on_coefficients"], coefficient, 1.0)
            term = run["log"] * coefficient * log(weights[i]) + run["l2"] * l2(
                weights[i]
            )
            term += run["direction"] * direction(weights[i])
            total += jnp.where(run["on_gammas"], 0.0, term)
        for i in self.gammas:
            term = run["log"] * log(weights[i]) + run["l2"] * l2(weights[i])
            total += jnp.where(run["on_gammas"], term, 0.0)
        return total

    def _coefficients(self):
        found = invariant_coefficients(self.model).coefficients
        by_path = {
            kernel.variable.path: found.get(kernel.name, 0.0)
            for kernel in (edge.kernel for edge in scale_groups(self.model).edges)
        }
        return [by_path.get(self.variables[i].path, 1.0) for i in self.kernels]

    def _rescaled(self, weights, acts, run):
        """Soft weight rescaling after every step, in the form that follows.

        It is meant to be that of arXiv 2507.04683, but was not compared with its code.

        `W_l *= c_l`, with `c_l = strength * norm(W_l at the start) / norm(W_l) + 1 -
        strength`, and the biases by the product of all factors before them, so that
        the outputs are only multiplied. On chains.
        """
        if not self.is_chain:
            return weights
        strength = acts * run["rescaling"]
        product = 1.0
        for n, i in enumerate(self.kernels):
            ratio = run["start_norms"][n] / jnp.sqrt(jnp.sum(weights[i] ** 2))
            factor = strength * ratio + 1.0 - strength
            product *= factor
            weights[i] = weights[i] * factor
            weights[i + 1] = weights[i + 1] * product
        return weights

    def _balanced(self, weights, state, run, due):
        z = jnp.where(due, self.symmetry.balance(weights), 0.0)
        if not self.is_chain:
            return self._multiplied(weights, state, self.symmetry.factors(z))
        by_layer = self.symmetry.factors(jnp.where(run["by_channel"], 0.0, z))
        weights, state = self._multiplied(weights, state, by_layer)
        return self._channels_balanced(weights, state, due & run["by_channel"], run)

    def _channels_balanced(self, weights, state, due, run):
        """Gives each unit's weights in and out one norm, layer by layer (a sweep)."""
        for i, j in zip(self.kernels, self.kernels[1:], strict=False):
            into = jnp.sum(weights[i] ** 2, axis=0)
            out = jnp.sum(weights[j] ** 2, axis=1)
            # A unit without weights on one side stays as it is.
            is_dead = (into < 1e-20) | (out < 1e-20)
            factor = jnp.where(
                due & ~is_dead, (out / jnp.where(is_dead, 1.0, into)) ** 0.25, 1.0
            )
            factors = [1.0] * len(weights)
            factors[i], factors[j] = factor[None], 1 / factor[:, None]
            factors[i + 1] = jnp.where(run["without_biases"], 1.0, factor)
            weights, state = self._multiplied(weights, state, factors)
        return weights, state

    def _multiplied(self, weights, state, factors):
        """Multiplies weights, and the optimizer's state as the gradients change."""
        weights = [w * f for w, f in zip(weights, factors, strict=True)]
        slots = (
            [("_momentums", -1), ("_velocities", -2)]
            if self.is_adam
            else [("momentums", -1)]
        )
        places = {id(v): n for n, v in enumerate(self.optimizer.variables)}
        state = list(state)
        for name, power in slots:
            for slot, factor in zip(
                getattr(self.optimizer, name), factors, strict=True
            ):
                place = places[id(slot)]
                state[place] = state[place] * jnp.asarray(factor) ** power
        return weights, state

    def _judged(self, weights, fixed, x, y):
        """Returns the accuracy, the mean loss and the calibration error."""

        def call(rows):  # few at a time, as all would fill the memory
            return self.model.stateless_call(weights, fixed, rows, training=False)[0]

        logits = jax.lax.map(call, x.reshape(-1, 500, x.shape[-1]))
        logits = logits.reshape(len(x), -1)
        logs = jax.nn.log_softmax(
            jnp.nan_to_num(logits, nan=0.0, posinf=1e9, neginf=-1e9)
        )
        loss = -jnp.mean(jnp.take_along_axis(logs, y[:, None], 1))
        right = logs.argmax(1) == y
        confidence = jnp.exp(logs.max(1))
        bins = jnp.minimum((confidence * 15).astype(int), 14)
        gaps = jax.ops.segment_sum(right - confidence, bins, 15)
        return jnp.mean(right), jnp.minimum(loss, 1e9), jnp.abs(gaps).sum() / len(y)


class _Symmetry:
    """The scales of a model that may be shifted, as arrays.

    Args:
        model: `keras.Model`.
    """

    def __init__(self, model):
        groups = scale_groups(model)
        place = {id(v): n for n, v in enumerate(model.trainable_variables)}
        self.count = len(place)
        self.powers = np.zeros((self.count, groups.dimension))
        self.edges = [place[id(edge.kernel.variable)] for edge in groups.edges]
        self.powers[self.edges] = groups.changes
        for group, row in zip(groups.groups, groups.directions, strict=True):
            for offset in group.offsets:
                self.powers[place[id(offset)]] = row
        changes = groups.changes
        self.changes = jnp.asarray(changes, "float32")
        # Of least squares: on a chain, all norms become equal, which is the balance.
        system = np.hstack([changes, -np.ones((len(changes), 1))])
        inverse = np.linalg.pinv(system)
        self.inverse = jnp.asarray(inverse[:-1], "float32")
        rows = np.abs(system @ inverse - np.eye(len(changes)))
        self.is_solved = not len(changes) or rows.max() < 1e-9

    def alternating(self):
        """Returns logarithms of scales: 1 for every other free one, else 0."""
        return jnp.arange(self.powers.shape[1]) % 2 == 0

    def factors(self, z):
        """Returns the factor of each variable."""
        factors = jnp.exp(jnp.asarray(self.powers, "float32") @ z)
        return [factors[n] for n in range(self.count)]

    def shifted(self, weights, z):
        """Returns weights with their scales shifted."""
        return [w * f for w, f in zip(weights, self.factors(z), strict=True)]

    def balance(self, weights):
        """Returns the logarithms of the scales that balance weights."""
        logs = jnp.stack([0.5 * jnp.log(jnp.sum(weights[i] ** 2)) for i in self.edges])
        z = -self.inverse @ logs
        for _ in range(0 if self.is_solved else _NEWTON_STEPS):
            exponents = 2 * (self.changes @ z + logs)
            p = jnp.exp(exponents - exponents.max())
            slope = self.changes.T @ p
            curve = 2 * (self.changes.T * p) @ self.changes
            curve += 1e-7 * jnp.trace(curve) * jnp.eye(len(slope))
            z = z - jnp.clip(jnp.linalg.solve(curve, slope), -1.0, 1.0)
        return jnp.where(jnp.isfinite(z).all(), z, 0.0)
