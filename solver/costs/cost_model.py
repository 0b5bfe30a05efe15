"""The cost model of `docs/formats.md`: the one place where it is written for whole plans.

    device    d_1          d_2          d_3           t_k: time to move what crosses boundary k|k+1
    stage     S_1 --t_1--> S_2 --t_2--> S_3
    time_s    c_1 + t_1    t_1+c_2+t_2  t_2 + c_3     (their maximum with overlap = full)

A device with several stages takes the sum of their times, and has to hold the sum of their memory.

The ILP (`ilp.py`) and the interval DP (`interval.py`) write the same model in their own terms; that
all three agree is a property test.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skyfx.solver.core.cluster import HOST, Cluster, Device, Wiring, transfer_s
from skyfx.solver.core.graph import Graph, Node
from skyfx.solver.core.plan import Assumptions
from skyfx.solver.core.schedule import in_flight_count, in_flight_counts

Placement = Sequence[tuple[str, Sequence[str]]]
"""Stages in pipeline order: the device's name and the ids of the nodes it runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What each stage of a plan takes, then the figures of the pipeline."""

    compute_s: tuple[float, ...]
    receive_s: tuple[float, ...]
    send_s: tuple[float, ...]
    time_s: tuple[float, ...]
    memory_bytes: tuple[float, ...]
    flops: tuple[float, ...]
    bottleneck_s: float
    latency_s: float
    step_s: float
    objective_value: float


def evaluate(
    graph: Graph,
    cluster: Cluster,
    placement: Placement,
    assumptions: Assumptions,
    live: Sequence[int] | None = None,
) -> Cost:
    """Predict what a placement costs, valid or not (`validate` says whether it is).

    Args:
        graph: the model.
        cluster: the devices and links.
        placement: stages in pipeline order, every node in exactly one, every device known.
        assumptions: mode, schedule, communication and objective.
        live: micro-batches that are live on each stage, `(num_stages,)`, where the schedule alone
            does not say; without it those of the schedule, or of 1f1b.

    Returns:
        Seconds and bytes. Infinite where a device's type cannot run a node that it was given.
    """
    devices = {device.name: device for device in cluster.devices}
    nodes = {node.id: node for node in graph.nodes}
    stages = [(devices[name], [nodes[v] for v in ids]) for name, ids in placement]
    compute = [compute_s(device, members, assumptions) for device, members in stages]
    live = live or in_flight_counts(assumptions.schedule, len(stages), assumptions.microbatches)
    loads = zip(stages, live, strict=True)
    memory = [memory_bytes(members, assumptions, count) for (_, members), count in loads]
    names = [name for name, _ in placement]
    stage_of = {v: k for k, (_, ids) in enumerate(placement) for v in ids}
    wires = cluster.wiring()
    if assumptions.communication == "relay":
        moves = boundary_s(graph, stage_of, names, wires, assumptions)
        send, receive = [*moves, 0.0], [0.0, *moves]
        moving = sum(moves)
    else:
        send, receive = _host_s(graph, stage_of, names, wires)
        moving = sum(send) + sum(receive)
    time = stage_s(compute, receive, send, assumptions)
    bottleneck, latency = max(by_device(names, time).values()), sum(compute) + moving
    step = step_s(bottleneck, latency, assumptions)
    values = {"throughput": bottleneck, "latency": latency, "step": step}
    return Cost(
        compute_s=tuple(compute),
        receive_s=tuple(receive),
        send_s=tuple(send),
        time_s=tuple(time),
        memory_bytes=tuple(memory),
        flops=tuple(flops(members, assumptions) for _, members in stages),
        bottleneck_s=bottleneck,
        latency_s=latency,
        step_s=step,
        objective_value=values[assumptions.objective],
    )


def stage_s(
    compute: Sequence[float],
    receive: Sequence[float],
    send: Sequence[float],
    assumptions: Assumptions,
) -> list[float]:
    """Seconds for which each stage is busy with a micro-batch, `(num_stages,)`."""
    busy = zip(compute, receive, send, strict=True)
    return [max(parts) if assumptions.overlap == "full" else sum(parts) for parts in busy]


def step_s(bottleneck_s: float, latency_s: float, assumptions: Assumptions) -> float:
    """Seconds of a step, by the formula."""
    waits = assumptions.microbatches - 1
    return latency_s + (waits * bottleneck_s if waits else 0.0)  # 0 * infinity is not 0


def by_device(names: Sequence[str], of_stage: Sequence[float]) -> dict[str, float]:
    """What the stages of each device take together."""
    total = dict.fromkeys(names, 0.0)
    for name, amount in zip(names, of_stage, strict=True):
        total[name] += amount
    return total


def compute_s(device: Device, nodes: Sequence[Node], assumptions: Assumptions) -> float:
    """Seconds that the device computes for one micro-batch."""
    return device.slowdown * sum(
        node.time_s(device.type, training=assumptions.training) for node in nodes
    )


def flops(nodes: Sequence[Node], assumptions: Assumptions) -> float:
    """Floating point operations for one micro-batch, in training with backward."""
    forward = sum(node.flops for node in nodes)
    return forward + (sum(node.backward_flops for node in nodes) if assumptions.training else 0.0)


def resident_bytes(node: Node, assumptions: Assumptions) -> float:
    """Bytes of its parameters and buffers; of what trains also a gradient and optimizer state."""
    if not assumptions.training:
        return node.parameter_bytes
    return node.parameter_bytes + node.trained_bytes * (1 + assumptions.optimizer_state_ratio)


def in_flight_at(assumptions: Assumptions, position: int) -> int:
    """Micro-batches whose activations a stage keeps; `position` counts from the end, from 1."""
    return in_flight_count(assumptions.schedule, position, assumptions.microbatches)


def memory_bytes(nodes: Sequence[Node], assumptions: Assumptions, live: int) -> float:
    """Bytes that a stage needs on which so many micro-batches are live at once."""
    parameters = sum(resident_bytes(node, assumptions) for node in nodes)
    if not assumptions.training:
        return parameters + max((node.output_bytes for node in nodes), default=0.0)
    return parameters + sum(node.saved_bytes for node in nodes) * live


def crossings(graph: Graph, stage_of: Mapping[str, int], num_stages: int) -> list[list[Node]]:
    """The values that cross each boundary: made at or before it, still needed after it."""
    last_use = dict(stage_of)
    for node in graph.nodes:
        for name in node.inputs:
            last_use[name] = max(last_use[name], stage_of[node.id])
    last_use.update(dict.fromkeys(graph.outputs, num_stages - 1))
    crossing: list[list[Node]] = [[] for _ in range(num_stages - 1)]
    for node in graph.nodes:
        first = 0 if node.is_input else stage_of[node.id]
        for k in range(first, last_use[node.id]):
            crossing[k].append(node)
    return crossing


def boundary_s(
    graph: Graph,
    stage_of: Mapping[str, int],
    names: Sequence[str],
    wires: Wiring,
    assumptions: Assumptions,
) -> list[float]:
    """Seconds of each boundary in `relay`."""
    between = crossings(graph, stage_of, len(names))
    return [
        crossing_s(crossing, wires, names[k], names[k + 1], assumptions)
        for k, crossing in enumerate(between)
    ]


def crossing_s(
    crossing: Sequence[Node], wires: Wiring, here: str, there: str, assumptions: Assumptions
) -> float:
    """Seconds that these values take from here to there, in training with their gradients back."""
    forward = sum(node.output_bytes for node in crossing)
    backward = sum(node.gradient_bytes for node in crossing) if assumptions.training else 0.0
    move = transfer_s(wires(here, there), forward) if crossing else 0.0
    return move + (transfer_s(wires(there, here), backward) if backward else 0.0)


def _host_s(
    graph: Graph, stage_of: Mapping[str, int], names: Sequence[str], wires: Wiring
) -> tuple[list[float], list[float]]:
    """Seconds that each stage writes to and reads from the host's memory."""
    send, receive = [0.0] * len(names), [0.0] * len(names)
    users: dict[str, set[int]] = {node.id: set() for node in graph.nodes}
    for node in graph.nodes:
        for name in node.inputs:
            users[name].add(stage_of[node.id])
    for node in graph.nodes:
        maker = stage_of[node.id]
        readers = users[node.id] - {maker}
        if readers:
            send[maker] += transfer_s(wires(names[maker], HOST), node.output_bytes)
        for k in readers:
            receive[k] += transfer_s(wires(HOST, names[k]), node.output_bytes)
    return send, receive
