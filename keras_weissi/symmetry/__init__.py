"""The scale symmetry of a model as a tool: see it, shift it, balance it."""

from keras_weissi._utils.tables import KernelTable
from keras_weissi.model.scaling import Relation, register_scaling
from keras_weissi.symmetry.checks import check_scaling
from keras_weissi.symmetry.coefficients import (
    CoefficientRow,
    InvariantCoefficients,
    invariant_coefficients,
)
from keras_weissi.symmetry.find_groups import scale_groups
from keras_weissi.symmetry.groups import (
    KernelEdge,
    ScaleGroup,
    ScaleGroups,
    ScaleRelation,
    ScaleStatus,
)
from keras_weissi.symmetry.rescale import RescalingRow, balance_scales, shift_scales
from keras_weissi.symmetry.table import NormRow, norm_table

__all__ = [
    "CoefficientRow",
    "InvariantCoefficients",
    "KernelEdge",
    "KernelTable",
    "NormRow",
    "Relation",
    "RescalingRow",
    "ScaleGroup",
    "ScaleGroups",
    "ScaleRelation",
    "ScaleStatus",
    "balance_scales",
    "check_scaling",
    "invariant_coefficients",
    "norm_table",
    "register_scaling",
    "scale_groups",
    "shift_scales",
]
