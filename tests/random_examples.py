"""Tests of properties that run on few examples by default, and on many if slow."""

import collections

import pytest
from helpers import float64
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# How many examples the slow run of each test has, by module.
COUNTS = collections.defaultdict(dict)


def examples(count, wide=None, some=None, marks=(), **drawn):
    """Runs a test on `count` examples, or on `some` if it is to be quick.

    Args:
        count: int.
        wide: Dict of strategies for a quarter of the examples, which runs in
            `float64()`. That is entered once, as JAX then compiles everything anew.
        some: int. Defaults to a twentieth of `count`.
        marks: Of the run on `count` examples, besides `slow`.
        **drawn: Strategies for the arguments of the test.
    """

    if wide is not None:
        count //= 2  # what is built and traced takes most of the time

    def decorate(test):
        COUNTS[test.__module__][test.__name__] = count

        def check(number, strategies):
            seen = []

            @settings(
                max_examples=number,
                suppress_health_check=list(HealthCheck),  # counted below
            )
            @given(st.fixed_dictionaries(strategies))
            def body(arguments):
                seen.append(None)
                test(**arguments)

            body()
            assert len(seen) >= number

        def run(number):
            if wide is not None:
                with float64():
                    check(number // 4, wide)
                number -= number // 4
            check(number, drawn)

        run.__name__ = test.__name__
        run.__doc__ = test.__doc__
        numbers = [
            pytest.param(some or count // 20, id="some"),
            pytest.param(count, id="all", marks=[pytest.mark.slow, *marks]),
        ]
        return pytest.mark.parametrize("number", numbers)(run)

    return decorate
