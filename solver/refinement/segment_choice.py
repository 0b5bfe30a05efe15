"""Which segments of a plan's stages are recomputed, so that the stages fit and lose least time.

For each stage alone: the cheapest choice of the family that fits, on the segments that lie within
the stage; then those that it can do without are kept again, the dearest first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from skyfx.solver.core.cluster import Device
from skyfx.solver.core.graph import Node
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
from skyfx.solver.refinement.peak_annealing import RESERVE, excesses
from skyfx.solver.refinement.segment_family import Family, segment_family


@dataclass(frozen=True, slots=True)
class Recomputing:
    """Stages with the segments that they recompute.

    Attributes:
        problem: of the graph in which the segments are recomputed.
        candidate: the stages, in the units of that problem.
        segments: of all stages.
        over: by how much the stages do not fit, in parts of their limits; 0 where they fit.
    """

    problem: Problem
    candidate: Candidate
    segments: Sequence[Segment]
    over: float = 0.0


@dataclass(slots=True)
class _StageMemory:
    """A stage whose memory is worked out for one choice of segments after another."""

    members: Sequence[Node]
    around: StageValues
    device: Device
    live: int
    queued: tuple[int, int]
    limit: float


@dataclass(slots=True)
class SegmentChoice:
    """Chooses for any stages of a problem.

    Attributes:
        problem: without recomputation.
        enforce_peaks: whether peaks have to fit as well as `memory_bytes`.
        family: the choices, from few segments to many.
    """

    problem: Problem
    enforce_peaks: bool
    family: Family = ()
    _nodes: dict[str, Node] = field(init=False)
    _again: dict[str, dict[str, RecomputedNode]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.problem.graph
        self._nodes = {node.id: node for node in graph.nodes}
        if not self.family:
            kinds = sorted({device.type for device in self.problem.cluster.devices})
            self.family = segment_family(graph, kinds)

    def choose(self, stages: UnitPlacement, *, sparing: bool = True) -> Recomputing | None:
        """The stages with the segments that they need.

        Args:
            stages: in the units of the problem.
            sparing: whether to keep again what need not be recomputed; else only the cheapest
                choice of the family that fits is taken, which is quicker.

        Returns:
            None where a device cannot run what it is given.
        """
        problem = self.problem
        placement = problem.placement(stages)
        queued = simulate(problem.graph, problem.cluster, placement, problem.assumptions).max_queued
        schedule, count = problem.assumptions.schedule, problem.assumptions.microbatches
        live = in_flight_counts(schedule, len(stages), count)
        chosen, over = list[Segment](), 0.0
        for k, around in enumerate(boundaries(problem.graph, placement)):
            members = [self._nodes[name] for name in placement[k][1]]
            d = stages[k][0]
            device, limit = problem.cluster.devices[d], float(problem.memory_limit[d])
            stage = _StageMemory(members, around, device, live[k], queued[k], limit)
            found, by = self._of_stage(stage, sparing=sparing)
            chosen += found
            over += by
        return self.made(stages, chosen, over)

    def made(
        self, stages: UnitPlacement, segments: Sequence[Segment], over: float = 0.0
    ) -> Recomputing | None:
        """The stages with these segments."""
        problem = self.problem
        graph = with_recomputation(problem.graph, segments)
        changed = Problem(graph, problem.cluster, problem.assumptions)
        units = changed.units_of(problem.placement(stages))
        cost = changed.cost(units)
        if not changed.can_run(cost, units):
            return None
        if not over and not changed.fits(cost, units):
            over = 1e-9
        if self.enforce_peaks and not over:
            over = sum(x.peak_bytes / max(x.limit_bytes, 1.0) - 1 for x in excesses(changed, units))
        return Recomputing(changed, Candidate(units, cost, "recomputation"), segments, over)

    def _of_stage(self, stage: _StageMemory, *, sparing: bool) -> tuple[Sequence[Segment], float]:
        """The segments, and by how much the stage is still too large."""
        if (by := self._over(stage, ())) <= 0:
            return (), 0.0
        own = {node.id for node in stage.members}
        choices = [[x for x in one if x[0] in own and own.issuperset(x)] for one in self.family]
        choices.sort(key=self._seconds_of(stage))
        best: Sequence[Segment] = ()
        for segments in choices:
            over = self._over(stage, segments)
            if over <= 0:
                return self._spared(stage, segments) if sparing else segments, 0.0
            if over < by:
                best, by = segments, over
        return best, by

    def _spared(self, stage: _StageMemory, segments: Sequence[Segment]) -> Sequence[Segment]:
        """Fewer segments with which the stage still fits."""
        seconds = self._seconds_of(stage)

        def per_byte(segment: Segment) -> float:
            again = sum(x.again_bytes for x in self._recomputed(segment).values())
            return seconds([segment]) / max(again, 1.0)

        for one in sorted(segments, key=per_byte, reverse=True):
            fewer = [x for x in segments if x is not one]
            if self._over(stage, fewer) <= 0:
                segments = fewer
        return segments

    def _over(self, stage: _StageMemory, segments: Sequence[Segment]) -> float:
        """By how much the stage does not fit, in parts of its limit; not above 0 where it does."""
        again = dict[str, Node]()
        for segment in segments:
            again |= self._recomputed(segment)
        members = [again.get(node.id, node) for node in stage.members]
        assumptions = self.problem.assumptions
        terms = peak_terms(members, stage.around, assumptions, knows_kept=True)
        own = {node.id for node in members}
        saved = {key: size for x in members for key, size in x.kept.items() if key}
        private = sum(node.kept.get("", 0.0) for node in members)
        within = sum(size for key, size in saved.items() if maker_of(key) in own)
        need = memory_bytes(members, assumptions, live=0) + stage.live * (private + within)
        if self.enforce_peaks:
            need = max(need, (1 + RESERVE) * terms.bytes(stage.live, stage.queued))
        return need / max(stage.limit, 1.0) - 1

    def _seconds_of(self, stage: _StageMemory) -> Callable[[Sequence[Segment]], float]:
        """Of running segments once more, on the stage's device or one of its type."""
        kind = stage.device.type

        def seconds(segments: Sequence[Segment]) -> float:
            return sum(self._nodes[x].forward_s.get(kind, 0.0) for one in segments for x in one)

        return seconds

    def _recomputed(self, segment: Segment) -> dict[str, RecomputedNode]:
        known = self._again.get(segment[0] + segment[-1])
        if known is None:
            known = recomputed_nodes(self._nodes, segment)
            self._again[segment[0] + segment[-1]] = known
        return known
