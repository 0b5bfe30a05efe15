"""Ctrl-C is not lost in a library that swallows it."""

import math
import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest

from skyfx.solver.methods.limits import Limits, TimeUpError, interrupt


@pytest.fixture(autouse=True)
def usual_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_it_is_raised_as_ever() -> None:
    with pytest.raises(KeyboardInterrupt), interrupt():
        signal.raise_signal(signal.SIGINT)


def test_it_is_noted_where_it_is_swallowed_and_no_time_is_left() -> None:
    with interrupt() as noted:
        limits = Limits(interrupt=noted)
        assert limits.left_s == math.inf
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert limits.left_s == 0
    with pytest.raises(TimeUpError):
        limits.check()


def test_the_handler_is_put_back() -> None:
    with interrupt():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_callers_own_stays() -> None:
    came = []
    signal.signal(signal.SIGINT, lambda *_: came.append(True))
    with interrupt() as noted:
        signal.raise_signal(signal.SIGINT)
    assert came == [True]
    assert not noted.came
