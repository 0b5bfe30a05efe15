"""Stages made for a schedule that keeps enough micro-batches live: longer in front, shorter behind.

The cost model's step is the latency and M - 1 bottlenecks: as if a stage had nothing to do while
its first micro-batch goes on to the end and back. With enough of them live it has, forwards:

    stage 0   F0 F1 F2 F3 .. .. B0 .. B1 .. B2 .. B3      forwards while B0 is on its way
    stage 1   .. F0 F1 F2 .. B0 F3 B1 .. B2 .. B3
    stage 2   .. .. F0 B0 F1 B1 F2 B2 F3 B3               nothing to do before F0 has come

What any schedule needs, with f[k], b[k] seconds of stage k and t[j] of the moves behind stage j, is

    step >= sum_{j<k} (f[j] + b[j] + t[j]) + M (f[k] + b[k])     no stage begins before its inputs
    step >= sum_k (f[k] + b[k]) + sum_j t[j] + (M - 1) b[k]      none ends before its backwards

So the later a stage, the less it should have to do. Here cuts and devices change (`cut_moves`) by
annealing on the larger of the two. Steps that are simulated come within a tenth of it.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from skyfx.solver.costs.action_times import ActionTimes
from skyfx.solver.costs.moves import send_s
from skyfx.solver.methods.heuristics.annealing import Assessed, Cooling
from skyfx.solver.problem.instance import Floats, UnitPlacement
from skyfx.solver.problem.interval_tables import live_values, prefix_sums
from skyfx.solver.problem.problem import Problem
from skyfx.solver.refinement.cut_moves import Segments, anneal_cuts, segments_of, stages_of
from skyfx.solver.refinement.in_flight import generate

HOT, COLD = 0.2, 1e-3
"""Temperatures in parts of the step."""

MOVES, MOVES_EACH, SEARCH_S, SEEDS = 20_000, 300, 3.0, 3
"""Of each of so many runs, the moves at the most, and for each unit, and seconds."""


def tapered(problem: Problem, stages: UnitPlacement) -> UnitPlacement:
    """Stages near these of which a simulated step is shorter; these, if none are found.

    Args:
        problem: what is planned, in training and `relay`; memory does not bind.
        stages: the best plan's under 1f1b.
    """
    order, segments = segments_of(stages)
    bound = StepBound(problem, order)
    unit_s, moves = bound.step_s(segments) or 1.0, min(MOVES, MOVES_EACH * len(order))

    def assess(other: Segments) -> Assessed[Segments]:
        step_s = bound.step_s(other)
        return Assessed(step_s / unit_s, step_s, other)

    found = [stages]
    for seed in range(SEEDS):
        cooling = Cooling(moves, HOT, COLD, time.monotonic() + SEARCH_S)
        best = anneal_cuts(problem, segments, assess, cooling, seed) or segments
        found.append(stages_of(order, *best))
    return min(found, key=lambda one: _step_s(problem, one))


def _step_s(problem: Problem, stages: UnitPlacement) -> float:
    """A step by the schedule that is made for these stages."""
    asked = problem.assumptions
    pace = ActionTimes.of(problem.graph, problem.cluster, problem.placement(stages), asked)
    return generate(pace, asked.microbatches, lambda live, timeline: True).step_s


class StepBound:
    """A lower bound on the step of stages under any schedule."""

    def __init__(self, problem: Problem, order: Sequence[int]) -> None:
        self._problem, self._order = problem, order
        self._rounds = problem.assumptions.microbatches
        self._full = problem.assumptions.overlap == "full"
        self._forward, self._backward = map(self._running, ("forward_s", "backward_s"))
        barred = ~problem.allowed | ~np.isfinite(problem.time_s)  # by pins, or without times
        self._barred = prefix_sums(barred[:, order].astype(float))
        self._live_bytes = np.array(live_values(problem, order)[:2])

    def step_s(self, segments: Segments) -> float:
        """The bound in seconds; infinite where a device may not run one of its units."""
        d, ends = np.array(segments[0]), np.array((0, *segments[1]))
        begin, end, cut = ends[:-1], ends[1:], ends[1:-1]
        if (self._barred[d, end] > self._barred[d, begin]).any():
            return float("inf")
        forward = self._forward[d, end] - self._forward[d, begin]
        backward = self._backward[d, end] - self._backward[d, begin]
        there = self._moves(d[:-1], d[1:], cut, 0)
        back = self._moves(d[1:], d[:-1], cut, 1)
        moved_back = self._sizes(cut, 1) * self._problem.wires[1, d[1:], d[:-1]]
        both, moving = forward + backward, there + back
        before = np.concatenate([[0.0], np.cumsum(both[:-1] + moving)])
        latency = before[-1] + both[-1]
        waits = self._rounds - 1
        if self._full:  # moves of other micro-batches go on meanwhile, and no latency holds a link
            again, last = both, max(backward.max(), moved_back.max(initial=0.0))
        else:
            again = both + np.append(moving, 0.0) + np.append(0.0, moving)
            last = (backward + np.append(back, 0.0) + np.append(0.0, back)).max()
        return float(max((before + both + waits * again).max(), latency + waits * last))

    def _moves(self, source: Any, target: Any, cut: Any, way: int) -> Floats:
        """Seconds of what crosses the cuts, forward (0) or back (1)."""
        size_bytes = self._sizes(cut, way)
        moved: Floats = send_s(self._problem.wires[:, source, target], size_bytes > 0, size_bytes)
        return moved

    def _sizes(self, cut: Any, way: int) -> Floats:
        """Bytes of it."""
        sizes: Floats = self._live_bytes[way, cut]
        return sizes

    def _running(self, part: str) -> Floats:
        """Seconds of the units before each cut, `(D, n + 1)`; none where a device may not run."""
        nodes, devices = self._problem.graph.nodes, self._problem.cluster.devices
        units = [self._problem.members[i] for i in self._order]
        of_kind = {
            kind: np.array([sum(getattr(nodes[j], part).get(kind, 0.0) for j in u) for u in units])
            for kind in {device.type for device in devices}
        }
        return prefix_sums(np.array([of_kind[d.type] * d.slowdown for d in devices]))
