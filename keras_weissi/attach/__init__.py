"""Puts a regularizer on the kernels of an existing model."""

from keras_weissi._utils.tables import KernelTable
from keras_weissi.attach.attach import AttachmentRow, deregularize, regularize

__all__ = ["AttachmentRow", "KernelTable", "deregularize", "regularize"]
