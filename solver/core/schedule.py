"""The order in which each device takes its forwards and backwards.

Three stages, four micro-batches, time to the right (F0 = forward of micro-batch 0):

    gpipe   F0 F1 F2 F3 .. .. .. .. B0 B1 B2 B3      1f1b   F0 F1 F2 .. .. B0 F3 B1 .. B2 .. B3
            .. F0 F1 F2 F3 .. .. B0 B1 B2 B3 ..             .. F0 F1 .. B0 F2 B1 F3 B2 .. B3
            .. .. F0 F1 F2 F3 B0 B1 B2 B3 .. ..             .. .. F0 B0 F1 B1 F2 B2 F3 B3

One rule makes them all. A micro-batch is *in flight* on a stage after its forward and before its
backward. A stage with n in flight runs n forwards, then one backward and one forward in turn. The
counts 3, 2, 1 make 1f1b, 4, 4, 4 make gpipe; other plans bring other counts.

There is no deadlock where no stage has more in flight than the stage before it. Before the backward
of micro-batch i a stage with n in flight runs the forwards up to i + n - 1. The stage before has at
least n in flight, so it runs these at the latest after its backward of i - 1. So a backward waits
only for backwards of earlier micro-batches, and for its own on later stages.

A device with several stages (`interleaved`) takes their actions in the order that results if a
forward takes one tick, a backward two and a transfer none. This order has no deadlock either.

An order has no times: a device waits only for the input of its next action. Forwards and backwards
run in the order of the micro-batches, as on a single device, so gradients are summed in the same
order.
"""

import itertools
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple


class Kind(Enum):
    """Forward or backward."""

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
"""The actions of each device, by its name, in order."""


def in_flight_count(schedule: str, position: int, num_microbatches: int) -> int:
    """The most micro-batches in flight on a stage.

    Args:
        schedule: `gpipe`; for all others the count is that of `1f1b`, from which they begin.
        position: of the stage, from the end; the last stage has 1.
        num_microbatches: micro-batches in the step.
    """
    return num_microbatches if schedule == "gpipe" else min(num_microbatches, position)


def in_flight_counts(schedule: str, num_stages: int, num_microbatches: int) -> tuple[int, ...]:
    """`in_flight_count` of each stage, `(num_stages,)`."""
    return tuple(
        in_flight_count(schedule, num_stages - k, num_microbatches) for k in range(num_stages)
    )


def orders(in_flight: Sequence[int], num_microbatches: int, devices: Sequence[str]) -> Orders:
    """The actions of a training step, by device.

    Args:
        in_flight: micro-batches in flight per stage, `(num_stages,)`.
        num_microbatches: micro-batches in the step; there may be fewer than that.
        devices: the device of each stage, `(num_stages,)`.

    Raises:
        ValueError: the counts make a deadlock.
    """
    if fault := deadlock_reason(in_flight):
        raise ValueError(fault)
    m = num_microbatches
    each = [_filled_then_turns(k, min(count, m), m) for k, count in enumerate(in_flight)]
    return _merged(each, devices)


def deadlock_reason(in_flight: Sequence[int]) -> str:
    """Why these counts make a deadlock; empty where they do not."""
    for k, (before, count) in enumerate(itertools.pairwise((in_flight[0], *in_flight))):
        if not 1 <= count <= before:
            expected = f"1 to {before}, at most as many as stage {k - 1}" if k else "at least 1"
            return f"stage {k}: found {count} micro-batches in flight, expected {expected}"
    return ""


def forwards(num_microbatches: int, devices: Sequence[str]) -> Orders:
    """The actions of inference, by device; `devices` is `(num_stages,)`."""
    m = range(num_microbatches)
    each = [[Action(k, Kind.FORWARD, i) for i in m] for k in range(len(devices))]
    return _merged(each, devices)


def _filled_then_turns(k: int, in_flight: int, m: int) -> list[Action]:
    """Forwards of all that are in flight at once, then one backward and one forward in turn."""
    actions = [Action(k, Kind.FORWARD, i) for i in range(in_flight)]
    for i in range(m):
        actions.append(Action(k, Kind.BACKWARD, i))
        if in_flight + i < m:
            actions.append(Action(k, Kind.FORWARD, in_flight + i))
    return actions


def _merged(each: Sequence[list[Action]], devices: Sequence[str]) -> Orders:
    """Merge the orders of stages into those of devices, tick by tick."""
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
    """Whether the action's input from the neighbouring stage is there."""
    beside = action.stage + (-1 if action.kind is Kind.FORWARD else 1)
    if not 0 <= beside < num_stages:
        return True
    return ended.get(action._replace(stage=beside), now + 1) <= now


def _precedence(action: Action) -> tuple[bool, int, int]:
    """Backwards first; of backwards the earliest micro-batch, of forwards the last stage."""
    if action.kind is Kind.BACKWARD:
        return False, action.microbatch, action.stage
    return True, -action.stage, action.microbatch
