"""Several processes that train one model together: what each may do and see."""

import sys

import keras
import numpy as np


def is_first_process():
    """Whether this process is the one that draws and writes for all.

    True where there is just one, and for the one of rank 0 in `torch.distributed` or
    of index 0 in `jax.distributed`, which `keras.distribution.initialize` starts.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.process_index() == 0
    # What nobody has imported, nobody has started.
    if backend == "torch" and "torch.distributed" in sys.modules:
        distributed = sys.modules["torch.distributed"]
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank() == 0
    return True


def of_first_process(number):
    """Returns an int of the first process to all that hold parts of one model.

    All of them have to call it. Elsewhere, the number is what it is.
    """
    if keras.backend.backend() == "jax":
        import jax

        if jax.process_count() > 1:
            from jax.experimental.multihost_utils import broadcast_one_to_all

            return int(broadcast_one_to_all(np.int32(number)))
    return number


def to_numpy(tensor):
    """Returns a tensor as a NumPy array, also if other processes have parts of it.

    In that case all of them have to call it.
    """
    if not getattr(tensor, "is_fully_addressable", True):
        if not tensor.is_fully_replicated:
            from jax.experimental.multihost_utils import process_allgather

            return process_allgather(tensor, tiled=True)
    return keras.ops.convert_to_numpy(tensor)
