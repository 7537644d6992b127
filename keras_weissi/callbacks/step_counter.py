"""Counts the batches of `fit` from what Keras passes to a callback."""

import collections


class StepCounter:
    """Counts batches over the epochs of several calls of `fit`.

    Keras may call the batch hook from several threads, a little out of order.
    """

    def __init__(self):
        self._before_epoch = 0
        # Appending is thread-safe, and the last few suffice to find the largest.
        self._done: collections.deque[int] = collections.deque(maxlen=64)

    @property
    def total(self):
        """Number of all batches so far."""
        return self._before_epoch + max(self._done, default=0)

    @property
    def is_in_epoch(self):
        """Whether batches were counted since the last epoch was closed."""
        return bool(self._done)

    def count(self, batch, together=1, steps=None):
        """Counts the batches up to the one that the hook is called with.

        Args:
            batch: int, the index of the batch in its epoch.
            together: int, the `steps_per_execution` of the model.
            steps: int, the length of the epoch. `None` if Keras does not know it:
                then an incomplete last group counts as complete.
        """
        # Of the batches that are executed together, Keras passes the last or, before
        # 3.9, the first. At the end of an epoch there may be fewer than that.
        is_first = together > 1 and batch % together == 0
        done = batch + (together if is_first else 1)
        self._done.append(min(done, steps or done))

    def close_epoch(self):
        """Ends the epoch: Keras counts the batches of the next from 0 again."""
        self._before_epoch = self.total
        self._done.clear()
