"""The `WEISSI` regularizer, and a bound on its strength.

The L2 penalty of a ReLU network can be lowered without changing what the network
computes, by moving scale from one layer to the next. The penalty here cannot: its sum
over the layers depends only on the product of their norms, which such a shift does not
change.
"""

import math
import numbers
from typing import Any

import keras
from keras import ops

from keras_weissi._utils.backend import (
    at_least,
    bounded_below,
    is_float32_of_torch,
    log,
    minus_decay,
    sqrt,
    sum_of_absolutes,
    sum_of_squares,
)
from keras_weissi._utils.validation import as_number, invalid

__all__ = ["WEISSI", "largest_log_norm"]

# The square of `min_norm` must be a normal float32 number.
_MIN_NORM_RANGE = (1e-18, 1e18)
# With larger coefficients, float32 overflows in the gradient, which for a kernel below
# the floor contains `coefficient / min_norm ** 2`.
_LARGEST_COEFFICIENT = 1e12
_LARGEST_SLOPE = 1e36


@keras.saving.register_keras_serializable(package="keras_weissi")
class WEISSI(keras.regularizers.Regularizer):
    """A regularizer that is invariant to shifts of scale between layers.

    For a kernel `W` whose Frobenius norm `norm(W)` is at least `min_norm`:
    `loss = log_norm * log(norm(W)) + direction_l1 * sum(abs(W)) / norm(W)`

    Multiplying the kernel by `g` adds `log_norm * log(g)` to the loss, so factors
    whose product is 1 do not change the sum over the layers. The second term depends
    only on the direction of `W`. It lies between 1 and `sqrt(size of W)`, and is about
    `sqrt(2 * size / pi)` for Gaussian weights, so wide kernels dominate it.

    The logarithm has no lower bound, so `min_norm` is its floor. Below it, ordinary
    weight decay continues the logarithm, in value and in gradient:
    `log(norm(W)) -> log(min_norm) + ((norm(W) / min_norm) ** 2 - 1) / 2`,
    and the direction term divides by `min_norm`. With a learning rate `lr` and
    momentum `m`, a kernel without a gradient from the data decays to zero if
    `min_norm > sqrt(lr * log_norm / (2 * (1 + m)))`; otherwise it oscillates.

    The loss is negative for a norm below 1. It is computed in float32, or in float64
    for a float64 kernel, then cast to `keras.config.floatx()` if that is a half
    precision. Norms above 1.8e19, whose square overflows float32, count as 1.8e19. On
    JAX, the second term supports `jax.grad` and `jax.hessian`, but not `jax.jvp`.

    Args:
        log_norm: float, from 0 to 1e12, and to `1e36 * min_norm ** 2`. Coefficient of
            the log norm. 0 leaves the term out. Defaults to `0.01`.
        direction_l1: float, in the same range. Coefficient of the L1 norm of the
            direction. 0 leaves the term out. Defaults to `0.0`.
        min_norm: float, from 1e-18 to 1e18. The norm below which weight decay
            replaces the logarithm. Defaults to `0.1`.

    Raises:
        ValueError: If an argument is not a finite number in its range, or if the
            regularizer is called on a tensor that is not floating-point.

    Examples:
        >>> import numpy as np
        >>> from keras import layers
        >>> from keras_weissi import WEISSI
        >>> dense = layers.Dense(3, kernel_regularizer=WEISSI(log_norm=0.01))
        >>> penalty = WEISSI(log_norm=1.0)(np.full((2, 2), 5.0, "float32"))
        >>> round(float(penalty), 4)  # log(10)
        2.3026

    Reference:

    - [Liu, Cui & Chan, 2020](https://arxiv.org/abs/2008.02965)
    """

    def __init__(
        self, log_norm: float = 0.01, direction_l1: float = 0.0, min_norm: float = 0.1
    ) -> None:
        low, high = _MIN_NORM_RANGE
        expected = f"a positive float between {low:g} and {high:g}"
        self.min_norm = _validated(min_norm, "min_norm", expected, low, high)
        high = min(_LARGEST_COEFFICIENT, _LARGEST_SLOPE * self.min_norm**2)
        expected = f"a finite non-negative float, here up to {high:g}"
        self.log_norm = _validated(log_norm, "log_norm", expected, 0.0, high)
        self.direction_l1 = _validated(
            direction_l1, "direction_l1", expected, 0.0, high
        )

    def __call__(self, x: Any) -> Any:
        """Returns the penalty of the kernel `x` as a scalar tensor."""
        penalty = self._penalty(_as_float_tensor(x))
        # TensorFlow can add the penalty only to a loss of the same dtype.
        is_half = keras.config.floatx() in ("float16", "bfloat16")
        return ops.cast(penalty, keras.config.floatx()) if is_half else penalty

    def _penalty(self, x):
        if not (self.log_norm or self.direction_l1):
            return ops.zeros((), dtype=x.dtype)
        # Only two sums are read from the kernel: a temporary of its size, such as
        # `x / norm`, would double the memory traffic of the penalty.
        square = sum_of_squares(x)
        if not self.direction_l1:
            return self.penalty_from_sums(square)
        return self.penalty_from_sums(square, sum_of_absolutes(x), _size_of(x))

    def penalty_from_sums(
        self, square: Any, absolute: Any = None, size: Any = None
    ) -> Any:
        """Returns the penalties of kernels from two sums over each.

        Args:
            square: float32 or float64 tensor of any shape, one element for each kernel:
                the sum of the squares of its elements.
            absolute: tensor like `square`: the sum of their absolute values. Needed
                only if `direction_l1` is not 0.
            size: int, or tensor like `square`: the number of elements, or
                `None` if it is not known.

        Returns:
            Tensor like `square`: the penalty of each kernel.
        """
        if not (self.log_norm or self.direction_l1):
            return ops.zeros_like(square)
        floor = self.min_norm**2
        floored = at_least(square, floor)
        if self.log_norm:
            logarithm = minus_decay(log(floored), square, floor)
            penalty = logarithm * (0.5 * self.log_norm)
        if self.direction_l1:
            # Negative, as PyTorch has a fast bound from below only.
            direction = absolute / sqrt(floored) * -self.direction_l1
            if size is not None:
                # By Cauchy-Schwarz, it exceeds this bound only if a sum overflowed.
                direction = bounded_below(direction, size**0.5 * -self.direction_l1)
            penalty = penalty - direction if self.log_norm else -direction
        return penalty

    def get_config(self) -> dict[str, float]:
        """Returns the arguments of the constructor as plain floats."""
        return {
            "log_norm": self.log_norm,
            "direction_l1": self.direction_l1,
            "min_norm": self.min_norm,
        }

    def __repr__(self) -> str:
        arguments = ", ".join(
            f"{key}={value:g}" if isinstance(value, float) else f"{key}={value!r}"
            for key, value in self.get_config().items()
        )
        return f"{type(self).__name__}({arguments})"


def largest_log_norm(classes: int) -> float:
    """Returns the `log_norm` above which a classifier must collapse.

    `largest_log_norm = max over x of x * (C - 1) / (C - 1 + exp(x)) = W((C - 1) / e)`,
    where `C` is the number of classes and `W` is Lambert's function. With a larger
    `log_norm`, training on the cross-entropy `L` cannot come to rest while the norm of
    the last kernel `K`, which computes the logits, is above its floor `min_norm`. This
    holds for any data, width and depth: at rest, the cross-entropy pulls `K` outwards
    as strongly as the penalty pulls it inwards, `-sum(K * dL/dK) = log_norm`. With
    logits `z`, probabilities `p` and a trained bias, the left side is the mean of
    `z[label] - sum(p * z)` over the rows, and no row exceeds the formula above.

    This is a limit, not a recommendation. A network that does not fit all labels,
    because some are wrong, collapses at a smaller value. In a plain chain of layers
    with homogeneous activations (`f(c * x) = c * f(x)` for `c > 0`, such as ReLU), the
    limit holds for every kernel.

    Args:
        classes: int, at least 2: the number of classes. 2 for sigmoid outputs.

    Returns:
        float: 0.278 for 2 classes, 1.10 for 10, 4.42 for 1,000. This is for a loss that
        is the mean over the rows; `sample_weight`, `class_weight` and `loss_weights`
        scale it.

    Raises:
        ValueError: If `classes` is not an int of at least 2, or is too large for a
            float.

    Examples:
        >>> from keras_weissi import largest_log_norm
        >>> [round(largest_log_norm(classes), 2) for classes in (2, 10, 1000)]
        [0.28, 1.1, 4.42]
    """
    from scipy.special import lambertw

    if not isinstance(classes, numbers.Integral) or not 2 <= int(classes) <= 10**308:
        expected = "an int of at least 2, not too large for a float"
        raise invalid("classes", expected, classes)
    return float(lambertw((int(classes) - 1) / math.e).real)


def _as_float_tensor(x):
    if is_float32_of_torch(x):
        return x
    x = ops.convert_to_tensor(x)
    dtype = keras.backend.standardize_dtype(x.dtype)
    of_sums = dtype_of_sums(dtype)
    if dtype != of_sums and not keras.backend.is_float_dtype(dtype):
        raise ValueError(
            "Invalid value for argument `x`. Expected a floating-point tensor. "
            f"Received: x of dtype {dtype} and shape {tuple(x.shape)}"
        )
    # In float16, squares overflow from 256 on. On TensorFlow the cast, which copies
    # nothing if the dtype is right, also turns a variable into a tensor.
    return ops.cast(x, of_sums)


def dtype_of_sums(dtype):
    """Returns the dtype in which sums over a kernel of dtype `dtype` are computed."""
    return "float64" if dtype == "float64" else "float32"


def _size_of(x):
    # A layer may be traced with a batch of unknown size: `None`, or a symbol on JAX.
    if is_float32_of_torch(x):
        size = x.numel()
    else:
        size = None if None in tuple(x.shape) else math.prod(x.shape)
    return size if type(size) is int else None


def _validated(value, name, expected, low, high):
    number = as_number(value)
    if number is None or not low <= number <= high:
        raise invalid(name, expected, value)
    return number
