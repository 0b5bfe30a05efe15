r"""What a step takes when every action of the schedule is followed, on the cost model's times.

A device does one action after another, in the order of its schedule, and each waits for what it
reads. A device sends one message after another and receives one after another, whoever the others
are: it has one port to the network. With `overlap = full` it computes meanwhile; with `none` both
ends of a transfer wait for it.

    stage 0   F0 F1 F2          B0    B1
                \  \  \        /     /          \, /: what a transfer takes, one after another
    stage 1        F0 B0 F1 B1 F2 B2
"""

import heapq
import itertools
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
    run = _Run(_stages(graph, cluster, placement, assumptions))
    for m in range(assumptions.microbatches):
        run.arrive(0.0, 0, Action(Kind.FORWARD, m))
    return run.to_the_end()


@dataclass(frozen=True, slots=True)
class _Way:
    """One direction of a boundary: its wire, and what a message holds."""

    wire: Wire | Link | None
    size_bytes: float
    overlaps: bool

    @property
    def waits_s(self) -> float:
        """What a transfer keeps each of its two ends from computing."""
        moves = self.size_bytes and not self.overlaps
        return transfer_s(self.wire, self.size_bytes) if moves else 0.0


@dataclass(slots=True)
class _Stage:
    """A stage: seconds of its actions, their order, and what it sends over and receives from."""

    seconds: dict[Kind, float]
    actions: list[Action]
    sends: dict[Kind, _Way | None]
    receives: dict[Kind, _Way | None]
    arrived: set[Action] = field(default_factory=set)
    next: int = 0
    is_busy: bool = False
    sending_until_s: float = 0.0
    receiving_until_s: float = 0.0


class _Run:
    """A step while it goes on: what happens next, in the order of time."""

    def __init__(self, stages: Sequence[_Stage]) -> None:
        self._stages = stages
        self._next: list[tuple[float, int, int, Action, float | None]] = []
        self._count = itertools.count()
        self._done: list[Done] = []

    def arrive(self, at_s: float, k: int, action: Action) -> None:
        """What the action of stage k reads will be there then."""
        heapq.heappush(self._next, (at_s, next(self._count), k, action, None))

    def to_the_end(self) -> Timeline:
        """Until all actions have been taken."""
        now_s = 0.0
        while self._next:
            now_s, _, k, action, began_s = heapq.heappop(self._next)
            stage = self._stages[k]
            if began_s is None:
                stage.arrived.add(action)
            else:
                self._end(k, action, began_s, now_s)
            self._start(k, now_s)
        assert all(s.next == len(s.actions) for s in self._stages), "the schedule waits for itself"
        return Timeline(tuple(self._done), now_s)

    def _start(self, k: int, now_s: float) -> None:
        """Begin the next action of the stage, if it can be."""
        stage = self._stages[k]
        if stage.is_busy or stage.next == len(stage.actions):
            return
        action = stage.actions[stage.next]
        if action not in stage.arrived:
            return
        stage.next += 1
        stage.is_busy = True
        ways = stage.receives[action.kind], stage.sends[action.kind]
        takes_s = stage.seconds[action.kind] + sum(way.waits_s for way in ways if way)
        heapq.heappush(self._next, (now_s + takes_s, next(self._count), k, action, now_s))

    def _end(self, k: int, action: Action, began_s: float, now_s: float) -> None:
        """Note an action, and send what it made."""
        stage = self._stages[k]
        stage.is_busy = False
        self._done.append(Done(k, action, began_s, now_s))
        way = stage.sends[action.kind]
        if way is not None:
            to = k + (1 if action.kind is Kind.FORWARD else -1)
            self.arrive(self._moved_s(stage, self._stages[to], way, now_s), to, action)
        elif action.kind is Kind.FORWARD:  # of the last stage
            self.arrive(now_s, k, Action(Kind.BACKWARD, action.microbatch))

    def _moved_s(self, here: _Stage, there: _Stage, way: _Way, now_s: float) -> float:
        """When a message that is ready now is there."""
        if not way.size_bytes or way.wire is None or not way.overlaps:
            return now_s  # without overlap both ends have waited for it
        began_s = max(now_s, here.sending_until_s, there.receiving_until_s)
        ended_s = began_s + way.size_bytes / way.wire.bandwidth_bytes_per_s
        here.sending_until_s = there.receiving_until_s = ended_s
        return ended_s + way.wire.latency_s


def _stages(
    graph: Graph,
    cluster: Cluster,
    placement: Placement,
    assumptions: Assumptions,
) -> list[_Stage]:
    schedule = assumptions.schedule if assumptions.training else "inference"
    actions = orders(schedule, len(placement), assumptions.microbatches)
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
                seconds=dict(zip(Kind, both, strict=True)),
                actions=list(actions[k]),
                sends={
                    Kind.FORWARD: forward[k] if k < last else None,
                    Kind.BACKWARD: backward[k - 1] if k else None,
                },
                receives={
                    Kind.FORWARD: forward[k - 1] if k else None,
                    Kind.BACKWARD: backward[k] if k < last else None,
                },
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
