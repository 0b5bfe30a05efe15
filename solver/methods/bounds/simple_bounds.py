"""Lower bounds that need no search."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from skyfx.solver.methods.method import Bound
from skyfx.solver.problem.problem import Problem


def simple_bound(problem: Problem) -> Bound:
    """The best of the simple bounds on the objective."""
    bottleneck = bottleneck_bound(problem)
    if problem.assumptions.objective == "throughput":
        return bottleneck
    if problem.assumptions.objective == "latency":
        latency = float(problem.time_s.min(axis=0).sum())
        return Bound(latency, "every unit on its fastest device")
    return step_bound(problem, bottleneck)


def bottleneck_bound(problem: Problem) -> Bound:
    """The best of the simple bounds on the bottleneck."""
    return max(largest_unit(problem), total_work(problem), key=lambda bound: bound.value)


def step_bound(problem: Problem, bottleneck: Bound) -> Bound:
    """On a step, from one on the bottleneck T.

    A step is the latency and M - 1 bottlenecks, and no device does more of the latency than T. With
    any y >= 0 of which the sum is at most M - 1,

        sum_d load[d] + (M - 1) T >= sum_d (1 + y[d]) load[d] + (M - 1 - sum_d y[d]) T
                                  >= sum_i min_d (1 + y[d]) time[d,i] + (M - 1 - sum_d y[d]) T

    Where devices differ by a factor alone, the best y make (1 + y[d]) / speed[d] the same for some
    of the fastest devices, and no lower than for the next one. Each such y is tried, with y = 0.
    """
    rounds, time = problem.assumptions.microbatches - 1, problem.time_s

    def proven(y: NDArray[np.float64]) -> float:
        left = rounds - float(y.sum())
        waits_s = left * bottleneck.value if left > 0 else 0.0  # not 0 times infinity
        return float(least_weighted(time, 1 + y).sum()) + waits_s

    return Bound(
        max(proven(y) for y in water_levels(problem, rounds)),
        f"work spread over the devices, then {bottleneck.binding}",
    )


def water_levels(problem: Problem, rounds: float = math.inf) -> Iterator[NDArray[np.float64]]:
    """The y to try, `(D,)`: their sums grow from 0 to at most `rounds`."""
    speed = _speeds(problem)
    yield np.zeros(len(problem.time_s))
    if speed is None:
        return
    fastest = np.flatnonzero(speed > 0)
    fastest = fastest[np.argsort(-speed[fastest], kind="stable")]
    for count in range(1, len(fastest) + 1):
        some = speed[fastest[:count]]
        # Up to the sum, or until the next device is as expensive.
        level = (rounds + count) / some.sum()
        if count < len(fastest):
            level = min(level, 1 / speed[fastest[count]])
        y = np.zeros(len(speed))
        y[fastest[:count]] = np.maximum(0.0, level * some - 1)
        if not y.sum() <= rounds * (1 + 1e-12) or math.isinf(level):
            return
        yield y


def largest_unit(problem: Problem) -> Bound:
    """Some stage holds the unit that is slowest on its fastest device."""
    return Bound(float(problem.time_s.min(axis=0).max()), "largest unit")


def total_work(problem: Problem) -> Bound:
    """All devices together are no faster than the sum of their speeds.

    With any weights w >= 0, `T sum_d w[d] >= sum_d w[d] load[d] >= sum_i min_d w[d] time[d,i]`: the
    dual of spreading all units freely. Each device's weight is its speed over all units, which
    is the best choice where devices differ by a factor alone.
    """
    time, speed = problem.time_s, _speeds(problem)
    if speed is None:
        return Bound(0.0, "total work")
    bottleneck_s = float(least_weighted(time, speed).sum() / speed.sum())
    return Bound(bottleneck_s, "total work over total speed")


def least_weighted(time: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """The least weighted time of each unit, `(n,)`, infinite for one that runs nowhere."""
    with np.errstate(invalid="ignore"):  # no weight makes a device run what it cannot
        weighted = np.where(np.isfinite(time), weight[:, None] * time, np.inf)
    least: NDArray[np.float64] = weighted.min(axis=0)
    return least


def _speeds(problem: Problem) -> NDArray[np.float64] | None:
    """How often per second each device does all the work that it can, 0 where it can do none.

    None where a device has no work: it would have infinite speed, and with it nothing is bounded.
    """
    time = problem.time_s
    work = np.where(np.isfinite(time), time, 0.0).sum(axis=1)
    runs = np.isfinite(time).any(axis=1)
    if not np.all(work[runs] > 0):
        return None
    return np.where(runs, 1.0 / np.where(work > 0, work, 1.0), 0.0)
