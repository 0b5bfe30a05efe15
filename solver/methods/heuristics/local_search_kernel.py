"""The kernel of `local_search`: moves of units between neighbouring stages, in compiled loops.

A move changes the two stages' sums and what crosses the boundary between them, and nothing else; so
it is made, and undone where it is not accepted.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from skyfx.solver.kernels import kernel
from skyfx.solver.problem.instance import Floats

DOUBLINGS = 5
"""The norm of the stages' times is that of power 2^5."""

SWAPS = 0.01
"""Share of moves that swap devices."""

MAX_MOVED = 256
"""Units that move together at most."""


class SearchArrays(NamedTuple):
    """The tables that give a move's cost; lists of lists are rows that begin at `.._at`."""

    reads_at: Any
    reads: Any
    readers_at: Any
    readers: Any
    touched_at: Any
    touched: Any
    """Values that each unit makes or reads."""
    producer: Any
    """Of each value; -1 for an input, which is fed to the first stage."""
    consumers_at: Any
    consumers: Any
    is_output: Any
    bytes: Floats
    """Forward and backward, one and whether there is a gradient, `(4, V)`."""
    time_s: Floats
    need: Floats
    """Bytes at each position from the end, `(positions, n)`."""
    limit: Floats
    wires: Floats
    """Latency and seconds per byte, `(2, D, D)`."""
    full: bool


class Totals(NamedTuple):
    """The sums of each stage, `(K,)`, and of each boundary after a stage, `(4, K)`."""

    compute: Any
    memory: Any
    crossing: Any


class Marks(NamedTuple):
    """The last move that touched each unit and each value; none is cleared."""

    unit: Any
    value: Any


@kernel()
def shift(devices: Any, stage_of: Any, heat: float, rounds: int, seed: int, of: Any) -> int:
    """Try so many moves at one temperature; returns how many were made."""
    np.random.seed(seed)
    n, num, made = len(stage_of), len(devices), 0
    sums = totals(devices, stage_of, of)
    norm = _norm(devices, sums, of)
    marks = Marks(np.zeros(n, dtype=np.int64), np.zeros(len(of.producer), dtype=np.int64))
    moved = np.empty(MAX_MOVED, dtype=np.int64)
    for stamp in range(1, rounds + 1):
        if np.random.random() < SWAPS:
            new = _swap(devices, stage_of, sums, norm, heat, of)
        else:
            unit = np.random.randint(n)
            to = stage_of[unit] + (1 if np.random.random() < 0.5 else -1)
            if to < 0 or to >= num:
                continue
            count = _closure(unit, to, stage_of, moved, marks.unit, stamp, of)
            units = moved[:count]
            new = _carry(units, to, devices, stage_of, sums, norm, heat, marks.value, stamp, of)
        if new >= 0:
            norm, made = new, made + 1
    return made


@kernel()
def _swap(devices: Any, stage_of: Any, sums: Any, norm: float, heat: float, of: Any) -> float:
    """Swap the devices of two stages; returns the new norm, or -1 if not accepted."""
    i, j = np.random.randint(len(devices)), np.random.randint(len(devices))
    devices[i], devices[j] = devices[j], devices[i]
    swapped = totals(devices, stage_of, of)
    new = _norm(devices, swapped, of)
    if (swapped.memory <= of.limit[devices]).all() and _accept(norm, new, heat):
        sums.compute[:], sums.memory[:] = swapped.compute, swapped.memory
        sums.crossing[:] = swapped.crossing
        return new
    devices[i], devices[j] = devices[j], devices[i]
    return -1.0


@kernel()
def _carry(
    moved: Any,
    to: int,
    devices: Any,
    stage_of: Any,
    sums: Any,
    norm: float,
    heat: float,
    marks: Any,
    stamp: int,
    of: Any,
) -> float:
    """Move units to the stage beside theirs; returns the new norm, or -1 if not accepted."""
    if len(moved) == 0:
        return -1.0
    compute, memory, crossing = sums.compute, sums.memory, sums.crossing
    num, k = len(devices), stage_of[moved[0]]
    b = min(k, to)
    old, was = (compute[k], compute[to], memory[k], memory[to]), crossing[:, b].copy()
    for side in (-1.0, 1.0):  # what crosses before the move is taken off, then put on
        for unit in moved:
            if side > 0:
                stage_of[unit] = to
        for unit in moved:
            for x in range(of.touched_at[unit], of.touched_at[unit + 1]):
                v = of.touched[x]
                if marks[v] != side * stamp:
                    marks[v] = side * stamp
                    if _crosses(v, b, stage_of, num, of):
                        crossing[:, b] += side * of.bytes[:, v]
    for unit in moved:
        compute[k] -= of.time_s[devices[k], unit]
        compute[to] += of.time_s[devices[to], unit]
        memory[k] -= of.need[num - k - 1, unit]
        memory[to] += of.need[num - to - 1, unit]
    new = _norm(devices, sums, of)
    if memory[to] <= max(of.limit[devices[to]], old[3]) and _accept(norm, new, heat):
        return new
    for unit in moved:
        stage_of[unit] = k
    compute[k], compute[to], memory[k], memory[to] = old
    crossing[:, b] = was
    return -1.0


@kernel()
def _accept(old: float, new: float, heat: float) -> bool:
    """Whether to accept a move; a better one always."""
    return bool(new <= old or (old > 0 and np.random.random() < math.exp((1 - new / old) / heat)))


@kernel()
def _closure(unit: int, to: int, stage_of: Any, moved: Any, marks: Any, stamp: int, of: Any) -> int:
    """The units of a stage that have to move with one; 0 if they are too many."""
    up, k = to < stage_of[unit], stage_of[unit]
    at, near = (of.reads_at, of.reads) if up else (of.readers_at, of.readers)
    moved[0], count, x = unit, 1, 0
    marks[unit] = stamp
    while x < count:
        for y in range(at[moved[x]], at[moved[x] + 1]):
            other = near[y]
            if stage_of[other] == k and marks[other] != stamp:
                if count == MAX_MOVED:
                    return 0
                marks[other] = stamp
                moved[count] = other
                count += 1
        x += 1
    return count


@kernel()
def _crosses(v: int, b: int, stage_of: Any, num: int, of: Any) -> bool:
    """Whether a value crosses the boundary after stage b."""
    if of.producer[v] >= 0 and stage_of[of.producer[v]] > b:
        return False
    if of.is_output[v]:
        return b < num - 1
    for x in range(of.consumers_at[v], of.consumers_at[v + 1]):
        if stage_of[of.consumers[x]] > b:
            return True
    return False


@kernel()
def totals(devices: Any, stage_of: Any, of: Any) -> Totals:
    """Add up the stages and the boundaries of a plan."""
    num = len(devices)
    compute, memory, crossing = np.zeros(num), np.zeros(num), np.zeros((4, num))
    for unit in range(len(stage_of)):
        k = stage_of[unit]
        compute[k] += of.time_s[devices[k], unit]
        memory[k] += of.need[num - k - 1, unit]
    for v in range(len(of.producer)):
        for b in range(num - 1):
            if _crosses(v, b, stage_of, num, of):
                crossing[:, b] += of.bytes[:, v]
    return Totals(compute, memory, crossing)


@kernel()
def _norm(devices: Any, sums: Any, of: Any) -> float:
    """The norm of the stages' times."""
    num = len(devices)
    times = sums.compute.copy()
    for b in range(num - 1):
        d, e, held = devices[b], devices[b + 1], sums.crossing[:, b]
        move = of.wires[1, d, e] * held[0] + of.wires[1, e, d] * held[1]
        move += of.wires[0, d, e] * (held[2] > 0.5) + of.wires[0, e, d] * (held[3] > 0.5)
        if of.full:
            times[b], times[b + 1] = max(times[b], move), max(times[b + 1], move)
        else:
            times[b] += move
            times[b + 1] += move
    most, norm = times.max(), 0.0
    if most == 0:
        return 0.0
    for time in times:
        power = time / most
        for _ in range(DOUBLINGS):
            power *= power
        norm += power
    return float(most * norm ** (0.5**DOUBLINGS))
