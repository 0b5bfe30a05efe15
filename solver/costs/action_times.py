"""Seconds of the actions and messages of a placement, from which a step is simulated.

The order of the actions is no part of them, so many orders are tried with the same times.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from skyfx.solver.core.cluster import Cluster, Link, Wire, transfer_s
from skyfx.solver.core.graph import Graph
from skyfx.solver.core.plan import Assumptions
from skyfx.solver.core.schedule import Kind
from skyfx.solver.costs.cost_model import Placement, crossings


@dataclass(frozen=True, slots=True)
class Message:
    """The message of a micro-batch across a boundary, in one direction, and its wire.

    Attributes:
        sender: the device that sends it.
        receiver: the device that receives it.
        wire: None where moving takes no time.
        size_bytes: of all its values; 0 where there is no message.
        overlaps: whether both devices compute meanwhile.
    """

    sender: str
    receiver: str
    wire: Wire | Link | None
    size_bytes: float
    overlaps: bool

    @property
    def waits_s(self) -> float:
        """Seconds for which neither of its two devices computes."""
        waits = self.size_bytes and not self.overlaps
        return transfer_s(self.wire, self.size_bytes) if waits else 0.0


@dataclass(frozen=True, slots=True)
class ActionTimes:
    """Seconds of the stages' actions and their messages.

    Attributes:
        devices: the device of each stage, `(num_stages,)`.
        seconds: of each stage's forward and backward, `(num_stages,)`.
        forward: the messages with values, `(num_stages - 1,)`.
        backward: those with their gradients, `(num_stages - 1,)`.
        sending: bytes per second of the port through which a device sends, by its name.
        receiving: bytes per second of the port through which it receives, by its name.
    """

    devices: tuple[str, ...]
    seconds: tuple[Mapping[Kind, float], ...]
    forward: tuple[Message, ...]
    backward: tuple[Message, ...]
    sending: Mapping[str, float]
    receiving: Mapping[str, float]

    @classmethod
    def of(
        cls, graph: Graph, cluster: Cluster, placement: Placement, assumptions: Assumptions
    ) -> "ActionTimes":
        """The times of a placement; communication is `relay`."""
        names = tuple(name for name, _ in placement)
        wires = cluster.wiring()
        forward, backward = _messages(graph, cluster, placement, assumptions)
        return cls(
            devices=names,
            seconds=tuple(_seconds(graph, cluster, placement)),
            forward=tuple(forward),
            backward=tuple(backward),
            sending={a: _fastest(wires(a, b) for b in names if b != a) for a in names},
            receiving={b: _fastest(wires(a, b) for a in names if a != b) for b in names},
        )


def _seconds(
    graph: Graph, cluster: Cluster, placement: Placement
) -> Iterable[Mapping[Kind, float]]:
    devices = {device.name: device for device in cluster.devices}
    nodes = {node.id: node for node in graph.nodes}
    for name, ids in placement:
        device, members = devices[name], [nodes[v] for v in ids]
        forward = sum(node.forward_s.get(device.type, 0.0) for node in members)
        backward = sum(node.backward_s.get(device.type, 0.0) for node in members)
        yield {Kind.FORWARD: device.slowdown * forward, Kind.BACKWARD: device.slowdown * backward}


def _messages(
    graph: Graph, cluster: Cluster, placement: Placement, assumptions: Assumptions
) -> tuple[list[Message], list[Message]]:
    """Both directions of each boundary, `(num_stages - 1,)`."""
    wires, overlaps = cluster.wiring(), assumptions.overlap == "full"
    stage_of = {v: k for k, (_, ids) in enumerate(placement) for v in ids}
    forward, backward = [], []
    for k, crossing in enumerate(crossings(graph, stage_of, len(placement))):
        here, there = placement[k][0], placement[k + 1][0]
        values = sum(node.output_bytes for node in crossing)
        gradients = sum(node.gradient_bytes for node in crossing)
        forward.append(Message(here, there, wires(here, there), values, overlaps))
        backward.append(Message(there, here, wires(there, here), gradients, overlaps))
    return forward, backward


def _fastest(wires: Iterable[Wire | Link | None]) -> float:
    """The highest rate of a device's links: its port is at least as fast."""
    rates = (math.inf if wire is None else wire.bandwidth_bytes_per_s for wire in wires)
    return max(rates, default=math.inf)
