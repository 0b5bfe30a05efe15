"""The fit to calibration segments has the least sum of absolute errors there is."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from skyfx.measurement.calibration_fit import TIE_WEIGHTS, Segment, fit, least_absolute
from tests.support.tiers import cases


def test_a_fit_finds_factor_and_overhead_and_is_not_led_astray_by_one_disturbance() -> None:
    pairs = [(1e-3, 5), (2e-3, 40), (8e-3, 11), (3e-2, 90), (0.1, 30), (0.2, 300), (0.15, 4)]
    segments = [Segment(1.25 * alone + 2e-6 * nodes, alone, nodes) for alone, nodes in pairs]
    found = fit([*segments, Segment(0.9, 0.05, 20)])
    assert found is not None
    assert found.factor == pytest.approx(1.25, rel=1e-9)
    assert found.overhead_s == pytest.approx(2e-6, rel=1e-6)
    assert found.error < 1e-9 < found.error_p90
    assert fit(segments[:2]) is None


def test_a_fit_is_never_below_zero() -> None:
    found = fit([Segment(2e-3, 1e-3, n) for n in (90, 50, 10, 1)])
    assert found is not None
    assert found.factor == pytest.approx(2.0, rel=1e-9)
    assert found.overhead_s == 0


def test_no_overhead_is_found_that_dispatch_cannot_take() -> None:
    """As on a CPU with many threads, where large operators next to each other are slower."""
    segments = [Segment(n * 4e-3, n * 1e-3, n) for n in range(1, 13)]
    found = fit(segments)
    assert found is not None
    assert found.factor == pytest.approx(4.0, rel=1e-9)
    assert found.overhead_s == pytest.approx(0.0, abs=1e-15)


def test_operators_bear_what_a_call_does_as_in_the_longest_segment() -> None:
    """A call takes 10 ms whatever is in it; the longest segment 0.2 s beside."""
    found = fit([Segment(0.01 + alone, alone, 10) for alone in (0.01, 0.02, 0.05, 0.1, 0.2)])
    assert found is not None
    assert found.factor == pytest.approx(1.05, rel=1e-9)
    assert found.overhead_s == pytest.approx(0.0, abs=1e-12)


def test_of_equally_good_fits_the_one_without_cost_of_a_call_is_taken() -> None:
    """All segments are equal, so any mixture of the three numbers has no error."""
    found = least_absolute(np.array([[0.5, 0.7, 10.0]] * 6), TIE_WEIGHTS)
    assert found == pytest.approx([2.0, 0.0, 0.0], abs=1e-12)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_of_equally_good_factors_the_least_is_taken_in_any_order(order: tuple[int, ...]) -> None:
    """Every factor from 1 to 1.67 has the same sum of errors, 1."""
    rows = np.array([[1.0, 1.0, 1.0], [0.6, 0.6, 0.6], [0.4, 0.4, 0.4]])
    found = least_absolute(rows[list(order)], TIE_WEIGHTS)
    assert found == pytest.approx([1.0, 0.0, 0.0], abs=1e-12)


def by_vertices(rows: NDArray[Any]) -> float:
    """The least sum of errors of all points where as many rows or bounds hold as there are numbers.

    One of these points is a best one.
    """
    planes = np.vstack([rows, np.eye(rows.shape[1])])
    sides = np.concatenate([np.ones(len(rows)), np.zeros(rows.shape[1])])
    least = np.inf
    for some in map(list, itertools.combinations(range(len(planes)), rows.shape[1])):
        if abs(np.linalg.det(planes[some])) > 1e-9:
            x = np.linalg.solve(planes[some], sides[some])
            if (x >= -1e-9).all():
                least = min(least, np.abs(rows @ x - 1).sum())
    return float(least)


@cases(100)
@given(
    st.lists(
        st.tuples(*(st.integers(1, 40).map(lambda k: k / 16) for _ in range(3))),
        min_size=4,
        max_size=9,
    )
)
def test_no_point_has_a_smaller_sum_of_errors(rows: list[tuple[float, float, float]]) -> None:
    table = np.array(rows)
    found = least_absolute(table, TIE_WEIGHTS)
    assert (found >= 0).all()
    sum_of_errors = float(np.abs(table @ found - 1).sum())
    assert sum_of_errors == pytest.approx(by_vertices(table), rel=1e-4, abs=1e-4)
