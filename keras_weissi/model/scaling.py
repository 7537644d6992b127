"""What a call does to scale: equations between the scales of tensors and weights."""

import dataclasses
import fractions
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras

from keras_weissi._utils.validation import as_number, invalid

# What has a scale.
Scaled: TypeAlias = keras.KerasTensor | keras.Variable


@dataclasses.dataclass(frozen=True, eq=False)
class Relation:
    """Says how the scales of tensors and weights depend on each other in one layer.

    If a tensor or weight `x` may be multiplied by a factor `s_x > 0`, the layer still
    computes what it did (its outputs multiplied by theirs) as long as, in each
    equation, the product of `s_x ** power` is 1. Use the class methods to make one.

    Attributes:
        equations: tuple of tuples of pairs: a `keras.KerasTensor` or `keras.Variable`,
            and its power, an int or `fractions.Fraction`.
        reason: str, why something is fixed, or "".
        normalizes: bool, whether it fixes what is normalized.
    """

    equations: tuple[tuple[tuple[Scaled, Any], ...], ...]
    reason: str = ""
    normalizes: bool = False

    @classmethod
    def keep(cls, output: Scaled, *others: Scaled) -> "Relation":
        """Says that all have the same scale: a ReLU, a sum, a concatenation."""
        return cls(tuple(((output, 1), (other, -1)) for other in others))

    @classmethod
    def product(cls, output: Scaled, *factors: Scaled) -> "Relation":
        """Says that the output is linear in each factor: `s_out = s_1 * s_2 * ...`."""
        return cls((((output, 1), *((factor, -1) for factor in factors)),))

    @classmethod
    def ratio(cls, output: Scaled, above: Scaled, below: Scaled) -> "Relation":
        """Says that `s_out = s_above / s_below`."""
        return cls((((output, 1), (above, -1), (below, 1)),))

    @classmethod
    def power(cls, output: Scaled, base: Scaled, exponent: float) -> "Relation":
        """Says that `s_out = s_base ** exponent`: 2 for a square, 0.5 for a root."""
        number = as_number(exponent)
        exact = fractions.Fraction(0)
        if number is not None and math.isfinite(number):
            exact = fractions.Fraction(number).limit_denominator(1000)
        if number is None or not abs(float(exact) - number) <= 1e-12:
            expected = "a fraction with a denominator of at most 1000"
            raise invalid("exponent", expected, exponent)
        return cls((((output, 1), (base, -exact)),))

    @classmethod
    def kernel(
        cls, weight: keras.Variable, source: Scaled, output: Scaled
    ) -> "Relation":
        """Says that a weight multiplies what comes in: `s_out = s_weight * s_in`."""
        return cls.product(output, source, weight)

    @classmethod
    def added(cls, weight: keras.Variable, output: Scaled) -> "Relation":
        """Says that a weight is added, as a bias is: `s_weight = s_out`."""
        return cls.keep(output, weight)

    @classmethod
    def fixed(cls, *things: Scaled, reason: str) -> "Relation":
        """Says that the scale is 1, and why."""
        return cls(tuple(((thing, 1),) for thing in things), reason)

    @classmethod
    def normalized(
        cls, source: Scaled, reason: str = "its input is normalized, up to epsilon"
    ) -> "Relation":
        """Says that a tensor is normalized: its scale has no effect but by epsilon."""
        return cls((((source, 1),),), reason, normalizes=True)

    @property
    def scaled(self) -> list[Scaled]:
        """The tensors and weights that it says something about."""
        return [thing for thing, _ in itertools.chain(*self.equations)]


# What a function registered by the user takes and returns.
Declaration: TypeAlias = Callable[
    [Any, list[keras.KerasTensor], list[keras.KerasTensor]], Sequence[Relation]
]

_DECLARED: dict[type, Declaration] = {}


def register_scaling(layer_class: type, function: Declaration | None) -> None:
    """Declares what the layers of a class do to scale, where it cannot be seen.

    Custom layers made of `keras.ops` and of Keras's layers need no declaration: they
    are seen through. Declare a layer that calls the backend directly, or branches on
    values. A weight that no relation names keeps its value, and a tensor that none
    names keeps its scale. Subclasses need a declaration of their own. What is declared
    is tried on random numbers before anything is changed because of it.

    Args:
        layer_class: The class, a subclass of `keras.Layer`.
        function: Function of the layer, the list of the tensors that a call takes and
            the list of those that it returns (`keras.KerasTensor`), which returns a
            list of `Relation`. `None` takes a declaration back.

    Raises:
        ValueError: If an argument is invalid.

    Examples:
        >>> import keras
        >>> from keras_weissi import scale_groups
        >>> from keras_weissi.symmetry import Relation, register_scaling
        >>> class Twice(keras.layers.Layer):
        ...     def build(self, shape):
        ...         self.w = self.add_weight(shape=(shape[-1], 3), name="w")
        ...     def call(self, x):
        ...         w = keras.ops.convert_to_tensor(self.w)  # what comes next is hidden
        ...         return x @ (w + w)
        >>> def scaling(layer, inputs, outputs):
        ...     return [Relation.kernel(layer.w, inputs[0], outputs[0])]
        >>> register_scaling(Twice, scaling)
        >>> model = keras.Sequential([
        ...     keras.Input((4,)),
        ...     Twice(name="twice"),
        ...     keras.layers.Dense(2, name="out"),
        ... ])
        >>> [edge.kernel.name for edge in scale_groups(model).edges]
        ['twice', 'out']
    """
    is_class = isinstance(layer_class, type) and issubclass(layer_class, keras.Layer)
    if not is_class:
        raise invalid("layer_class", "a subclass of keras.Layer", layer_class)
    if function is None:
        _DECLARED.pop(layer_class, None)
        return
    if not callable(function):
        expected = "a function of (layer, inputs, outputs), or None"
        raise invalid("function", expected, function)
    _DECLARED[layer_class] = function


def is_declared(layer):
    """Whether the class of a layer has a declaration."""
    return type(layer) in _DECLARED


def declared_relations(layer, node):
    """Returns what is declared of a call, and pins what is not mentioned.

    Raises:
        ValueError: If the declaration returns something else than relations between the
            tensors and the weights of the layer.
    """
    name = type(layer).__name__
    inputs, outputs = list(node.input_tensors), list(node.output_tensors)
    relations = _DECLARED[type(layer)](layer, inputs, outputs)
    if not isinstance(relations, (list, tuple)) or not all(
        isinstance(relation, Relation) for relation in relations
    ):
        raise ValueError(
            f"Invalid scaling registered for {name}. Expected a list of Relation. "
            f"Received: {relations!r}"
        )
    known = {id(x) for x in (*inputs, *outputs, *layer.weights)}
    named = {id(x): x for relation in relations for x in relation.scaled}
    if strange := [x for key, x in named.items() if key not in known]:
        raise ValueError(
            f"Invalid scaling registered for {name}. Expected relations between its "
            f"inputs, its outputs and its weights. Received: {strange[0]!r}"
        )
    everything = (*inputs, *outputs, *layer.weights)
    silent = [x for x in everything if id(x) not in named]
    reason = f"the scaling registered for {name} does not name it"
    return [*relations, Relation.fixed(*silent, reason=reason)]
