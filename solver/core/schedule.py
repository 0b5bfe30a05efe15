"""Who does what when: each device's own order of forwards and backwards.

Three stages, four micro-batches, time to the right (F0 = forward of micro-batch 0):

    gpipe   F0 F1 F2 F3 .. .. .. .. B0 B1 B2 B3      1f1b   F0 F1 F2 .. .. B0 F3 B1 .. B2 .. B3
            .. F0 F1 F2 F3 .. .. B0 B1 B2 B3 ..             .. F0 F1 .. B0 F2 B1 F3 B2 .. B3
            .. .. F0 F1 F2 F3 B0 B1 B2 B3 .. ..             .. .. F0 B0 F1 B1 F2 B2 F3 B3

One rule makes them all. On a stage some micro-batches may be *live*: forward has been done and
backward has not. It does as many forwards, then takes turns, one backward and one forward. With 3,
2, 1 live that is 1f1b, with 4, 4, 4 gpipe; other plans say how many.

Where no stage has more live than the one before it, none waits for ever. Before the backward of
micro-batch i a stage with n live does the forwards up to i + n - 1. The stage before, which may
have at least n live, does these after its backward of i - 1 at the latest. So a backward waits for
those of earlier micro-batches alone, and for its own on later stages.

A device with several stages (`interleaved`) takes their actions in the order in which it could if
every forward took one tick, every backward two and moving nothing. So that does not wait for itself
either.

An order says nothing about times: a device waits only for what its next action needs. Forwards and
backwards go in the order of the micro-batches, as they do on a single device: gradients are then
summed in the same order.
"""

import itertools
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple

__all__: list[str] = [
    "Action",
    "Kind",
    "Orders",
    "deadlock_reason",
    "forwards",
    "in_flight_counts",
    "live_count",
    "orders",
]


class Kind(Enum):
    """What an action does with its micro-batch."""

    FORWARD = "forward"
    BACKWARD = "backward"


TICKS = {Kind.FORWARD: 1, Kind.BACKWARD: 2}


class Action(NamedTuple):
    """One forward or backward of one micro-batch on one stage."""

    stage: int
    kind: Kind
    microbatch: int

    def __str__(self) -> str:
        return f"{self.kind.value} of micro-batch {self.microbatch}"


Orders = Mapping[str, Sequence[Action]]
"""The actions of each device, by its name, in the order in which it takes them."""


def live_count(schedule: str, position: int, num_microbatches: int) -> int:
    """The most micro-batches that are live at once on a stage.

    Args:
        schedule: `gpipe`, else the number of `1f1b`, from which the others begin.
        position: of the stage, from the end, where it is 1.
        num_microbatches: micro-batches in the step.
    """
    return num_microbatches if schedule == "gpipe" else min(num_microbatches, position)


def in_flight_counts(schedule: str, num_stages: int, num_microbatches: int) -> tuple[int, ...]:
    """`live_count` of each stage, `(num_stages,)`."""
    return tuple(live_count(schedule, num_stages - k, num_microbatches) for k in range(num_stages))


def orders(live: Sequence[int], num_microbatches: int, devices: Sequence[str]) -> Orders:
    """The actions of a training step, by device.

    Args:
        live: how many micro-batches may be live on each stage, `(num_stages,)`.
        num_microbatches: micro-batches in the step; there may be fewer than are live.
        devices: the device of each stage, `(num_stages,)`.

    Raises:
        ValueError: the stages would wait for each other.
    """
    if fault := deadlock_reason(live):
        raise ValueError(fault)
    m = num_microbatches
    each = [_filled_then_turns(k, min(count, m), m) for k, count in enumerate(live)]
    return _merged(each, devices)


def deadlock_reason(live: Sequence[int]) -> str:
    """What is wrong with these numbers; empty where nothing is."""
    for k, (before, count) in enumerate(itertools.pairwise((live[0], *live))):
        if not 1 <= count <= before:
            expected = f"1 to {before}, as many as stage {k - 1} may have" if k else "at least 1"
            return f"stage {k}: {count} micro-batches may be live, expected {expected}"
    return ""


def forwards(num_microbatches: int, devices: Sequence[str]) -> Orders:
    """The actions of inference, by device; `devices` is `(num_stages,)`."""
    m = range(num_microbatches)
    each = [[Action(k, Kind.FORWARD, i) for i in m] for k in range(len(devices))]
    return _merged(each, devices)


def _filled_then_turns(k: int, live: int, m: int) -> list[Action]:
    """As many forwards as may be live, then one backward and one forward in turn."""
    actions = [Action(k, Kind.FORWARD, i) for i in range(live)]
    for i in range(m):
        actions.append(Action(k, Kind.BACKWARD, i))
        if live + i < m:
            actions.append(Action(k, Kind.FORWARD, live + i))
    return actions


def _merged(each: Sequence[list[Action]], devices: Sequence[str]) -> Orders:
    """The orders of stages as those of devices: in ticks, what can go on goes on."""
    if len(set(devices)) == len(devices):
        return dict(zip(devices, each, strict=True))
    merged: dict[str, list[Action]] = {name: [] for name in devices}
    left = [iter(actions) for actions in each]
    following = [next(actions, None) for actions in left]
    ended: dict[Action, int] = {}
    free_at = dict.fromkeys(merged, 0)
    for now in itertools.count():
        if all(action is None for action in following):
            return merged
        for name, actions in merged.items():
            ready = [
                action
                for action, home in zip(following, devices, strict=True)
                if action and home == name and _is_ready(action, ended, now, len(devices))
            ]
            if free_at[name] > now or not ready:
                continue
            action = min(ready, key=_precedence)
            actions.append(action)
            ended[action] = free_at[name] = now + TICKS[action.kind]
            following[action.stage] = next(left[action.stage], None)
    raise AssertionError("there is always a next tick")


def _is_ready(action: Action, ended: Mapping[Action, int], now: int, num_stages: int) -> bool:
    """Whether what the action reads from the stage beside it is there."""
    beside = action.stage + (-1 if action.kind is Kind.FORWARD else 1)
    if not 0 <= beside < num_stages:
        return True
    return ended.get(action._replace(stage=beside), now + 1) <= now


def _precedence(action: Action) -> tuple[bool, int, int]:
    """A backward before a forward, what is nearest to its end before what is further from it."""
    if action.kind is Kind.BACKWARD:
        return False, action.microbatch, action.stage
    return True, -action.stage, action.microbatch
