"""Puts a regularizer on the kernels of an existing model."""

from keras_weissi._utils.tables import KernelTable
from keras_weissi.attach.attach import deregularize, regularize
from keras_weissi.attach.report import AttachmentRow

__all__ = ["AttachmentRow", "KernelTable", "deregularize", "regularize"]
