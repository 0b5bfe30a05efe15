"""Lower bounds that need no search: what no plan can be faster than."""

from dataclasses import dataclass

import numpy as np

from skyfx.solver.problem import Problem

__all__: list[str] = ["Bound", "simple_bound"]


@dataclass(frozen=True, slots=True)
class Bound:
    """A proven lower bound in seconds, and the name of what proves it."""

    value: float
    binding: str


def simple_bound(problem: Problem) -> Bound:
    """The best of the simple bounds on the objective."""
    bottleneck = max(largest_unit(problem), total_work(problem), key=lambda bound: bound.value)
    if problem.assumptions.objective == "throughput":
        return bottleneck
    latency = float(problem.time_s.min(axis=0).sum())
    if problem.assumptions.objective == "latency":
        return Bound(latency, "every unit on its fastest device")
    rounds = problem.assumptions.microbatches - 1
    return Bound(
        latency + rounds * bottleneck.value,
        f"every unit on its fastest device, then {bottleneck.binding}",
    )


def largest_unit(problem: Problem) -> Bound:
    """Some stage holds the unit that is slowest on its fastest device."""
    return Bound(float(problem.time_s.min(axis=0).max()), "largest unit")


def total_work(problem: Problem) -> Bound:
    """All devices together are no faster than the sum of their speeds.

    With any weights w >= 0, `T sum_d w[d] >= sum_d w[d] load[d] >= sum_i min_d w[d] time[d,i]`: the
    dual of spreading all units freely. Each device's weight is its speed over all units, which
    is the best choice where devices differ by a factor alone.
    """
    time = problem.time_s
    work = np.where(np.isfinite(time), time, 0.0).sum(axis=1)
    runs = np.isfinite(time).any(axis=1)
    # A device without work for any unit would have infinite speed: with it, nothing is bounded.
    if not np.all(work[runs] > 0):
        return Bound(0.0, "total work")
    speed = np.where(runs, 1.0 / np.where(work > 0, work, 1.0), 0.0)
    with np.errstate(invalid="ignore"):
        weighted = np.where(np.isfinite(time), speed[:, None] * time, np.inf)
    return Bound(float(weighted.min(axis=0).sum() / speed.sum()), "total work over total speed")
