"""Decides what happens to each kernel when a regularizer is set on a model."""

import dataclasses

import keras

from keras_weissi._utils.tables import format_regularizer
from keras_weissi._utils.validation import invalid
from keras_weissi.attach.saved_config import (
    after_loading,
    described,
    places_of,
)
from keras_weissi.model.eligibility import LeftOut, Reason, why_left_out
from keras_weissi.model.kernels import Kernel, attention_around, kernels_and_gammas
from keras_weissi.model.selection import (
    regularizers_by_kernel,
    select_kernels,
    validate_selection,
)
from keras_weissi.regularizers import WEISSI
from keras_weissi.symmetry.coefficients import find_shares
from keras_weissi.symmetry.find_groups import scale_groups


@dataclasses.dataclass(frozen=True)
class Decision:
    """What happens to one kernel."""

    kernel: Kernel
    regularizer: keras.regularizers.Regularizer | None  # what acts on it afterwards
    is_change: bool = False  # whether it is set, or another is removed
    left_out: LeftOut | None = None  # why the kernel does not get one
    is_refused: bool = False  # whether it is left out although the call selected it
    coefficient: float | None = None  # in the invariant penalty
    was: keras.regularizers.Regularizer | None = None  # what a change replaces
    places: tuple[tuple[keras.Layer, str], ...] = ()  # the attributes that keep it
    lost: str = ""  # what is said if it is another one after saving and loading

    @property
    def is_ours(self) -> bool:
        """Whether this call changes it, or an earlier one has put a `WEISSI`."""
        return self.is_change or isinstance(self.regularizer, WEISSI)

    @property
    def is_put(self) -> bool:
        """Whether this call puts a regularizer on the kernel."""
        return self.is_change and self.regularizer is not None


def decide(model, scales, regularizer, layers, include_normalized, replace):
    """Returns a `Decision` for each kernel, and for each gamma that is named.

    The arguments are those of `regularize`, and the `ScaleReport` of the model.
    """
    found = kernels_and_gammas(model)
    asked_for = None
    if layers is not None:
        validate_selection(layers)
        asked_for = {kernel.name for kernel in select_kernels(found, layers)}
    wanted = regularizers_by_kernel(regularizer, found, asked_for or ())
    explicit = asked_for is not None or isinstance(regularizer, dict)
    named = {*(asked_for or ()), *(wanted if isinstance(regularizer, dict) else ())}
    decisions = []
    for kernel in found:
        is_refused = False
        if kernel.is_bare_gamma and kernel.name not in named:
            continue
        if asked_for is not None and kernel.name not in asked_for:
            left_out = LeftOut(Reason.NOT_IN_LAYERS)
        elif wanted.get(kernel.name) is None:
            left_out = LeftOut(Reason.NOT_IN_REGULARIZER)
        else:
            normalization = scales.graph.normalization_of(kernel)
            left_out = why_left_out(
                kernel, normalization, include_normalized, replace, explicit
            )
            is_refused = left_out is not None and (explicit or not left_out.by_default)
        is_change = left_out is None
        gets = wanted[kernel.name] if is_change else kernel.regularizer
        decisions.append(Decision(kernel, gets, is_change, left_out, is_refused))
    return _completed(decisions)


def decide_invariant(model, scales, regularizer, layers, include_normalized, replace):
    """Returns a `Decision` for each kernel, and for each gamma with a coefficient.

    The arguments are those of `decide`.
    """
    is_ours = isinstance(regularizer, WEISSI)
    if not is_ours or "log_norm" not in regularizer.get_config():
        expected = "a WEISSI, as no other penalty is made invariant by coefficients"
        raise invalid("regularizer", expected, regularizer)
    if layers is not None:
        raise invalid("layers", "None, as coefficients are for all kernels", layers)
    groups = scales.groups or scale_groups(model)  # which says why there are none
    shares, _ = find_shares(model, scales.graph, groups, include_normalized, replace)
    decisions = [_decide_share(share, regularizer) for share in shares]
    return _completed(decisions)


def _decide_share(share, regularizer):
    """Returns the `Decision` for a kernel with a coefficient, or without."""
    kernel = share.kernel
    if share.left_out is None:
        config = regularizer.get_config()
        config["log_norm"] *= share.coefficient
        if kernel.kind == "gamma" and "direction_l1" in config:
            config["direction_l1"] = 0.0  # only the norm of a gamma is meant
        scaled = type(regularizer).from_config(config)
        return Decision(kernel, scaled, is_change=True, coefficient=share.coefficient)
    # An earlier penalty that has no coefficient would not be invariant.
    is_removed = isinstance(kernel.regularizer, WEISSI) and share.left_out.by_default
    gets = None if is_removed else kernel.regularizer
    is_refused = not share.left_out.by_default
    return Decision(kernel, gets, is_removed, share.left_out, is_refused)


def _completed(decisions):
    """Adds to each change what it replaces, and where it is kept."""
    completed = []
    for decision in decisions:
        if decision.is_change:
            kernel = decision.kernel
            decision = dataclasses.replace(
                decision,
                was=kernel.regularizer,
                places=tuple(places_of(kernel)),
            )
        completed.append(decision)
    return _agreed_in_attention(completed)


def _agreed_in_attention(decisions):
    """Makes the decisions for the kernels of an attention layer the same.

    If one of them is refused, all are. If the user asked for different ones, it raises.
    """
    by_layer: dict[int, list[int]] = {}
    for index, decision in enumerate(decisions):
        attention = attention_around(decision.kernel)
        if attention is not None:
            by_layer.setdefault(id(attention), []).append(index)
    agreed = list(decisions)
    for indices in by_layer.values():
        changes = [i for i in indices if decisions[i].is_change]
        refused = [decisions[i] for i in indices if decisions[i].is_refused]
        if changes and refused:
            because = f"{refused[0].kernel.name}: {refused[0].left_out}"
            left_out = LeftOut(Reason.SHARES_AN_ARGUMENT, because)
            for i in changes:
                kernel = decisions[i].kernel
                agreed[i] = Decision(kernel, kernel.regularizer, False, left_out, True)
            continue
        different = {described(decisions[i].regularizer) for i in changes}
        if len(different) > 1 or 0 < len(changes) < len(indices):
            attention = attention_around(decisions[indices[0]].kernel)
            raise ValueError(
                "Invalid value for argument `layers` or `regularizer`. Expected the "
                f"same regularizer for every kernel of layer {attention.name!r}, which "
                "keeps only one for all of them: name the layer. Received: different "
                "ones"
            )
    return agreed


def with_losses(decisions, model):
    """Adds to each decision what is lost when the model is saved and loaded.

    The decisions have to be carried out before.
    """
    loaded = after_loading(model, decisions)
    put = {described(d.regularizer) for d in decisions if d.is_change and d.regularizer}
    return [
        dataclasses.replace(decision, lost=_lost(decision, loaded, put))
        for decision in decisions
    ]


def _lost(decision, loaded, put):
    again = loaded.get(id(decision.kernel.variable))
    if again is None:
        return ""
    gets = described(again.regularizer) if again.is_known else "?"
    is_meant = decision.is_ours or gets in put
    if gets == described(decision.regularizer) or not is_meant:
        return ""
    name = type(again.layer).__name__
    if again.regularizer is not None:
        gets = format_regularizer(again.regularizer)
        return f"not saved: {name} is loaded with {gets} on it"
    if decision.regularizer is not None and not places_of(decision.kernel):
        return "not saved: the layer has no argument for it"
    return f"not saved unless {name} saves it"


# Those that take a kernel of any shape.
_TAKE_ALL = (
    type(None),
    WEISSI,
    keras.regularizers.L1,
    keras.regularizers.L2,
    keras.regularizers.L1L2,
)


def check_calls(decisions):
    """Raises if a regularizer fails on a kernel that it is set on."""
    tried = set()
    for decision in decisions:
        variable, regularizer = decision.kernel.variable, decision.regularizer
        shape = tuple(variable.shape)
        is_put = decision.is_change and type(regularizer) not in _TAKE_ALL
        if not is_put or (id(regularizer), shape) in tried:
            continue
        tried.add((id(regularizer), shape))
        try:
            regularizer(variable.value)
        except Exception as error:
            raise ValueError(
                "Invalid value for argument `regularizer`. Expected one that takes "
                f"kernel {decision.kernel.name!r}, of shape {shape} and of rank "
                f"{len(shape)}. Received: {format_regularizer(regularizer)}, which "
                f"raises: {error}"
            ) from error
