"""What is in a model: its kernels, their names and norms, and its layer graph."""

from keras_weissi.model.kernels import Kernel

__all__ = ["Kernel"]
