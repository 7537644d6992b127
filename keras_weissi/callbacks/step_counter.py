"""Counts the batches of a `fit` by what Keras tells a callback about them."""

import collections


class StepCounter:
    """Counts batches over the epochs of one `fit` after the other.

    Keras may call the batch hook from several threads, a little out of order.

    Args:
        before: int, the number of batches that were counted earlier. Defaults to `0`.
    """

    def __init__(self, before=0):
        self._before_epoch = before
        # Appending is safe there, and the last few are enough to know the greatest.
        self._done: collections.deque[int] = collections.deque(maxlen=64)

    @property
    def total(self):
        """Number of all batches so far."""
        return self._before_epoch + max(self._done, default=0)

    @property
    def is_in_epoch(self):
        """Whether there were batches since the last epoch was closed."""
        return bool(self._done)

    def count(self, batch, together=1, steps=None):
        """Counts the batches up to one that the hook is called with.

        Args:
            batch: int, which Keras counts from 0 in every epoch.
            together: int, the `steps_per_execution` of the model.
            steps: int, the length of the epoch; `None` if Keras does not know it.
        """
        # Of the batches that are executed together, Keras names the last or, before
        # 3.9, the first. At the end of an epoch there may be fewer than it says.
        is_first = together > 1 and batch % together == 0
        done = batch + (together if is_first else 1)
        self._done.append(min(done, steps or done))

    def close_epoch(self):
        """Begins to count from 0 again with the next batch, as Keras does."""
        self._before_epoch = self.total
        self._done.clear()
