"""Weight-scale-shift-invariant regularization for Keras 3."""

from keras_weissi.callbacks import NormLogger
from keras_weissi.regularizers import WEISSI

__all__ = ["NormLogger", "WEISSI"]
__version__ = "0.1.0"
