r"""What a step takes when every action of the schedule is followed, on the cost model's times.

A device does one action after another, in the order of its schedule, whichever of its stages they
belong to, and each waits for what it reads. In each direction of a boundary one message follows the
other. A device has one port to the network to send and one to receive, as fast as its fastest link,
which messages to or from its neighbours share evenly. With `overlap = full` it computes meanwhile;
with `none` both ends of a transfer wait for it.

    stage 0   F0 F1 F2          B0    B1
                \  \  \        /     /          \, /: what a transfer takes, one after another
    stage 1        F0 B0 F1 B1 F2 B2
"""

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from skyfx.solver.core.cluster import Cluster
from skyfx.solver.core.graph import Graph
from skyfx.solver.core.plan import Assumptions
from skyfx.solver.core.schedule import Action, Kind, Orders, forwards, in_flight_counts, orders
from skyfx.solver.core.timeline import CompletedAction, Timeline
from skyfx.solver.costs.action_times import ActionTimes, Message
from skyfx.solver.costs.cost_model import Placement

__all__: list[str] = ["follow", "simulate"]


def simulate(
    graph: Graph,
    cluster: Cluster,
    placement: Placement,
    assumptions: Assumptions,
    live: Sequence[int] | None = None,
) -> Timeline:
    """Follow the schedule of a plan.

    Args:
        graph: the model.
        cluster: devices and links.
        placement: stages in pipeline order: the device's name and the ids of its nodes.
        assumptions: mode, schedule, number of micro-batches, overlap; communication is `relay`.
        live: micro-batches that may be live on each stage, `(num_stages,)`, where the schedule
            does not say.
    """
    pace, m = ActionTimes.of(graph, cluster, placement, assumptions), assumptions.microbatches
    if not assumptions.training:
        return follow(pace, forwards(m, pace.devices))
    live = live or in_flight_counts(assumptions.schedule, len(placement), m)
    return follow(pace, orders(live, m, pace.devices))


def follow(
    pace: ActionTimes,
    actions: Orders,
    *,
    shared: bool = True,
    drawn: Callable[[], float] = lambda: 1.0,
) -> Timeline:
    """Take these actions at this pace.

    Args:
        pace: what they and their messages take.
        actions: of each device.
        shared: whether messages of one device share its port; else each has its link for itself.
        drawn: how many times as long the next action takes.
    """
    return _Run(pace, actions, shared=shared, drawn=drawn).to_the_end()


@dataclass(slots=True, eq=False)
class _Way:
    """One direction of a boundary: its message, and those that are under way.

    The first of `waiting` is being moved: `left_bytes` of it were left at `since_s`, at `rate`.
    """

    message: Message
    ports: tuple["_Port", "_Port"]
    waiting: deque[Action] = field(default_factory=deque)
    left_bytes: float = 0.0
    since_s: float = 0.0
    rate: float = 0.0


@dataclass(slots=True, eq=False)
class _Port:
    """Where a device sends, or receives: its fastest link's rate, and the ways that share it."""

    rate: float
    ways: dict[_Way, None] = field(default_factory=dict)


@dataclass(slots=True)
class _Device:
    """A device: what it has yet to do, and what is there for it."""

    actions: Sequence[Action]
    arrived: set[Action] = field(default_factory=set)
    next: int = 0
    is_busy: bool = False


@dataclass(slots=True)
class _Stage:
    """A stage: what its actions take, and the ways that it sends on."""

    device: _Device
    takes_s: dict[Kind, float]
    sends: dict[Kind, _Way | None]
    waiting: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))

    def note_waiting(self, now: Kind) -> None:
        """Note how many messages with values have not gone out, in an action of this kind."""
        if (way := self.sends[Kind.FORWARD]) is not None:
            self.waiting[now] = max(self.waiting[now], len(way.waiting))


class _Run:
    """A step while it goes on: what happens next, in the order of time."""

    def __init__(
        self, pace: ActionTimes, actions: Orders, *, shared: bool, drawn: Callable[[], float]
    ) -> None:
        self._devices = {name: _Device(of_device) for name, of_device in actions.items()}
        self._stages = _stages(pace, self._devices, shared=shared)
        self._drawn = drawn
        self._now_s = 0.0
        self._next: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._done: list[CompletedAction] = []

    def to_the_end(self) -> Timeline:
        """Until all actions have been taken."""
        for device in self._devices.values():  # the batch is there
            inputs = (a for a in device.actions if a.stage == 0 and a.kind is Kind.FORWARD)
            device.arrived.update(inputs)
            self._start(device)
        while self._next:
            self._now_s, _, happen = heapq.heappop(self._next)
            happen()
        ended = all(device.next == len(device.actions) for device in self._devices.values())
        assert ended, "the schedule waits for itself"
        return Timeline(
            done=tuple(self._done),
            step_s=max(done.ended_s for done in self._done),
            waiting=tuple(
                (s.waiting[Kind.FORWARD], s.waiting[Kind.BACKWARD]) for s in self._stages
            ),
        )

    def _arrive(self, action: Action) -> None:
        """What the action reads is there."""
        device = self._stages[action.stage].device
        device.arrived.add(action)
        self._start(device)

    def _after(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._next, (self._now_s + seconds, next(self._count), happen))

    def _start(self, device: _Device) -> None:
        """Begin the next action of the device, if it can be."""
        if device.is_busy or device.next == len(device.actions):
            return
        action = device.actions[device.next]
        if action not in device.arrived:
            return
        device.next += 1
        device.is_busy = True
        stage = self._stages[action.stage]
        if action.kind is Kind.BACKWARD:
            stage.note_waiting(Kind.BACKWARD)
        takes_s = stage.takes_s[action.kind] * self._drawn()
        self._after(takes_s, partial(self._end, action, self._now_s))

    def _end(self, action: Action, began_s: float) -> None:
        """Note an action, and send what it made."""
        stage, kind = self._stages[action.stage], action.kind
        stage.device.is_busy = False
        self._done.append(CompletedAction(action, began_s, self._now_s))
        if kind is Kind.FORWARD:
            stage.note_waiting(Kind.FORWARD)
        way = stage.sends[kind]
        if way is not None:
            to = action.stage + (1 if kind is Kind.FORWARD else -1)
            self._send(way, Action(to, kind, action.microbatch))
        elif kind is Kind.FORWARD:  # of the last stage
            self._arrive(Action(action.stage, Kind.BACKWARD, action.microbatch))
        self._start(stage.device)

    def _send(self, way: _Way, enables: Action) -> None:
        message = way.message
        if message.size_bytes and message.wire is not None and message.overlaps:
            way.waiting.append(enables)
            if len(way.waiting) == 1:
                self._begin_to_move(way)
        else:  # without overlap both ends have waited for it
            self._arrive(enables)

    def _begin_to_move(self, way: _Way) -> None:
        way.left_bytes, way.since_s = way.message.size_bytes, self._now_s
        for port in way.ports:
            port.ways[way] = None
        self._share(way)

    def _share(self, changed: _Way) -> None:
        """Divide the two ports of a way anew among those that use them."""
        for way in dict.fromkeys((changed, *changed.ports[0].ways, *changed.ports[1].ways)):
            way.left_bytes -= way.rate * (self._now_s - way.since_s)
            way.since_s = self._now_s
            if way not in way.ports[0].ways:
                way.rate = 0.0
                continue
            assert way.message.wire is not None
            shares = [port.rate / len(port.ways) for port in way.ports]
            way.rate = min(way.message.wire.bandwidth_bytes_per_s, *shares)
            self._after(
                max(0.0, way.left_bytes) / way.rate,
                partial(self._moved, way, way.rate, self._now_s),
            )

    def _moved(self, way: _Way, rate: float, since_s: float) -> None:
        """The message is there, unless the ports have been divided anew in the meantime."""
        if (rate, since_s) != (way.rate, way.since_s):
            return
        enables = way.waiting.popleft()
        for port in way.ports:
            del port.ways[way]
        assert way.message.wire is not None
        self._after(way.message.wire.latency_s, partial(self._arrive, enables))
        self._share(way)
        if way.waiting:
            self._begin_to_move(way)


def _stages(pace: ActionTimes, devices: dict[str, _Device], *, shared: bool) -> list[_Stage]:
    sending = {name: _Port(rate) for name, rate in pace.sending.items()}
    receiving = {name: _Port(rate) for name, rate in pace.receiving.items()}

    def way(message: Message) -> _Way:
        if not shared:
            return _Way(message, (_Port(math.inf), _Port(math.inf)))
        return _Way(message, (sending[message.sender], receiving[message.receiver]))

    def ways(messages: Sequence[Message]) -> list[_Way]:
        return [way(one) for one in messages]

    # Of the boundaries (num_stages + 1): nothing crosses the first and the last one.
    forward, backward = [None, *ways(pace.forward), None], [None, *ways(pace.backward), None]
    return [
        _Stage(
            device=devices[name],
            takes_s={
                kind: seconds[kind] + sum(way.message.waits_s for way in both if way is not None)
                for kind, both in (
                    (Kind.FORWARD, forward[k : k + 2]),
                    (Kind.BACKWARD, backward[k : k + 2]),
                )
            },
            sends={Kind.FORWARD: forward[k + 1], Kind.BACKWARD: backward[k]},
        )
        for k, (name, seconds) in enumerate(zip(pace.devices, pace.seconds, strict=True))
    ]
