"""What is in a model: its kernels, their names and norms, and its layer graph."""

from keras_weissi._utils.tables import KernelTable
from keras_weissi.model.kernels import Kernel
from keras_weissi.model.table import NormRow, norm_table

__all__ = ["Kernel", "KernelTable", "NormRow", "norm_table"]
