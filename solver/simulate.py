r"""What a step takes when every action of the schedule is followed, on the cost model's times.

A device does one action after another, in the order of its schedule, and each waits for what it
reads. In each direction of a boundary one message follows the other. A device has one port to the
network to send and one to receive, as fast as its fastest link, which messages to or from both its
neighbours share evenly. With
`overlap = full` it computes meanwhile; with `none` both ends of a transfer wait for it.

    stage 0   F0 F1 F2          B0    B1
                \  \  \        /     /          \, /: what a transfer takes, one after another
    stage 1        F0 B0 F1 B1 F2 B2
"""

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

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
    """A simulated step.

    Attributes:
        done: its actions, in the order in which they end.
        step_s: what it takes.
        waiting: of each stage, `(num_stages,)`: the most messages with values that have not gone
            out when it ends a forward, and when it begins a backward.
    """

    done: tuple[Done, ...]
    step_s: float
    waiting: tuple[tuple[int, int], ...]


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
        run.arrive(0, Action(Kind.FORWARD, m))
    return run.to_the_end()


@dataclass(slots=True, eq=False)
class _Way:
    """One direction of a boundary: its wire, what a message holds, and those that are under way.

    The first of `waiting` is being moved: `left_bytes` of it were left at `since_s`, at `rate`.
    """

    wire: Wire | Link | None
    size_bytes: float
    overlaps: bool
    ports: tuple["_Port", "_Port"]
    waiting: deque[tuple[int, Action]] = field(default_factory=deque)
    left_bytes: float = 0.0
    since_s: float = 0.0
    rate: float = 0.0

    @property
    def waits_s(self) -> float:
        """What a transfer keeps each of its two ends from computing."""
        moves = self.size_bytes and not self.overlaps
        return transfer_s(self.wire, self.size_bytes) if moves else 0.0


@dataclass(slots=True, eq=False)
class _Port:
    """Where a device sends, or receives: its fastest link's rate, and the ways that share it."""

    rate: float
    ways: set[_Way] = field(default_factory=set)


@dataclass(slots=True)
class _Stage:
    """A stage: seconds of its actions, their order, and the ways that it sends on."""

    seconds: dict[Kind, float]
    actions: list[Action]
    sends: dict[Kind, _Way | None]
    receives: dict[Kind, _Way | None]
    arrived: set[Action] = field(default_factory=set)
    waiting: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))
    next: int = 0
    is_busy: bool = False

    def note_waiting(self, now: Kind) -> None:
        """Note how many messages with values have not gone out, in an action of this kind."""
        if (way := self.sends[Kind.FORWARD]) is not None:
            self.waiting[now] = max(self.waiting[now], len(way.waiting))


class _Run:
    """A step while it goes on: what happens next, in the order of time."""

    def __init__(self, stages: Sequence[_Stage]) -> None:
        self._stages = stages
        self._now_s = 0.0
        self._next: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._done: list[Done] = []

    def to_the_end(self) -> Timeline:
        """Until all actions have been taken."""
        while self._next:
            self._now_s, _, happen = heapq.heappop(self._next)
            happen()
        assert all(s.next == len(s.actions) for s in self._stages), "the schedule waits for itself"
        return Timeline(
            done=tuple(self._done),
            step_s=max(done.ended_s for done in self._done),
            waiting=tuple(
                (s.waiting[Kind.FORWARD], s.waiting[Kind.BACKWARD]) for s in self._stages
            ),
        )

    def arrive(self, k: int, action: Action) -> None:
        """What the action of stage k reads is there."""
        self._stages[k].arrived.add(action)
        self._start(k)

    def _after(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._next, (self._now_s + seconds, next(self._count), happen))

    def _start(self, k: int) -> None:
        """Begin the next action of the stage, if it can be."""
        stage = self._stages[k]
        if stage.is_busy or stage.next == len(stage.actions):
            return
        action = stage.actions[stage.next]
        if action not in stage.arrived:
            return
        stage.next += 1
        stage.is_busy = True
        if action.kind is Kind.BACKWARD:
            stage.note_waiting(Kind.BACKWARD)
        ways = stage.receives[action.kind], stage.sends[action.kind]
        takes_s = stage.seconds[action.kind] + sum(way.waits_s for way in ways if way)
        self._after(takes_s, partial(self._end, k, action, self._now_s))

    def _end(self, k: int, action: Action, began_s: float) -> None:
        """Note an action, and send what it made."""
        stage = self._stages[k]
        stage.is_busy = False
        self._done.append(Done(k, action, began_s, self._now_s))
        if action.kind is Kind.FORWARD:
            stage.note_waiting(Kind.FORWARD)
        way = stage.sends[action.kind]
        if way is not None:
            to = k + (1 if action.kind is Kind.FORWARD else -1)
            if way.size_bytes and way.wire is not None and way.overlaps:
                way.waiting.append((to, action))
                if len(way.waiting) == 1:
                    self._begin_to_move(way)
            else:  # without overlap both ends have waited for it
                self.arrive(to, action)
        elif action.kind is Kind.FORWARD:  # of the last stage
            self.arrive(k, Action(Kind.BACKWARD, action.microbatch))
        self._start(k)

    def _begin_to_move(self, way: _Way) -> None:
        way.left_bytes, way.since_s = way.size_bytes, self._now_s
        for port in way.ports:
            port.ways.add(way)
        self._share(way)

    def _share(self, changed: _Way) -> None:
        """Divide the two ports of a way anew among those that use them."""
        for way in {changed, *changed.ports[0].ways, *changed.ports[1].ways}:
            way.left_bytes -= way.rate * (self._now_s - way.since_s)
            way.since_s = self._now_s
            if way not in way.ports[0].ways:
                way.rate = 0.0
                continue
            assert way.wire is not None
            shares = [port.rate / len(port.ways) for port in way.ports]
            way.rate = min(way.wire.bandwidth_bytes_per_s, *shares)
            self._after(
                max(0.0, way.left_bytes) / way.rate,
                partial(self._moved, way, way.rate, self._now_s),
            )

    def _moved(self, way: _Way, rate: float, since_s: float) -> None:
        """The message is there, unless the ports have been divided anew in the meantime."""
        if (rate, since_s) != (way.rate, way.since_s):
            return
        to, action = way.waiting.popleft()
        for port in way.ports:
            port.ways.discard(way)
        assert way.wire is not None
        self._after(way.wire.latency_s, partial(self.arrive, to, action))
        self._share(way)
        if way.waiting:
            self._begin_to_move(way)


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
    names = [name for name, _ in placement]
    sending = [_Port(_fastest(wires(a, b) for b in names if b != a)) for a in names]
    receiving = [_Port(_fastest(wires(a, b) for a in names if a != b)) for b in names]
    forward, backward = [], []
    for k, crossing in enumerate(crossings(graph, stage_of, len(placement))):
        here, there = placement[k][0], placement[k + 1][0]
        sizes = sum(n.output_bytes for n in crossing), sum(n.gradient_bytes for n in crossing)
        ports = (sending[k], receiving[k + 1]), (sending[k + 1], receiving[k])
        forward.append(_Way(wires(here, there), sizes[0], overlaps, ports[0]))
        backward.append(_Way(wires(there, here), sizes[1], overlaps, ports[1]))
    return forward, backward


def _fastest(wires: Iterable[Wire | Link | None]) -> float:
    """Of a device's links, the highest rate: what its port can do at least."""
    return max(
        (math.inf if w is None else w.bandwidth_bytes_per_s for w in wires), default=math.inf
    )
