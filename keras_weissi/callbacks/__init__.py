"""Callbacks that log and balance the norms of the kernels during `fit`."""

from keras_weissi.callbacks.norm_logger import NormLogger
from keras_weissi.callbacks.scale_balancer import ScaleBalancer

__all__ = ["NormLogger", "ScaleBalancer"]
