"""The most memory that a stage takes in a step, closer than the plan's `memory_bytes`.

That figure counts what lasts: parameters with their gradients and optimizer state, and what the
live micro-batches keep. While a backward runs, gradients of values come and go as well:

    saved  ################           the last micro-batch's, given up node by node
    grads     ####  ##  ####          each there from its first reader's backward to its maker's own
           <- backward runs

and with them messages that wait for their turn, and what an operator takes for itself meanwhile.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from skyfx.solver.core.cluster import Cluster
from skyfx.solver.core.graph import Graph, Node
from skyfx.solver.core.plan import Assumptions
from skyfx.solver.core.schedule import in_flight_counts
from skyfx.solver.costs.cost_model import Placement, crossings, memory_bytes
from skyfx.solver.costs.simulator import simulate

__all__: list[str] = ["PeakTerms", "peak_bytes", "peaks"]

PASSING = ("add", "view", "reshape", "transpose", "permute", "t", "expand", "squeeze", "unsqueeze")
"""Operators whose backward hands the gradient on as it came, or a view of it."""

LOSS_COPIES = 3
"""Of the model's outputs, what a loss outside of it takes: what it keeps, and two gradients."""

POSTED = 2
"""Messages in each direction that have a buffer to be received in."""


@dataclass(frozen=True, slots=True)
class PeakTerms:
    """The peak of a stage, but for how many micro-batches are live and how many messages wait.

    Attributes:
        lasting_bytes: whatever its schedule is.
        live_bytes: for each live micro-batch.
        gradient_bytes: of a message with gradients that is received.
        message_bytes: of one with values that is sent.
        forward_bytes: what comes and goes in a forward, but for messages that wait.
        backward_bytes: likewise in a backward.
    """

    lasting_bytes: float
    live_bytes: float
    gradient_bytes: float
    message_bytes: float
    forward_bytes: float
    backward_bytes: float

    def bytes(self, live: int, waiting: tuple[int, int]) -> float:
        """The peak; messages wait in a forward and in a backward."""
        in_forward, in_backward = waiting
        return (
            self.lasting_bytes
            + live * self.live_bytes
            + min(POSTED, live - 1) * self.gradient_bytes
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
    """The peak of each stage, `(num_stages,)`, on a device that moves values by messages.

    How many of them wait to be sent at a time is what the simulated step says. A device with
    several stages takes no more than the sum of their peaks.
    """
    waiting = simulate(graph, cluster, placement, assumptions, live).waiting
    live = live or in_flight_counts(assumptions.schedule, len(placement), assumptions.microbatches)
    each = zip(peaks(graph, placement, assumptions), live, waiting, strict=True)
    return tuple(peak.bytes(count, messages) for peak, count, messages in each)


def peaks(graph: Graph, placement: Placement, assumptions: Assumptions) -> tuple[PeakTerms, ...]:
    """The peaks of the stages, `(num_stages,)`, whatever their schedule is."""
    nodes = {node.id: node for node in graph.nodes}
    stage_of = {v: k for k, (_, ids) in enumerate(placement) for v in ids}
    between = crossings(graph, stage_of, len(placement))
    outputs = [nodes[v] for v in graph.outputs]
    found = []
    for k, (_, ids) in enumerate(placement):
        members, before = [nodes[v] for v in ids], between[k - 1] if k else []
        last = k == len(placement) - 1
        after = outputs if last else between[k]
        made = sum(node.output_bytes for node in after if stage_of[node.id] == k)
        sent = [] if last else after
        found.append(
            _in_training(members, before, after, sent, made, assumptions)
            if assumptions.training
            else _in_inference(members, before, sent, made, assumptions)
        )
    return tuple(found)


def _in_training(
    members: Sequence[Node],
    before: Sequence[Node],
    after: Sequence[Node],
    sent: Sequence[Node],
    made: float,
    assumptions: Assumptions,
) -> PeakTerms:
    """`after` is what leaves the stage, `sent` what goes on to another, `made` their own bytes."""
    message = sum(node.output_bytes for node in sent)
    loss = 0.0 if sent else LOSS_COPIES * sum(node.output_bytes for node in after)
    return PeakTerms(
        lasting_bytes=memory_bytes(members, assumptions, live=0)
        + POSTED * sum(node.output_bytes for node in before)
        + sum(node.gradient_bytes for node in before),
        live_bytes=sum(node.saved_bytes for node in members) + _kept_with_others(before, members),
        gradient_bytes=sum(node.gradient_bytes for node in sent),
        message_bytes=message,
        forward_bytes=made + message,
        backward_bytes=loss + _passing_bytes(members, after),
    )


def _in_inference(
    members: Sequence[Node],
    before: Sequence[Node],
    sent: Sequence[Node],
    made: float,
    assumptions: Assumptions,
) -> PeakTerms:
    message = sum(node.output_bytes for node in sent)
    workspace = max((node.workspace_bytes for node in members), default=0.0)
    return PeakTerms(
        lasting_bytes=memory_bytes(members, assumptions, live=0)
        + POSTED * sum(node.output_bytes for node in before),
        live_bytes=0.0,
        gradient_bytes=0.0,
        message_bytes=message,
        forward_bytes=made + message + workspace,
        backward_bytes=0.0,
    )


def _kept_with_others(before: Sequence[Node], members: Sequence[Node]) -> float:
    """Bytes of a message that nobody here reads: they are kept as long as the rest of it."""
    read = {name for node in members for name in node.inputs}
    return sum(node.output_bytes for node in before if node.id not in read)


def _passing_bytes(members: Sequence[Node], after: Sequence[Node]) -> float:
    """The most that gradients take while backward runs, less what was saved and is given up."""
    given_up = 0.0
    # Which storage holds the gradient of each value; those that are handed on share one.
    held: dict[str, str] = {node.id: node.id for node in after if node.gradient_bytes}
    size = {node.id: node.gradient_bytes for node in after}
    known = {node.id: node for node in (*after, *members)}
    most = _total(held, size)
    for node in reversed(members):
        if node.id not in held:
            given_up += node.saved_bytes
            continue
        passing = _is_passing(node)
        for name in node.inputs:
            reads = known.get(name)
            if name in held or (reads is not None and not reads.gradient_bytes):
                continue
            held[name] = held[node.id] if passing else name
            size.setdefault(name, reads.gradient_bytes if reads else 0.0)
        most = max(
            most, _total(held, size) + node.parameter_bytes + node.workspace_bytes - given_up
        )
        del held[node.id]
        given_up += node.saved_bytes
    return most


def _total(held: dict[str, str], size: dict[str, float]) -> float:
    return sum(size[storage] for storage in set(held.values()))


def _is_passing(node: Node) -> bool:
    """`aten.add.Tensor` is one of `PASSING`."""
    parts = node.op.split(".")
    return len(parts) > 1 and parts[1] in PASSING
