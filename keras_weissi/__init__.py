"""Weight-scale-shift-invariant regularization for Keras 3."""

from keras_weissi.attach import deregularize, regularize
from keras_weissi.callbacks import NormLogger
from keras_weissi.norms import norm_table
from keras_weissi.regularizers import WEISSI

__all__ = ["NormLogger", "WEISSI", "deregularize", "norm_table", "regularize"]
__version__ = "0.1.0"
