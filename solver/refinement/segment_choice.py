"""Which segments of a plan's stages are recomputed, so that the stages fit and lose least time.

For each stage alone: the runs that are best at the lowest price at which it fits; then what it can
do without is kept again, the dearest first.
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from skyfx.solver.core.cluster import Device
from skyfx.solver.core.graph import Graph, Node
from skyfx.solver.core.schedule import in_flight_counts
from skyfx.solver.costs.cost_model import memory_bytes
from skyfx.solver.costs.peak_memory import StageValues, boundaries, peak_terms
from skyfx.solver.costs.recomputation import (
    RecomputedNode,
    Segment,
    maker_of,
    recomputed_nodes,
    with_recomputation,
)
from skyfx.solver.costs.simulator import simulate
from skyfx.solver.methods.method import Candidate
from skyfx.solver.problem.instance import UnitPlacement
from skyfx.solver.problem.problem import Problem
from skyfx.solver.refinement.order_estimate import OrderEstimate
from skyfx.solver.refinement.peak_excess import RESERVE, excesses
from skyfx.solver.refinement.segment_runs import SegmentRuns

PARTS = (1, 1 / 2, 1 / 4, 1 / 8, 1 / 16)
"""A run keeps at most one of these parts of what its stage keeps, while its backward runs."""

ROUNDS = 3
"""How often segments are chosen for the messages that wait with those chosen before."""


@dataclass(frozen=True, slots=True)
class Recomputing:
    """Stages with the segments that they recompute.

    Attributes:
        problem: of the graph in which the segments are recomputed.
        candidate: the stages, in the units of that problem.
        segments: of all stages.
        needs: seconds for which each stage runs nodes again, and by how much it is too large, in
            parts of its limit, `(num_stages,)`.
        over: by how much all of them do not fit; 0 where they fit.
    """

    problem: Problem
    candidate: Candidate
    segments: Sequence[Segment]
    needs: Sequence[tuple[float, float]]
    over: float = 0.0


@dataclass(frozen=True, slots=True)
class _StageMemory:
    """A stage whose memory is worked out for one choice of segments after another."""

    members: Sequence[Node]
    around: StageValues
    device: Device
    live: int
    queued: tuple[int, int]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(node.id for node in self.members)

    @property
    def limit(self) -> float:
        limit = self.device.memory_bytes
        return math.inf if limit is None else max(1.0, limit)

    @property
    def key(self) -> Hashable:
        """The same for stages of which the same is chosen."""
        around = (tuple(x.id for x in part) for part in (self.around.before, self.around.after))
        kind = (self.device.type, self.device.slowdown, self.device.memory_bytes)
        return self.names, *around, bool(self.around.sent), *kind, self.live, self.queued

    def seconds(self, segments: Sequence[Segment]) -> float:
        """Of running segments once more."""
        again = {name for segment in segments for name in segment}
        kind = self.device.type
        return self.device.slowdown * sum(
            node.forward_s.get(kind, 0.0) for node in self.members if node.id in again
        )


@dataclass(slots=True)
class SegmentChoice:
    """Chooses for any stages of a problem.

    Attributes:
        problem: without recomputation.
        runs: of which segments are chosen.
        enforce_peaks: whether peaks have to fit as well as `memory_bytes`.
    """

    problem: Problem
    runs: SegmentRuns
    enforce_peaks: bool
    _nodes: dict[str, Node] = field(init=False)
    _knows_kept: bool = field(init=False)
    _again: dict[tuple[str, ...], dict[str, RecomputedNode]] = field(
        init=False, default_factory=dict
    )
    _chosen: dict[Hashable, tuple[Sequence[Segment], float]] = field(
        init=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        nodes = self.problem.graph.nodes
        self._nodes = {node.id: node for node in nodes}
        self._knows_kept = any(node.kept for node in nodes)

    def estimate(self, order: Sequence[int]) -> OrderEstimate:
        """About what stages cost that are parts of an order of the units."""
        return OrderEstimate(self.problem, self.runs, order, enforce_peaks=self.enforce_peaks)

    def choose(self, stages: UnitPlacement) -> Recomputing | None:
        """The stages, in the units of the problem, with the segments that they need.

        None where a device cannot run what it is given.
        """
        graph, found = self.problem.graph, None
        queued = [(0, 0)] * len(stages)
        for _ in range(ROUNDS):  # stages that recompute wait for other messages
            queued = [
                (max(a, c), max(b, d))
                for (a, b), (c, d) in zip(queued, self._max_queued(graph, stages), strict=True)
            ]
            chosen, needs = list[Segment](), list[tuple[float, float]]()
            for stage in self._stages(stages, queued):
                key = stage.key
                if key not in self._chosen:
                    self._chosen[key] = self._of_stage(stage)
                segments, by = self._chosen[key]
                chosen += segments
                needs.append((stage.seconds(segments), by))
            over = sum(by for _, by in needs)
            found = self._made(stages, chosen, needs)
            if found is None or over or not found.over:
                break
            graph = found.problem.graph
        return found

    def _max_queued(self, graph: Graph, stages: UnitPlacement) -> Sequence[tuple[int, int]]:
        problem, placement = self.problem, self.problem.placement(stages)
        return simulate(graph, problem.cluster, placement, problem.assumptions).max_queued

    def _stages(
        self, stages: UnitPlacement, queued: Sequence[tuple[int, int]]
    ) -> Iterator[_StageMemory]:
        problem, placement = self.problem, self.problem.placement(stages)
        schedule, count = problem.assumptions.schedule, problem.assumptions.microbatches
        live = in_flight_counts(schedule, len(stages), count)
        for k, around in enumerate(boundaries(problem.graph, placement)):
            members = [self._nodes[name] for name in placement[k][1]]
            device = problem.cluster.devices[stages[k][0]]
            yield _StageMemory(members, around, device, live[k], queued[k])

    def _made(
        self,
        stages: UnitPlacement,
        segments: Sequence[Segment],
        needs: Sequence[tuple[float, float]],
    ) -> Recomputing | None:
        """The stages with these segments."""
        problem = self.problem
        graph = with_recomputation(problem.graph, segments)
        changed = problem
        if graph is not problem.graph:
            changed = Problem(graph, problem.cluster, problem.assumptions)
        units = changed.units_of(problem.placement(stages))
        cost = changed.cost(units)
        if not changed.can_run(cost, units):
            return None
        over = sum(by for _, by in needs)
        if not over and not changed.fits(cost, units):
            over = 1e-9
        if self.enforce_peaks and not over:
            over = sum(x.peak_bytes / max(x.limit_bytes, 1.0) - 1 for x in excesses(changed, units))
        method = "recomputation" if segments else "fitting"
        return Recomputing(changed, Candidate(units, cost, method), segments, needs, over)

    def _of_stage(self, stage: _StageMemory) -> tuple[Sequence[Segment], float]:
        """The segments, and by how much the stage is still too large."""
        prices, by = self.runs.prices, self._over(stage, ())
        if by <= 0 or not prices:
            return (), max(0.0, by)
        own, saved = frozenset(stage.names), sum(sum(x.kept.values()) for x in stage.members)
        fitting, best = list[Sequence[Segment]](), (list[Segment](), by)
        for part in PARTS:
            low, high = 0, len(prices)  # the lowest price at which the stage fits
            while low < high:
                middle = (low + high) // 2
                segments = self.runs.best(prices[middle], part * saved, own)
                over = self._over(stage, segments)
                if over <= 0:
                    fitting.append(segments)
                    high = middle
                else:
                    best = min(best, (segments, over), key=lambda x: x[1])
                    low = middle + 1
        if not fitting:
            return best
        return self._spared(stage, min(fitting, key=stage.seconds)), 0.0

    def _spared(self, stage: _StageMemory, segments: Sequence[Segment]) -> Sequence[Segment]:
        """Fewer and shorter segments with which the stage still fits."""

        def per_byte(segment: Segment) -> float:
            again = sum(x.again_bytes for x in self._recomputed(segment).values())
            return stage.seconds([segment]) / max(again, 1.0)

        for one in sorted(segments, key=per_byte, reverse=True):
            rest = [x for x in segments if x is not one]
            if self._over(stage, rest) <= 0:
                segments = rest
                continue
            shorter = self.runs.within(one)
            for other in sorted(shorter, key=lambda x: stage.seconds([x])):
                if stage.seconds([other]) >= stage.seconds([one]):
                    break
                if self._over(stage, [*rest, other]) <= 0:
                    segments = [*rest, other]
                    break
        return segments

    def _over(self, stage: _StageMemory, segments: Sequence[Segment]) -> float:
        """By how much the stage does not fit, in parts of its limit; not above 0 where it does."""
        again = dict[str, Node]()
        for segment in segments:
            again |= self._recomputed(segment)
        members = [again.get(node.id, node) for node in stage.members]
        assumptions = self.problem.assumptions
        need = memory_bytes(members, assumptions, live=0)
        if assumptions.training:
            need += stage.live * self._kept_bytes(members)
        if self.enforce_peaks:
            known = self._knows_kept
            terms = peak_terms(members, stage.around, assumptions, knows_kept=known)
            need = max(need, (1 + RESERVE) * terms.bytes(stage.live, stage.queued))
        return need / stage.limit - 1

    def _kept_bytes(self, members: Sequence[Node]) -> float:
        """What nodes keep of a micro-batch, without what other stages have made."""
        if not self._knows_kept:
            return sum(node.saved_bytes for node in members)
        own = {node.id for node in members}
        saved = {key: size for x in members for key, size in x.kept.items() if key}
        private = sum(node.kept.get("", 0.0) for node in members)
        return private + sum(size for key, size in saved.items() if maker_of(key) in own)

    def _recomputed(self, segment: Segment) -> dict[str, RecomputedNode]:
        known = self._again.get(tuple(segment))
        if known is None:
            known = self._again[tuple(segment)] = recomputed_nodes(self._nodes, segment)
        return known
