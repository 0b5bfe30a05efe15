"""Annealing: what it keeps, and what it never returns."""

import math

import numpy as np

from skyfx.solver.methods.heuristics.annealing import Assessed, Cooling, anneal

COOLING = Cooling(moves=400, hot=3.0, cold=1e-3, deadline=math.inf)


def walk(state: int, values: dict[int, float]) -> int | None:
    """From a number to its neighbours; `values` says which have a result."""
    random = np.random.default_rng(0)
    return anneal(
        state,
        lambda x: x + int(random.choice((-1, 1))),
        lambda x: Assessed(abs(x - 7.0), values.get(x, math.inf), x),
        COOLING,
        random,
    )


def test_the_best_result_is_returned_and_not_the_last_state() -> None:
    assert walk(0, {3: 1.0, 7: 2.0, 8: 5.0}) == 3


def test_the_first_state_can_be_the_best() -> None:
    assert walk(0, {0: 1.0, 7: 2.0}) == 0


def test_a_state_without_a_result_is_never_returned() -> None:
    assert walk(7, {}) is None
    assert walk(0, {5: 1.0}) == 5


def test_no_time_leaves_the_first_state() -> None:
    over = Cooling(moves=10, hot=1.0, cold=0.1, deadline=-math.inf)
    random = np.random.default_rng(0)
    assert anneal(1, lambda x: x + 1, lambda x: Assessed(0.0, float(-x), x), over, random) == 1
