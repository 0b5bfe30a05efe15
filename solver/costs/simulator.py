r"""A discrete-event simulation of one step, on the cost model's times.

A device takes the actions of all its stages one after another, in the order of its schedule. Each
action waits for its inputs. Messages in one direction of a boundary follow each other. A device has
one port to send and one to receive, each as fast as the device's fastest link; messages share a
port evenly. With `overlap = full` the device computes meanwhile; with `none` both ends of a
transfer wait for it.

    stage 0   F0 F1 F2          B0    B1
                \  \  \        /     /          \, /: transfers, one after another
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


def simulate(
    graph: Graph,
    cluster: Cluster,
    placement: Placement,
    assumptions: Assumptions,
    live: Sequence[int] | None = None,
) -> Timeline:
    """Simulate a step of a placement under its schedule.

    Args:
        graph: the model.
        cluster: devices and links.
        placement: stages in pipeline order: the device's name and the ids of its nodes.
        assumptions: mode, schedule, number of micro-batches, overlap; communication is `relay`.
        live: micro-batches that may be live on each stage, `(num_stages,)`, where the schedule
            does not say.
    """
    times, m = ActionTimes.of(graph, cluster, placement, assumptions), assumptions.microbatches
    if not assumptions.training:
        return run_schedule(times, forwards(m, times.devices))
    live = live or in_flight_counts(assumptions.schedule, len(placement), m)
    return run_schedule(times, orders(live, m, times.devices))


def run_schedule(
    times: ActionTimes,
    actions: Orders,
    *,
    shared: bool = True,
    draw_factor: Callable[[], float] = lambda: 1.0,
) -> Timeline:
    """Simulate these actions.

    Args:
        times: seconds of the actions and their messages.
        actions: of each device, in order.
        shared: whether the messages of a device share its port; else each has its link to itself.
        draw_factor: called per action; the action takes so many times as long.
    """
    return _StepSimulation(times, actions, shared=shared, draw_factor=draw_factor).run()


@dataclass(slots=True, eq=False)
class _Channel:
    """One direction of a boundary, and the actions that wait for its messages.

    The first message of the `queue` moves: at `since_s` it had `left_bytes` left, at `rate`.
    """

    message: Message
    ports: tuple["_Port", "_Port"]
    queue: deque[Action] = field(default_factory=deque)
    left_bytes: float = 0.0
    since_s: float = 0.0
    rate: float = 0.0


@dataclass(slots=True, eq=False)
class _Port:
    """Where a device sends, or receives: the rate of its fastest link, and who shares it."""

    rate: float
    channels: dict[_Channel, None] = field(default_factory=dict)


@dataclass(slots=True)
class _Device:
    """A device: its actions, the next one, and those whose inputs have arrived."""

    actions: Sequence[Action]
    arrived: set[Action] = field(default_factory=set)
    next: int = 0
    is_busy: bool = False


@dataclass(slots=True)
class _Stage:
    """A stage: seconds of its actions, the channels it sends on, its longest queues."""

    device: _Device
    takes_s: dict[Kind, float]
    sends: dict[Kind, _Channel | None]
    max_queued: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))

    def note_queue(self, now: Kind) -> None:
        """Note how many messages with values are not sent yet, in an action of this kind."""
        if (channel := self.sends[Kind.FORWARD]) is not None:
            self.max_queued[now] = max(self.max_queued[now], len(channel.queue))


class _StepSimulation:
    """The state of a running simulation, and its events in the order of time."""

    def __init__(
        self, times: ActionTimes, actions: Orders, *, shared: bool, draw_factor: Callable[[], float]
    ) -> None:
        self._devices = {name: _Device(of_device) for name, of_device in actions.items()}
        self._stages = _stages(times, self._devices, shared=shared)
        self._drawn = draw_factor
        self._now_s = 0.0
        self._next: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._done: list[CompletedAction] = []

    def run(self) -> Timeline:
        """Run until all actions are done."""
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
            max_queued=tuple(
                (s.max_queued[Kind.FORWARD], s.max_queued[Kind.BACKWARD]) for s in self._stages
            ),
        )

    def _arrive(self, action: Action) -> None:
        """Note that the action's input has arrived."""
        device = self._stages[action.stage].device
        device.arrived.add(action)
        self._start(device)

    def _after(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._next, (self._now_s + seconds, next(self._count), happen))

    def _start(self, device: _Device) -> None:
        """Begin the next action of the device, if it is free and the input is there."""
        if device.is_busy or device.next == len(device.actions):
            return
        action = device.actions[device.next]
        if action not in device.arrived:
            return
        device.next += 1
        device.is_busy = True
        stage = self._stages[action.stage]
        if action.kind is Kind.BACKWARD:
            stage.note_queue(Kind.BACKWARD)
        takes_s = stage.takes_s[action.kind] * self._drawn()
        self._after(takes_s, partial(self._end, action, self._now_s))

    def _end(self, action: Action, began_s: float) -> None:
        """End an action and send its output."""
        stage, kind = self._stages[action.stage], action.kind
        stage.device.is_busy = False
        self._done.append(CompletedAction(action, began_s, self._now_s))
        if kind is Kind.FORWARD:
            stage.note_queue(Kind.FORWARD)
        channel = stage.sends[kind]
        if channel is not None:
            to = action.stage + (1 if kind is Kind.FORWARD else -1)
            self._send(channel, Action(to, kind, action.microbatch))
        elif kind is Kind.FORWARD:  # of the last stage
            self._arrive(Action(action.stage, Kind.BACKWARD, action.microbatch))
        self._start(stage.device)

    def _send(self, channel: _Channel, enables: Action) -> None:
        message = channel.message
        if message.size_bytes and message.wire is not None and message.overlaps:
            channel.queue.append(enables)
            if len(channel.queue) == 1:
                self._begin_transfer(channel)
        else:  # without overlap both ends have waited for it
            self._arrive(enables)

    def _begin_transfer(self, channel: _Channel) -> None:
        channel.left_bytes, channel.since_s = channel.message.size_bytes, self._now_s
        for port in channel.ports:
            port.channels[channel] = None
        self._share(channel)

    def _share(self, changed: _Channel) -> None:
        """Divide the two ports of a channel again among the channels that use them."""
        one, other = changed.ports
        for channel in dict.fromkeys((changed, *one.channels, *other.channels)):
            channel.left_bytes -= channel.rate * (self._now_s - channel.since_s)
            channel.since_s = self._now_s
            if channel not in channel.ports[0].channels:
                channel.rate = 0.0
                continue
            assert channel.message.wire is not None
            shares = [port.rate / len(port.channels) for port in channel.ports]
            channel.rate = min(channel.message.wire.bandwidth_bytes_per_s, *shares)
            self._after(
                max(0.0, channel.left_bytes) / channel.rate,
                partial(self._moved, channel, channel.rate, self._now_s),
            )

    def _moved(self, channel: _Channel, rate: float, since_s: float) -> None:
        """Deliver the message, unless the ports were divided again in the meantime."""
        if (rate, since_s) != (channel.rate, channel.since_s):
            return
        enables = channel.queue.popleft()
        for port in channel.ports:
            del port.channels[channel]
        assert channel.message.wire is not None
        self._after(channel.message.wire.latency_s, partial(self._arrive, enables))
        self._share(channel)
        if channel.queue:
            self._begin_transfer(channel)


def _stages(times: ActionTimes, devices: dict[str, _Device], *, shared: bool) -> list[_Stage]:
    sending = {name: _Port(rate) for name, rate in times.sending.items()}
    receiving = {name: _Port(rate) for name, rate in times.receiving.items()}

    def channel(message: Message) -> _Channel:
        if not shared:
            return _Channel(message, (_Port(math.inf), _Port(math.inf)))
        return _Channel(message, (sending[message.sender], receiving[message.receiver]))

    # Of the boundaries (num_stages + 1): nothing crosses the first and the last one.
    forward = [None, *map(channel, times.forward), None]
    backward = [None, *map(channel, times.backward), None]
    return [
        _Stage(
            device=devices[name],
            takes_s={
                kind: seconds[kind]
                + sum(channel.message.waits_s for channel in both if channel is not None)
                for kind, both in (
                    (Kind.FORWARD, forward[k : k + 2]),
                    (Kind.BACKWARD, backward[k : k + 2]),
                )
            },
            sends={Kind.FORWARD: forward[k + 1], Kind.BACKWARD: backward[k]},
        )
        for k, (name, seconds) in enumerate(zip(times.devices, times.seconds, strict=True))
    ]
