"""The most memory that a stage takes in a step, closer than the plan's `memory_bytes`.

That figure counts what lasts: parameters with their gradients and optimizer state, and what the
live micro-batches keep. While a backward runs, gradients of values come and go as well:

    saved  ################           the last micro-batch's, given up node by node
    grads     ####  ##  ####          each there from its first reader's backward to its maker's own
           <- backward runs

and with them messages that wait for their turn, and what an operator takes for itself meanwhile.
"""

from collections.abc import Sequence

from skyfx.solver.cluster import Cluster
from skyfx.solver.cost import Placement, crossings, live_microbatches, memory_bytes
from skyfx.solver.graph import Graph, Node
from skyfx.solver.plan import Assumptions
from skyfx.solver.simulate import simulate

__all__: list[str] = ["peak_bytes"]

PASSING = ("add", "view", "reshape", "transpose", "permute", "t", "expand", "squeeze", "unsqueeze")
"""Operators whose backward hands the gradient on as it came, or a view of it."""

LOSS_COPIES = 3
"""Of the model's outputs, what a loss outside of it takes: what it keeps, and two gradients."""

POSTED = 2
"""Messages in each direction that have a buffer to be received in."""


def peak_bytes(
    graph: Graph, cluster: Cluster, placement: Placement, assumptions: Assumptions
) -> tuple[float, ...]:
    """The peak of each stage, `(num_stages,)`, on a device that moves values by messages.

    How many of them wait to be sent at a time is what the simulated step says.
    """
    nodes = {node.id: node for node in graph.nodes}
    stage_of = {v: k for k, (_, ids) in enumerate(placement) for v in ids}
    between = crossings(graph, stage_of, len(placement))
    waiting = simulate(graph, cluster, placement, assumptions).waiting
    peaks = []
    for k, (_, ids) in enumerate(placement):
        before = between[k - 1] if k else []
        last = k == len(placement) - 1
        after = [nodes[v] for v in graph.outputs] if last else between[k]
        members, position = [nodes[v] for v in ids], len(placement) - k
        live = live_microbatches(assumptions, position)
        peak = memory_bytes(members, assumptions, position)
        peak += _received_bytes(before, [] if last else after, live, assumptions)
        peak += live * _kept_with_others(before, members) * assumptions.training
        in_forward, in_backward = waiting[k]
        made = sum(node.output_bytes for node in after if stage_of[node.id] == k)
        message = 0.0 if last else sum(node.output_bytes for node in after)
        forward = made + (1 + in_forward) * message
        if not assumptions.training:
            peaks.append(peak + forward + max((n.workspace_bytes for n in members), default=0.0))
            continue
        loss = LOSS_COPIES * sum(node.output_bytes for node in after) if last else 0.0
        backward = loss + _passing_bytes(members, after) + in_backward * message
        peaks.append(peak + max(forward, backward) + sum(node.gradient_bytes for node in before))
    return tuple(peaks)


def _kept_with_others(before: Sequence[Node], members: Sequence[Node]) -> float:
    """Bytes of a message that nobody here reads: they are kept as long as the rest of it."""
    read = {name for node in members for name in node.inputs}
    return sum(node.output_bytes for node in before if node.id not in read)


def _received_bytes(
    before: Sequence[Node], after: Sequence[Node], live: int, assumptions: Assumptions
) -> float:
    """Bytes of the buffers to receive in; gradients come for the live micro-batches alone."""
    values = POSTED * sum(node.output_bytes for node in before)
    gradients = min(POSTED, live - 1) * sum(node.gradient_bytes for node in after)
    return values + gradients * assumptions.training


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
