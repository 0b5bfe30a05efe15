"""The most memory that a stage takes in a step, closer than the plan's `memory_bytes`.

That figure counts what lasts: parameters with their gradients and optimizer state, and what the
live micro-batches keep. While a backward runs, gradients of values come and go as well:

    saved  ################           the last micro-batch's, given up node by node
    grads     ####  ##  ####          each there from its first reader's backward to its maker's own
           <- backward runs

and with them messages that wait for their turn.
"""

from collections.abc import Sequence

from skyfx.solver.cost import crossings, live_microbatches, memory_bytes
from skyfx.solver.graph import Graph, Node
from skyfx.solver.plan import Assumptions

__all__: list[str] = ["peak_bytes"]

PASSING = ("add", "view", "reshape", "transpose", "permute", "t", "expand", "squeeze", "unsqueeze")
"""Operators whose backward hands the gradient on as it came, or a view of it."""

LOSS_COPIES = 3
"""Of the model's outputs, what a loss outside of it takes: what it keeps, and two gradients."""

POSTED, SENDING = 2, 1
"""Messages in each direction that have a buffer: two to be received, one that is being sent."""


def peak_bytes(
    graph: Graph, placement: Sequence[tuple[str, Sequence[str]]], assumptions: Assumptions
) -> tuple[float, ...]:
    """The peak of each stage, `(num_stages,)`, on a device that moves values by messages."""
    nodes = {node.id: node for node in graph.nodes}
    stage_of = {v: k for k, (_, ids) in enumerate(placement) for v in ids}
    between = crossings(graph, stage_of, len(placement))
    peaks = []
    for k, (_, ids) in enumerate(placement):
        before = between[k - 1] if k else []
        last = k == len(placement) - 1
        after = [nodes[v] for v in graph.outputs] if last else between[k]
        members, position = [nodes[v] for v in ids], len(placement) - k
        live = live_microbatches(assumptions, position)
        messages = _messages(before, [] if last else after, live, training=assumptions.training)
        peak = memory_bytes(members, assumptions, position) + messages
        if assumptions.training:
            loss = LOSS_COPIES * sum(node.output_bytes for node in after) if last else 0.0
            peak += loss + _passing_bytes(members, after)
        peaks.append(peak)
    return tuple(peaks)


def _messages(before: Sequence[Node], after: Sequence[Node], live: int, *, training: bool) -> float:
    """Bytes of the buffers of both boundaries; gradients come for the live micro-batches alone."""
    values = POSTED * sum(n.output_bytes for n in before) + SENDING * sum(
        n.output_bytes for n in after
    )
    if not training:
        return values
    return (
        values
        + min(POSTED, live - 1) * sum(n.gradient_bytes for n in after)
        + SENDING * sum(n.gradient_bytes for n in before)
    )


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
        most = max(most, _total(held, size) + node.parameter_bytes - given_up)
        del held[node.id]
        given_up += node.saved_bytes
    return most


def _total(held: dict[str, str], size: dict[str, float]) -> float:
    return sum(size[storage] for storage in set(held.values()))


def _is_passing(node: Node) -> bool:
    """`aten.add.Tensor` is one of `PASSING`."""
    parts = node.op.split(".")
    return len(parts) > 1 and parts[1] in PASSING
