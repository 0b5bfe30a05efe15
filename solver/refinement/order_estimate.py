"""About what stages cost with what they have to recompute: for searches over the cuts of an order.

All that a stage needs depends on where it begins and ends, so it is worked out once for each pair,
for one end after another:

    order of the nodes    a b c d e f g h         end     g
                              | . . . |           begin   f, e, d, ... as far as it is asked for
"""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from skyfx.solver.core.graph import Node
from skyfx.solver.core.schedule import in_flight_counts
from skyfx.solver.costs.cost_model import stage_s, step_s
from skyfx.solver.costs.peak_memory import LOSS_COPIES, POSTED, HeldGradients, PeakTerms
from skyfx.solver.costs.recomputation import maker_of
from skyfx.solver.problem.interval_tables import interval_tables, move, prefix_sums
from skyfx.solver.problem.problem import Problem
from skyfx.solver.refinement.cut_moves import Segments
from skyfx.solver.refinement.peak_excess import RESERVE
from skyfx.solver.refinement.recompute_levels import RecomputeLevels
from skyfx.solver.refinement.segment_runs import SegmentRuns

QUEUED = (1, 1)
"""Messages that wait in a forward and in a backward, where no step is simulated."""

MOST_OPTIMISM = 0.5
"""The least part of what a stage seems to need that it is taken to need."""


@dataclass(frozen=True, slots=True)
class _Line:
    """The nodes of a graph in an order.

    Attributes:
        nodes: in the order.
        position: of each, by its id.
        keeps: at which position each storage is kept first.
        crossing: the first and the last cut that each value crosses.
        by_id: the nodes.
        knows_kept: whether they say what each keeps.
    """

    nodes: Sequence[Node]
    position: Mapping[str, int]
    keeps: Mapping[str, int]
    crossing: Sequence[tuple[int, int]]
    by_id: Mapping[str, Node]
    knows_kept: bool

    @classmethod
    def of(cls, nodes: Sequence[Node], outputs: Sequence[str]) -> "_Line":
        position = {node.id: i for i, node in enumerate(nodes)}
        last, keeps = list(range(len(nodes))), dict[str, int]()
        for i, node in enumerate(nodes):
            for name in node.inputs:
                last[position[name]] = max(last[position[name]], i)
            for key in node.kept.keys() - {""}:
                keeps.setdefault(key, i)
        for name in outputs:
            last[position[name]] = len(nodes)
        crossing = [(1 if x.is_input else i + 1, last[i]) for i, x in enumerate(nodes)]
        by_id, knows_kept = {node.id: node for node in nodes}, any(node.kept for node in nodes)
        return cls(nodes, position, keeps, crossing, by_id, knows_kept)


@dataclass(slots=True)
class _Windows:
    """The memory of the stages that end at one cut, by how many nodes they have.

    Attributes:
        made: bytes of the values that leave and are made there.
        kept: bytes that they keep of what they have made.
        needed: what they need of the message from the stages before: bytes that they read of it,
            or, where nodes say what they keep, of what they keep of it.
        largest: bytes of the largest output, and of the largest workspace.
        passing: the most bytes of gradients in backward, less what is freed by then.
    """

    line: _Line
    end: int
    made: list[float] = field(default_factory=lambda: [0.0])
    kept: list[float] = field(default_factory=lambda: [0.0])
    needed: list[float] = field(default_factory=lambda: [0.0])
    largest: list[tuple[float, float]] = field(default_factory=lambda: [(0.0, 0.0)])
    passing: list[float] = field(default_factory=list)
    _leaving: set[str] = field(init=False)
    _held: HeldGradients = field(init=False)
    _freed: float = 0.0
    _seen: set[str] = field(default_factory=set)
    _from_before: dict[int, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ends = zip(self.line.nodes, self.line.crossing, strict=True)
        after = [node for node, (first, last) in ends if first <= self.end <= last]
        self._leaving, self._held = {node.id for node in after}, HeldGradients(after)
        self.passing.append(self._held.total_bytes)

    def reach(self, begin: int) -> int:
        """How many nodes a stage has that begins there; it is known from now on."""
        for i in range(self.end - len(self.made), begin - 1, -1):
            self._go_back(i, self.line.nodes[i])
        return self.end - begin

    def _go_back(self, i: int, node: Node) -> None:
        """One node more, at the begin of the stage."""
        own, first_here, shared = self._keeps(i, node)
        needed = self.needed[-1]
        for key, size in shared.items():
            if key not in self._seen:
                self._seen.add(key)
                self._from_before.setdefault(self.line.position[maker_of(key)], []).append(size)
                needed += size
        made_here = sum(self._from_before.pop(i, ()))
        self.needed.append(needed - made_here)
        self.kept.append(self.kept[-1] + own + made_here * self.line.knows_kept)
        self.made.append(self.made[-1] + node.output_bytes * (node.id in self._leaving))
        output, workspace = self.largest[-1]
        self.largest.append((max(output, node.output_bytes), max(workspace, node.workspace_bytes)))
        takes = self._held.go_back(node, self.line.by_id) - self._freed
        self.passing.append(max(self.passing[-1], takes))
        self._freed += own + first_here

    def _keeps(self, i: int, node: Node) -> tuple[float, float, Mapping[str, float]]:
        """What a node keeps alone, and first of all; and what it keeps or reads with others."""
        if not self.line.knows_kept:
            reads = {name: self.line.by_id[name].output_bytes for name in node.inputs}
            return node.saved_bytes, 0.0, reads
        shared = {key: size for key, size in node.kept.items() if key}
        first = sum(size for key, size in shared.items() if self.line.keeps[key] == i)
        return node.kept.get("", 0.0), first, shared


class Estimate(NamedTuple):
    """Of some stages: the objective and the latency, and by how much they are too large.

    The last in parts of their limits, summed up.
    """

    value: float
    latency_s: float
    over: float


class OrderEstimate:
    """What stages cost that are cut from an order, as far as it is known."""

    def __init__(
        self, problem: Problem, runs: SegmentRuns, order: Sequence[int], *, enforce_peaks: bool
    ) -> None:
        """Prepare what does not depend on the cuts.

        Args:
            problem: without recomputation.
            runs: those of its graph.
            order: of its units.
            enforce_peaks: whether peaks have to fit as well as `memory_bytes`.
        """
        self._problem, self._enforce_peaks = problem, enforce_peaks
        self._tables = interval_tables(problem, order)
        barred = ~problem.allowed | (problem.time_s == math.inf)
        self._barred = prefix_sums(barred[:, order].astype(float))
        graph, indices = problem.graph, [j for i in order for j in problem.members[i]]
        self._line = _Line.of([graph.nodes[j] for j in indices], graph.outputs)
        self._cut = [0]  # of the nodes, by that of the units
        for i in order:
            self._cut.append(self._cut[-1] + len(problem.members[i]))
        self._resident = prefix_sums(problem.resident_bytes[order])
        self._levels = RecomputeLevels.of(graph, runs, indices)
        self._windows: dict[int, _Windows] = {}
        self._known: dict[Hashable, tuple[float, float]] = {}
        self._learned: dict[Hashable, tuple[float, float]] = {}
        self._optimism = 1.0

    def of(self, segments: Segments, *, hopeful: bool = False) -> Estimate:
        """What these stages cost, infinite where a device cannot run what it is given.

        Args:
            segments: the stages.
            hopeful: whether what is not known is taken to be as much less than it seems as it was
                at the best of what is known.
        """
        (devices, ends), asked = segments, self._problem.assumptions
        compute, over = [], 0.0
        for d, begin, end, count in self._stages(segments):
            if self._barred[d, end] > self._barred[d, begin]:
                return Estimate(math.inf, math.inf, math.inf)
            extra_s, lacks = self._stage(d, begin, end, count, hopeful)
            compute.append(self._tables.prefix_time[d, end] - self._tables.prefix_time[d, begin])
            compute[-1] += extra_s
            over += lacks
        crossing, wires = self._tables.crossing, self._tables.wires
        pairs = zip(devices[:-1], devices[1:], ends[:-1], strict=True)
        moves = [move(d, e, cut, crossing, wires) for d, e, cut in pairs]
        bottleneck = max(stage_s(compute, [0.0, *moves], [*moves, 0.0], asked))
        latency = sum(compute) + sum(moves)
        values = {"throughput": bottleneck, "latency": latency}
        value = values.get(asked.objective, step_s(bottleneck, latency, asked))
        return Estimate(value, latency, over)

    def learn(self, segments: Segments, needs: Sequence[tuple[float, float]]) -> None:
        """Know of these stages what they need when their segments are chosen, as `Recomputing`."""
        for stage, need in zip(self._stages(segments), needs, strict=True):
            seemed_s, _ = self._seems(*stage)
            if seemed_s > 0 and not need[1]:
                self._optimism = max(MOST_OPTIMISM, min(self._optimism, need[0] / seemed_s))
            self._learned[self._key(*stage)] = need

    def _stages(self, segments: Segments) -> Iterator[tuple[int, int, int, int]]:
        """The device, the begin, the end, and the micro-batches in flight of each stage."""
        (devices, ends), asked = segments, self._problem.assumptions
        live = in_flight_counts(asked.schedule, len(ends), asked.microbatches)
        return zip(devices, (0, *ends[:-1]), ends, live, strict=True)

    def _key(self, device: int, begin: int, end: int, live: int) -> Hashable:
        host = self._problem.cluster.devices[device]
        return host.type, host.slowdown, host.memory_bytes, begin, end, live

    def _stage(
        self, device: int, begin: int, end: int, live: int, hopeful: bool
    ) -> tuple[float, float]:
        """Seconds of what a stage has to recompute, and by how much it is too large then."""
        learned = self._learned.get(self._key(device, begin, end, live))
        if learned is not None:
            return learned
        seconds, over = self._seems(device, begin, end, live)
        return seconds * (self._optimism if hopeful else 1.0), over

    def _seems(self, device: int, begin: int, end: int, live: int) -> tuple[float, float]:
        """The same as far as levels tell it."""
        key = self._key(device, begin, end, live)
        if key not in self._known:
            limit = float(self._tables.limit[device])
            lacking = seconds = 0.0
            if self._problem.cluster.devices[device].memory_bytes is not None:
                reserve = 1 + RESERVE * self._enforce_peaks
                lacking = (self._need(begin, end, live) - limit) / reserve
                cuts = self._cut[begin], self._cut[end]
                seconds, lacking = self._levels.of_part(*cuts, lacking, live)
            slowdown = self._problem.cluster.devices[device].slowdown
            self._known[key] = slowdown * seconds, lacking / max(1.0, limit)
        return self._known[key]

    def _need(self, begin: int, end: int, live: int) -> float:
        """Bytes that a stage needs that recomputes nothing."""
        cut, training = self._cut[end], self._problem.assumptions.training
        windows = self._windows.get(cut)
        if windows is None:
            windows = self._windows[cut] = _Windows(self._line, cut)
        size = windows.reach(self._cut[begin])
        output, workspace = windows.largest[size]
        lasting = float(self._resident[end] - self._resident[begin]) + output * (not training)
        kept = windows.kept[size] * training
        need = lasting + live * kept
        if not self._enforce_peaks:
            return need
        received, gradients = self._crossing(begin) if begin else (0.0, 0.0)
        leaving, gradients_back = self._crossing(end)
        is_last = cut == len(self._line.nodes)
        message = 0.0 if is_last else leaving
        leaves = windows.made[size] + message
        lasting += POSTED * received
        if not training:
            terms = PeakTerms(lasting, 0.0, 0.0, message, leaves + workspace, 0.0)
        else:
            needed, knows_kept = windows.needed[size], self._line.knows_kept
            others = received * (needed > 0) if knows_kept else max(0.0, received - needed)
            terms = PeakTerms(
                steady_bytes=lasting + gradients,
                in_flight_bytes=kept + others,
                gradient_bytes=0.0 if is_last else gradients_back,
                message_bytes=message,
                forward_bytes=leaves,
                backward_bytes=LOSS_COPIES * leaving * is_last + windows.passing[size],
            )
        return max(need, (1 + RESERVE) * terms.bytes(live, QUEUED))

    def _crossing(self, cut: int) -> tuple[float, float]:
        """Bytes of the values that cross a cut of the units, and of their gradients."""
        crossing = self._tables.crossing
        return float(crossing.forward_bytes[cut]), float(crossing.backward_bytes[cut])
