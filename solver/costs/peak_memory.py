"""The peak memory of a stage in a step, closer than the plan's `memory_bytes`.

`memory_bytes` counts steady memory: parameters with their gradients and optimizer state, and the
saved tensors of the micro-batches in flight. During a backward, gradients of values come and go:

    saved  ################           of the last micro-batch, freed node by node
    grads     ####  ##  ####          each from its first reader's backward to its maker's own
           <- backward runs

Queued messages and the workspace of an operator come on top.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skyfx.solver.core.cluster import Cluster
from skyfx.solver.core.graph import Graph, Node
from skyfx.solver.core.plan import Assumptions
from skyfx.solver.core.schedule import in_flight_counts
from skyfx.solver.costs.cost_model import Placement, crossings, memory_bytes
from skyfx.solver.costs.recomputation import RecomputedNode, maker_of
from skyfx.solver.costs.simulator import simulate

PASSING = ("add", "view", "reshape", "transpose", "permute", "t", "expand", "squeeze", "unsqueeze")
"""Operators whose backward passes the gradient on unchanged, or a view of it."""

LOSS_COPIES = 3
"""Copies of the model's outputs that a loss outside takes: one saved, and two gradients."""

MESSAGE = "#"
"""What is kept of the stages before; no key of `kept`."""

POSTED = 2
"""Receive buffers per direction."""


@dataclass(frozen=True, slots=True)
class PeakTerms:
    """The terms of a stage's peak, which grows with micro-batches in flight and queued messages.

    Attributes:
        steady_bytes: independent of the schedule.
        in_flight_bytes: per micro-batch in flight.
        gradient_bytes: of a received message with gradients.
        message_bytes: of a sent message with values.
        forward_bytes: temporary memory of a forward, without queued messages.
        backward_bytes: temporary memory of a backward, without queued messages.
    """

    steady_bytes: float
    in_flight_bytes: float
    gradient_bytes: float
    message_bytes: float
    forward_bytes: float
    backward_bytes: float

    def bytes(self, in_flight: int, queued: tuple[int, int]) -> float:
        """The peak; `queued` counts messages in a forward and in a backward."""
        in_forward, in_backward = queued
        return (
            self.steady_bytes
            + in_flight * self.in_flight_bytes
            + min(POSTED, in_flight - 1) * self.gradient_bytes
            + max(
                self.forward_bytes + in_forward * self.message_bytes,
                self.backward_bytes + in_backward * self.message_bytes,
            )
        )


def peak_bytes(
    graph: Graph,
    cluster: Cluster,
    placement: Placement,
    assumptions: Assumptions,
    live: Sequence[int] | None = None,
) -> tuple[float, ...]:
    """The peak of each stage, `(num_stages,)`, in a pipeline that sends messages.

    The simulated step says how many messages are queued. A device with several stages takes at
    most the sum of their peaks.
    """
    max_queued = simulate(graph, cluster, placement, assumptions, live).max_queued
    live = live or in_flight_counts(assumptions.schedule, len(placement), assumptions.microbatches)
    each = zip(peaks(graph, placement, assumptions), live, max_queued, strict=True)
    return tuple(peak.bytes(count, queued) for peak, count, queued in each)


@dataclass(frozen=True, slots=True)
class StageValues:
    """The values that enter and leave a stage.

    Attributes:
        before: those of a received message.
        after: those that leave: to a next stage, or as the model's outputs.
        sent: those to a next stage.
        made_bytes: of those that leave and are made here.
    """

    before: Sequence[Node]
    after: Sequence[Node]
    sent: Sequence[Node]
    made_bytes: float


def boundaries(graph: Graph, placement: Placement) -> list[StageValues]:
    """Those of each stage, `(num_stages,)`."""
    nodes = {node.id: node for node in graph.nodes}
    stage_of = {v: k for k, (_, ids) in enumerate(placement) for v in ids}
    between = crossings(graph, stage_of, len(placement))
    outputs = [nodes[v] for v in graph.outputs]
    found = []
    for k in range(len(placement)):
        last = k == len(placement) - 1
        after = outputs if last else between[k]
        made = sum(node.output_bytes for node in after if stage_of[node.id] == k)
        found.append(StageValues(between[k - 1] if k else [], after, [] if last else after, made))
    return found


def peaks(graph: Graph, placement: Placement, assumptions: Assumptions) -> tuple[PeakTerms, ...]:
    """The terms of the stages' peaks, `(num_stages,)`, for any schedule."""
    nodes, knows_kept = {node.id: node for node in graph.nodes}, any(n.kept for n in graph.nodes)
    each = zip(placement, boundaries(graph, placement), strict=True)
    return tuple(
        peak_terms([nodes[v] for v in ids], around, assumptions, knows_kept=knows_kept)
        for (_, ids), around in each
    )


def peak_terms(
    members: Sequence[Node], around: StageValues, assumptions: Assumptions, *, knows_kept: bool
) -> PeakTerms:
    """The terms of one stage's peak; `knows_kept` where the graph's nodes say what each keeps."""
    before, after, sent, made = around.before, around.after, around.sent, around.made_bytes
    received = sum(node.output_bytes for node in before)
    steady = memory_bytes(members, assumptions, live=0) + POSTED * received
    message = sum(node.output_bytes for node in sent)
    if not assumptions.training:
        workspace = max((node.workspace_bytes for node in members), default=0.0)
        return PeakTerms(steady, 0.0, 0.0, message, made + message + workspace, 0.0)
    saved = _saved_bytes(members, before, knows_kept=knows_kept)
    loss = 0.0 if sent else LOSS_COPIES * sum(node.output_bytes for node in after)
    return PeakTerms(
        steady_bytes=steady + sum(node.gradient_bytes for node in before),
        in_flight_bytes=sum(saved.values()),
        gradient_bytes=sum(node.gradient_bytes for node in sent),
        message_bytes=message,
        forward_bytes=made + message,
        backward_bytes=loss + _passing_bytes(members, after, saved),
    )


def _saved_bytes(
    members: Sequence[Node], before: Sequence[Node], *, knows_kept: bool
) -> dict[str, float]:
    """Bytes of a micro-batch that a stage keeps, at the first of its nodes that keeps them.

    What the stages before have made came in a message, which is kept whole with any part of it.
    """
    message = sum(node.output_bytes for node in before)
    if not knows_kept:  # what no node here reads of a message is kept as long as the rest of it
        saved = {node.id: node.saved_bytes for node in members}
        read = {name for node in members for name in node.inputs}
        with_others = sum(node.output_bytes for node in before if node.id not in read)
        return saved | {MESSAGE: with_others}
    own, seen = {node.id for node in members}, set[str]()
    saved = {}
    for node in members:
        kept = node.kept.get("", 0.0)
        for key in node.kept.keys() - {""}:
            source = key if not before or maker_of(key) in own else MESSAGE
            if source not in seen:
                seen.add(source)
                kept += message if source == MESSAGE else node.kept[key]
        saved[node.id] = kept
    return saved


def _passing_bytes(
    members: Sequence[Node], after: Sequence[Node], saved: Mapping[str, float]
) -> float:
    """The most memory of gradients while backward runs, less the saved tensors already freed.

    What a segment keeps that is recomputed comes when its backward begins.
    """
    freed, again, running = 0.0, _again_bytes(members), ""
    held = HeldGradients(after)
    known = {node.id: node for node in (*after, *members)}
    most = held.total_bytes
    for node in reversed(members):
        own = saved[node.id]
        if isinstance(node, RecomputedNode):
            own += node.again_bytes
            if node.segment != running:
                running = node.segment
                freed -= again[running]
        most = max(most, held.go_back(node, known) - freed)
        freed += own
    return most


def _again_bytes(members: Sequence[Node]) -> dict[str, float]:
    """What each segment that is recomputed keeps then, by its first node."""
    found = dict[str, float]()
    for node in members:
        if isinstance(node, RecomputedNode):
            found[node.segment] = found.get(node.segment, 0.0) + node.again_bytes
    return found


class HeldGradients:
    """The gradients that are held while backward runs; those that are passed on share a storage.

    Attributes:
        total_bytes: of all storages.
    """

    def __init__(self, after: Sequence[Node]) -> None:
        """Begin with those of the values that leave the stage."""
        self.total_bytes = 0.0
        self._storage_of: dict[str, str] = {}
        self._bytes: dict[str, float] = {}
        self._num_values = Counter[str]()
        for node in after:
            if node.gradient_bytes:
                self._put(node.id, node.id, node.gradient_bytes)

    def go_back(self, node: Node, known: Mapping[str, Node]) -> float:
        """Run the backward of a node, and say what it takes; 0 where it has none.

        Args:
            node: the one before the last.
            known: the nodes whose values' gradients have to be held.
        """
        if node.id not in self._storage_of:
            return 0.0
        passing = any(part in PASSING for part in node.op.split(".")[1:2])  # `aten.add.Tensor`
        for name in node.inputs:
            reads = known.get(name)
            if name in self._storage_of or (reads is not None and not reads.gradient_bytes):
                continue
            storage = self._storage_of[node.id] if passing else name
            self._put(name, storage, reads.gradient_bytes if reads else 0.0)
        takes = self.total_bytes + node.trained_bytes + node.workspace_bytes
        self._drop(node.id)
        return takes

    def _put(self, name: str, storage: str, size_bytes: float) -> None:
        """Hold the gradient of a value; a new storage is of this size."""
        if not self._num_values[storage]:
            self._bytes.setdefault(storage, size_bytes)
            self.total_bytes += self._bytes[storage]
        self._storage_of[name] = storage
        self._num_values[storage] += 1

    def _drop(self, name: str) -> None:
        """Hold the gradient of a value no longer."""
        storage = self._storage_of.pop(name)
        self._num_values[storage] -= 1
        if not self._num_values[storage]:
            self.total_bytes -= self._bytes[storage]
