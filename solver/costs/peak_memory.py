"""The peak memory of a stage in a step, closer than the plan's `memory_bytes`.

`memory_bytes` counts steady memory: parameters with their gradients and optimizer state, and the
saved tensors of the micro-batches in flight. During a backward, gradients of values come and go:

    saved  ################           of the last micro-batch, freed node by node
    grads     ####  ##  ####          each from its first reader's backward to its maker's own
           <- backward runs

Queued messages and the workspace of an operator come on top.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skyfx.solver.core.cluster import Cluster
from skyfx.solver.core.graph import Graph, Node
from skyfx.solver.core.plan import Assumptions
from skyfx.solver.core.schedule import in_flight_counts
from skyfx.solver.costs.cost_model import Placement, crossings, memory_bytes
from skyfx.solver.costs.simulator import simulate

PASSING = ("add", "view", "reshape", "transpose", "permute", "t", "expand", "squeeze", "unsqueeze")
"""Operators whose backward passes the gradient on unchanged, or a view of it."""

LOSS_COPIES = 3
"""Copies of the model's outputs that a loss outside takes: one saved, and two gradients."""

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


def peaks(graph: Graph, placement: Placement, assumptions: Assumptions) -> tuple[PeakTerms, ...]:
    """The terms of the stages' peaks, `(num_stages,)`, for any schedule."""
    nodes = {node.id: node for node in graph.nodes}
    stage_of = {v: k for k, (_, ids) in enumerate(placement) for v in ids}
    between = crossings(graph, stage_of, len(placement))
    outputs, private = [nodes[v] for v in graph.outputs], _private_bytes(graph)
    found = []
    for k, (_, ids) in enumerate(placement):
        members, before = [nodes[v] for v in ids], between[k - 1] if k else []
        last = k == len(placement) - 1
        after = outputs if last else between[k]
        made = sum(node.output_bytes for node in after if stage_of[node.id] == k)
        sent = [] if last else after
        saved = _saved_bytes(members, before, private)
        found.append(_terms(members, before, after, sent, made, saved, assumptions))
    return tuple(found)


def _private_bytes(graph: Graph) -> dict[str, float]:
    """What each node keeps that no other node can keep, by its id; empty where none says more."""
    if not any(node.kept for node in graph.nodes):
        return {}
    private, seen = dict[str, float](), set[str]()
    for node in graph.nodes:
        new = node.kept.keys() - seen
        seen |= new
        private[node.id] = max(0.0, node.saved_bytes - sum(node.kept[name] for name in new))
    return private


def _saved_bytes(
    members: Sequence[Node], before: Sequence[Node], private: Mapping[str, float]
) -> dict[str, float]:
    """Bytes of a micro-batch that a stage keeps, at the first of its nodes that keeps them.

    What the stages before have made came in a message, which is kept whole with any part of it.
    """
    message = sum(node.output_bytes for node in before)
    if not private:  # what no node here reads of a message is kept as long as the rest of it
        saved = {node.id: node.saved_bytes for node in members}
        read = {name for node in members for name in node.inputs}
        with_others = sum(node.output_bytes for node in before if node.id not in read)
        return saved | {"": with_others}
    own, seen = {node.id for node in members}, set[str]()
    saved = {}
    for node in members:
        new = {name if name in own or not before else "" for name in node.kept} - seen
        seen |= new
        kept = sum(message if not name else node.kept[name] for name in new)
        saved[node.id] = private[node.id] + kept
    return saved


def _terms(
    members: Sequence[Node],
    before: Sequence[Node],
    after: Sequence[Node],
    sent: Sequence[Node],
    made: float,
    saved: Mapping[str, float],
    assumptions: Assumptions,
) -> PeakTerms:
    """`after` are values that leave the stage, `sent` those to a next one, `made` their bytes."""
    received = sum(node.output_bytes for node in before)
    steady = memory_bytes(members, assumptions, live=0) + POSTED * received
    message = sum(node.output_bytes for node in sent)
    if not assumptions.training:
        workspace = max((node.workspace_bytes for node in members), default=0.0)
        return PeakTerms(steady, 0.0, 0.0, message, made + message + workspace, 0.0)
    loss = 0.0 if sent else LOSS_COPIES * sum(node.output_bytes for node in after)
    return PeakTerms(
        steady_bytes=steady + sum(node.gradient_bytes for node in before),
        in_flight_bytes=sum(saved.values()),
        gradient_bytes=sum(node.gradient_bytes for node in sent),
        message_bytes=message,
        forward_bytes=made + message,
        backward_bytes=loss + _passing_bytes(members, after, saved),
    )


def _passing_bytes(
    members: Sequence[Node], after: Sequence[Node], saved: Mapping[str, float]
) -> float:
    """The most memory of gradients while backward runs, less the saved tensors already freed."""
    freed = 0.0
    # Which storage holds the gradient of each value; those that are passed on share one.
    held: dict[str, str] = {node.id: node.id for node in after if node.gradient_bytes}
    size = {node.id: node.gradient_bytes for node in after}
    known = {node.id: node for node in (*after, *members)}
    most = _total(held, size)
    for node in reversed(members):
        if node.id not in held:
            freed += saved[node.id]
            continue
        passing = any(part in PASSING for part in node.op.split(".")[1:2])  # `aten.add.Tensor`
        for name in node.inputs:
            reads = known.get(name)
            if name in held or (reads is not None and not reads.gradient_bytes):
                continue
            held[name] = held[node.id] if passing else name
            size.setdefault(name, reads.gradient_bytes if reads else 0.0)
        most = max(most, _total(held, size) + node.trained_bytes + node.workspace_bytes - freed)
        del held[node.id]
        freed += saved[node.id]
    return most


def _total(held: dict[str, str], size: dict[str, float]) -> float:
    return sum(size[storage] for storage in set(held.values()))
