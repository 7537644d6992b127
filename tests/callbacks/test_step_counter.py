import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_weissi.callbacks.step_counter import StepCounter


def test_counts_through_the_epochs():
    counter = StepCounter()
    assert counter.total == 0
    for batch in range(5):
        counter.count(batch)
        assert counter.total == batch + 1
    counter.close_epoch()
    assert counter.total == 5
    counter.count(0)
    assert counter.total == 6


def test_knows_whether_an_epoch_is_open():
    counter = StepCounter()
    assert not counter.is_in_epoch
    counter.count(0)
    assert counter.is_in_epoch
    counter.close_epoch()
    assert not counter.is_in_epoch


@pytest.mark.parametrize("named", ["first", "last"])
@given(steps=st.integers(1, 40), together=st.integers(1, 9), epochs=st.integers(1, 3))
def test_batches_that_are_executed_together(named, steps, together, epochs):
    counter = StepCounter()
    trained = 0
    for _ in range(epochs):
        for begin in range(0, steps, together):
            end = min(begin + together, steps)
            trained += end - begin
            # Keras gives the last of as many as it was asked for, if there are or not.
            last = begin + together - 1
            counter.count(begin if named == "first" else last, together, steps)
            assert counter.total == trained
        counter.close_epoch()


@given(st.permutations(range(20)), st.integers(0, 100))
def test_the_order_within_an_epoch_does_not_matter(batches, before):
    counter = StepCounter()
    for batch in range(before):
        counter.count(batch)
    counter.close_epoch()
    for batch in batches:
        counter.count(batch)
    assert counter.total == before + 20


def test_what_is_kept_does_not_grow():
    def size(batches):
        counter = StepCounter()
        for batch in range(batches):
            counter.count(batch)
        assert counter.total == batches
        return len(pickle.dumps(counter))

    # An int of two bytes more in each of those kept is all.
    assert size(10_000) < 2 * size(200)
