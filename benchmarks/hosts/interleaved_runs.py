"""Rivals in turns, so that whatever else the machine does hits all of them alike.

    warm up   all of them, once
    memory    where devices have limits: what each takes, once
    turns     skyfx, even, one device, the two best by hand: five times; the original's way: once

Who needs more than a quarter of a minute a step has one turn. Who is cut by hand and far behind the
best of them keeps the time of its first step.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch

from benchmarks.common.cgroup_memory import OTHERS_BYTES, most_charged
from benchmarks.common.emulated_hosts import enter_quota, leave_quota, throttled
from benchmarks.hosts.competitors import Rival, update
from skyfx.runtime.distributed.process_group import ProcessGroup
from skyfx.runtime.memory.malloc import keep_freed

__all__: list[str] = ["Entry", "Record", "run"]

TURNS, LONG_S = 5, 15.0
BEST, NEAR = 2, 1.25
"""By hand: so many stay in, if they are within so many times the best of them."""

AHEAD_S, LATE_S, ATTEMPTS = 0.1, 0.05, 3
"""All begin at the same time, so long after they have agreed on it. Where a process comes late from
that, by so much, the step tells nothing; it is made again, unless that has happened so often."""

HEAP_BYTES, BLOCK_BYTES = 2**27, 2**24


@dataclass(slots=True)
class Record:
    """What became of a rival.

    Attributes:
        warm_s: its first step.
        steps_s: those that count; none for who is far behind.
        losses: of all steps.
        update_s: of the parameters, on the process where it takes longest; it is not in the steps.
        cpu: processor seconds a second of each process in its last step, `(num_workers,)`.
        throttled: how often the kernel stopped each of them meanwhile.
        charged: the most bytes of each process, where that was measured.
    """

    warm_s: float = 0.0
    steps_s: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    update_s: float = 0.0
    cpu: list[float] = field(default_factory=list)
    throttled: list[int] = field(default_factory=list)
    charged: list[float] = field(default_factory=list)

    @property
    def step_s(self) -> float:
        """Seconds of a step."""
        return median(self.steps_s or [self.warm_s])


@dataclass(frozen=True, slots=True)
class Entry:
    """A rival that takes part.

    Attributes:
        rival: the way to train.
        by_hand: whether only the best of its kind count.
        once: whether one turn does.
        keeps_limits: whether it holds itself to the devices' memory, and so keeps its own heap.
    """

    rival: Rival
    by_hand: bool = False
    once: bool = False
    keeps_limits: bool = False


@dataclass(frozen=True, slots=True)
class _Step:
    """What one process saw of a step; the clock is the machine's."""

    began_s: float
    ended_s: float
    update_s: float
    cpu_s: float
    throttled: int
    loss: float | None


def run(
    entries: Mapping[str, Entry], group: ProcessGroup, *, limited: bool, turns: int = TURNS
) -> dict[str, Record]:
    """Let them take their turns; every process of the job calls it, and all get the records."""
    records = {name: Record() for name in entries}
    for name, entry in entries.items():
        records[name].warm_s = _turn(entry, records[name], group, limited=limited)
    stay = _staying(entries, records)
    if limited:
        for name in stay:
            _charge(entries[name], records[name], group)
    for turn in range(turns):
        for name in stay:
            once = entries[name].once or records[name].warm_s > LONG_S
            if turn == 0 or not once:
                step_s = _turn(entries[name], records[name], group, limited=limited)
                records[name].steps_s.append(step_s)
    return records


def _staying(entries: Mapping[str, Entry], records: Mapping[str, Record]) -> list[str]:
    by_hand = sorted(
        (name for name, entry in entries.items() if entry.by_hand),
        key=lambda name: records[name].warm_s,
    )
    near = [x for x in by_hand if records[x].warm_s <= NEAR * records[by_hand[0]].warm_s][:BEST]
    return [name for name, entry in entries.items() if not entry.by_hand or name in near]


def _turn(entry: Entry, record: Record, group: ProcessGroup, *, limited: bool) -> float:
    """A step; its seconds."""
    if limited:
        _set_up_heap(entry)
    for _ in range(ATTEMPTS):
        mine, start_s = _step(entry.rival, group)
        steps = group.all_gather_json(mine, _Step)
        took_s = max(step.ended_s for step in steps) - start_s
        record.losses.append(_loss(steps))
        if all(step.began_s - start_s < LATE_S for step in steps):
            break
    record.update_s = max(step.update_s for step in steps)
    record.cpu = [step.cpu_s / took_s for step in steps]
    record.throttled = [step.throttled for step in steps]
    return took_s


def _step(rival: Rival, group: ProcessGroup) -> tuple[_Step, float]:
    """A step within the quotas, and when all were to begin."""
    enter_quota()
    start_s = max(group.all_gather_json(time.perf_counter(), float)) + AHEAD_S
    while (left_s := start_s - time.perf_counter()) > 0:
        time.sleep(left_s)
    before, cpu_s, began_s = throttled()["nr_throttled"], time.process_time(), time.perf_counter()
    loss = rival.step()
    ended_s = time.perf_counter()
    cpu_s = time.process_time() - cpu_s
    stopped = throttled()["nr_throttled"] - before
    update(rival)
    update_s = time.perf_counter() - ended_s
    leave_quota()
    return _Step(began_s, ended_s, update_s, cpu_s, stopped, loss), start_s


def _loss(steps: Sequence[_Step]) -> float:
    return next(step.loss for step in steps if step.loss is not None)


def _charge(entry: Entry, record: Record, group: ProcessGroup) -> None:
    """A step of which the kernel counts the memory."""
    _set_up_heap(entry)
    there = sum(x.nbytes for x in entry.rival.parameters())
    enter_quota()
    group.sum(torch.zeros(1))
    loss, most = most_charged(entry.rival.step)
    leave_quota()
    update(entry.rival)
    record.charged = group.all_gather_json(float(max(0, there + most - OTHERS_BYTES)), float)
    record.losses.append(
        next(x for (x,) in group.all_gather_json([loss], list[float | None]) if x is not None)
    )


def _set_up_heap(entry: Entry) -> None:
    """As the rival's process would have it if it were alone in it, and as warm."""
    keep_freed()
    if entry.keeps_limits:
        entry.rival.step()
        for parameter in entry.rival.parameters():
            parameter.grad = None
        return
    blocks = [torch.ones(BLOCK_BYTES // 4) for _ in range(HEAP_BYTES // BLOCK_BYTES)]
    del blocks
