"""Weight-scale-shift-invariant regularization for Keras 3."""

from keras_weissi.attach import deregularize, regularize
from keras_weissi.callbacks import NormLogger, ScaleBalancer
from keras_weissi.regularizers import WEISSI, largest_log_norm
from keras_weissi.symmetry import (
    balance_scales,
    invariant_coefficients,
    norm_table,
    scale_groups,
    shift_scales,
)

__all__ = [
    "NormLogger",
    "ScaleBalancer",
    "WEISSI",
    "balance_scales",
    "deregularize",
    "invariant_coefficients",
    "largest_log_norm",
    "norm_table",
    "regularize",
    "scale_groups",
    "shift_scales",
]
__version__ = "0.2.0"
