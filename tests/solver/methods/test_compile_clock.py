"""The time for which kernels are compiled is no limit's."""

import time

import pytest
from numba import njit

from skyfx.solver.methods.limits import Limits


def test_compiling_costs_no_time_of_the_limit() -> None:
    @njit
    def inner(x: float) -> float:
        return x * 2.0

    @njit
    def kernel(x: float) -> float:
        return inner(x) + 1.0

    limits = Limits(began=time.monotonic(), time_limit_s=100.0)
    before = time.monotonic()
    assert kernel(1.0) == 3.0
    took = time.monotonic() - before
    assert limits.compiled_s == pytest.approx(took, rel=0.2)
    assert limits.left_s == pytest.approx(100.0, abs=0.2 * took)


def test_limits_made_later_know_nothing_of_it() -> None:
    Limits()
    assert Limits().compiled_s == 0.0
