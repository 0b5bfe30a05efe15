"""Bisection against the least T that is known."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyfx.solver.methods.bisection import (
    BLOCK_PHASES,
    INTERVAL_DUAL,
    INTERVAL_LABELS,
    INTERVALS,
    LABELS,
    LEVELS,
    ORDER_SPLIT,
    Bisection,
    Policy,
)

POLICIES = (
    BLOCK_PHASES,
    INTERVAL_DUAL,
    INTERVAL_LABELS,
    INTERVALS,
    LABELS,
    LEVELS,
    ORDER_SPLIT,
)


def run(search: Bisection, least: float, *, exact: bool = False) -> list[float]:
    """All T, where a plan can keep T from `least` on; with `exact` that plan is found.

    Without, it is known to exist but not found.
    """
    tried = []
    for bottleneck in search:
        tried.append(bottleneck)
        if bottleneck < least:
            search.low = bottleneck
        else:
            search.keep(bottleneck, least if exact else math.inf)
    return tried


@given(
    st.sampled_from(POLICIES),
    st.floats(1e-6, 1e6),
    st.floats(0.01, 1.0),
    st.floats(1.0, 100.0),
    st.booleans(),
)
def test_it_ends_within_the_tolerance_around_the_least(
    policy: Policy, least: float, below: float, above: float, exact: bool
) -> None:
    search = Bisection(least * below, least * above, policy)
    tried = run(search, least, exact=exact)
    assert search.low <= least <= search.high <= search.low * (1 + policy.tolerance)
    assert len(tried) < 200


@pytest.mark.parametrize("policy", [LABELS, LEVELS])
def test_zero_is_tried_first_where_no_multiple_of_the_lower_end_is_above_it(
    policy: Policy,
) -> None:
    search = Bisection(0.0, 8.0, policy)
    tried = run(search, 0.0)
    assert tried == [0.0]
    assert search.high == 0.0
    tried = run(search := Bisection(0.0, 8.0, policy), 3.0, exact=True)
    assert tried[:2] == [0.0, 4.0]
    assert search.high == 3.0


def test_t_rises_above_the_lower_end_by_no_more_than_the_policy_allows() -> None:
    assert next(iter(Bisection(1.0, 100.0, LEVELS))) == pytest.approx(1.1)
    assert next(iter(Bisection(1.0, 100.0, LEVELS, floor=30.0))) == pytest.approx(30.0)
    assert next(iter(Bisection(1.0, 100.0, LEVELS, floor=90.0))) == pytest.approx(50.5)
    assert next(iter(Bisection(1.0, math.inf, LABELS))) == pytest.approx(1.3)
    assert next(iter(Bisection(1.0, 100.0, ORDER_SPLIT))) == pytest.approx(50.5)


def test_near_a_plan_one_t_just_below_it_proves_it() -> None:
    search = Bisection(0.9985, 1.0, LEVELS)
    assert len(run(search, 1.0)) == 1
    assert search.low < 1.0 == search.high


def test_near_a_bound_without_a_plan_it_goes_on_halving() -> None:
    search = Bisection(1.0, 1.0025, LEVELS)
    for bottleneck in search:
        search.keep(bottleneck, math.inf)
        break
    assert not search.reached
    assert next(iter(search)) == pytest.approx((1.0 + search.high) / 2, abs=1e-12)
