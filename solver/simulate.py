r"""What a step takes when every action of the schedule is followed, on the cost model's times.

A device does one action after another, in the order of its schedule, and each waits for what it
reads. A link carries one message after another in each direction. With `overlap = full` devices
compute meanwhile; with `none` both ends of a transfer wait for it.

    stage 0   F0 F1 F2          B0    B1
                \  \  \        /     /          \, /: what a transfer takes, one after another
    stage 1        F0 B0 F1 B1 F2 B2
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from skyfx.solver.cluster import Cluster, Link, Wire, transfer_s
from skyfx.solver.cost import Placement, crossings
from skyfx.solver.graph import Graph
from skyfx.solver.plan import Assumptions
from skyfx.solver.schedule import Action, Kind, orders

__all__: list[str] = ["Done", "Timeline", "simulate"]


@dataclass(frozen=True, slots=True)
class Done:
    """An action of a stage, from when to when, in seconds from the beginning of the step."""

    stage: int
    action: Action
    began_s: float
    ended_s: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """A simulated step: its actions in the order in which they end, and what it takes."""

    done: tuple[Done, ...]
    step_s: float


def simulate(
    graph: Graph, cluster: Cluster, placement: Placement, assumptions: Assumptions
) -> Timeline:
    """Follow the schedule of a plan.

    Args:
        graph: the model.
        cluster: devices and links.
        placement: stages in pipeline order: the device's name and the ids of its nodes.
        assumptions: mode, schedule, number of micro-batches, overlap; communication is `relay`.
    """
    schedule = assumptions.schedule if assumptions.training else "inference"
    actions = orders(schedule, len(placement), assumptions.microbatches)
    stages = _stages(graph, cluster, placement, assumptions, actions)
    found = []
    while waiting := [stage for stage in stages if stage.actions]:
        ready = [done for stage in waiting for done in stage.go_on(stages)]
        assert ready, "the schedule waits for itself"
        found += ready
    found.sort(key=lambda done: done.ended_s)
    return Timeline(tuple(found), max(stage.free_s for stage in stages))


@dataclass(slots=True)
class _Way:
    """One direction of a boundary: its wire, what a message holds, and when it is free again."""

    wire: Wire | Link | None
    size_bytes: float
    overlaps: bool
    free_s: float = 0.0

    @property
    def waits_s(self) -> float:
        """What a transfer keeps each of its two ends from computing."""
        moves = self.size_bytes and not self.overlaps
        return transfer_s(self.wire, self.size_bytes) if moves else 0.0

    def arrives_s(self, sent_s: float) -> float:
        """When a message that is ready then is there."""
        if not self.size_bytes or self.wire is None:
            return sent_s
        if not self.overlaps:
            return sent_s  # both ends have waited for it
        began_s = max(sent_s, self.free_s)
        self.free_s = began_s + self.size_bytes / self.wire.bandwidth_bytes_per_s
        return self.free_s + self.wire.latency_s


@dataclass(slots=True)
class _Stage:
    """A stage while it is simulated."""

    k: int
    seconds: dict[Kind, float]
    actions: list[Action]
    ways: dict[Kind, _Way | None]
    receives: dict[Kind, _Way | None]
    arrived: dict[Action, float]
    free_s: float = 0.0
    next: int = field(default=0)

    def go_on(self, stages: Sequence["_Stage"]) -> list[Done]:
        """Take all actions whose inputs are known."""
        found = []
        while self.next < len(self.actions) and self.actions[self.next] in self.arrived:
            action = self.actions[self.next]
            self.next += 1
            came = self.receives[action.kind]
            began_s = max(self.free_s, self.arrived.pop(action))
            ended_s = began_s + self.seconds[action.kind] + (came.waits_s if came else 0.0)
            self.free_s = ended_s
            found.append(Done(self.k, action, began_s, ended_s))
            way = self.ways[action.kind]
            if way is not None:
                self.free_s += way.waits_s
                to = self.k + (1 if action.kind is Kind.FORWARD else -1)
                stages[to].arrived[action] = way.arrives_s(self.free_s)
            elif action.kind is Kind.FORWARD:
                self.arrived[Action(Kind.BACKWARD, action.microbatch)] = ended_s
        if self.next == len(self.actions):
            self.actions = []
        return found


def _stages(
    graph: Graph,
    cluster: Cluster,
    placement: Placement,
    assumptions: Assumptions,
    actions: Sequence[list[Action]],
) -> list[_Stage]:
    devices = {device.name: device for device in cluster.devices}
    nodes = {node.id: node for node in graph.nodes}
    last = len(placement) - 1
    forward, backward = _ways(graph, cluster, placement, assumptions)
    stages = []
    for k, (name, ids) in enumerate(placement):
        device, members = devices[name], [nodes[v] for v in ids]
        both = [
            device.slowdown * sum(table.get(device.type, 0.0) for table in tables)
            for tables in (
                [node.forward_s for node in members],
                [node.backward_s for node in members],
            )
        ]
        stages.append(
            _Stage(
                k=k,
                seconds=dict(zip(Kind, both, strict=True)),
                actions=list(actions[k]),
                ways={
                    Kind.FORWARD: forward[k] if k < last else None,
                    Kind.BACKWARD: backward[k - 1] if k else None,
                },
                receives={
                    Kind.FORWARD: forward[k - 1] if k else None,
                    Kind.BACKWARD: backward[k] if k < last else None,
                },
                arrived={}
                if k
                else {Action(Kind.FORWARD, m): 0.0 for m in range(assumptions.microbatches)},
            )
        )
    return stages


def _ways(
    graph: Graph, cluster: Cluster, placement: Placement, assumptions: Assumptions
) -> tuple[list[_Way], list[_Way]]:
    """Both directions of each boundary, `(num_stages - 1,)`."""
    wires, overlaps = cluster.wiring(), assumptions.overlap == "full"
    stage_of = {v: k for k, (_, ids) in enumerate(placement) for v in ids}
    forward, backward = [], []
    for k, crossing in enumerate(crossings(graph, stage_of, len(placement))):
        here, there = placement[k][0], placement[k + 1][0]
        sizes = sum(n.output_bytes for n in crossing), sum(n.gradient_bytes for n in crossing)
        forward.append(_Way(wires(here, there), sizes[0], overlaps))
        backward.append(_Way(wires(there, here), sizes[1], overlaps))
    return forward, backward
