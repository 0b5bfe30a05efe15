"""The kernel of the DP over all ideals of a graph in `host` communication, in compiled loops.

From the last stage to the first: `best[x, c]` is the least bottleneck of stages that hold
everything outside ideal x, on the devices that state c counts. What makes it quick is the *window*
of a state: the work in ideal x, and writing what crosses behind it, have to fit into the devices
that are left, within T. Of all ideals few are in the window of any state.

Legend: `x`, `y` ideals, x in y, by growing weighted work `weight`; `c` a state, `g` a group of
identical devices; `i` unit, `v` value. Lists of lists stand one behind the other: those of x from
`first[x]` to `first[x + 1]`.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from skyfx.solver.costs.moves import send_s
from skyfx.solver.methods.ideals.bitset_kernels import has, within

__all__: list[str] = ["Boundaries", "Devices", "crossing", "reach"]


class Boundaries(NamedTuple):
    """The ideals behind which a stage may begin."""

    members: Any
    """As bits, `(N, words)`."""
    weight: Any
    """Weighted work, `(N,)`."""
    compute: Any
    """Seconds on each group's device, `(N, G)`; units that it cannot run left out."""
    barred: Any
    """How many units it cannot run, `(N, G)`."""
    parameters: Any
    saved: Any
    first: Any
    """The values that cross."""
    crossing: Any


class Devices(NamedTuple):
    """Values, groups of identical devices, and states of how many of each are used."""

    producer: Any
    readers: Any
    """Of each value, as bits, `(V, words)`."""
    count: Any
    size: Any
    peak: Any
    wire: Any
    """Latency and seconds per byte to the host, and from it, `(G, 4)`."""
    limit: Any
    live: Any
    """Micro-batches whose activations are kept, by position, `(D + 1,)`."""
    position: Any
    """How many devices each state uses, `(C,)`."""
    more: Any
    """The state with one more device of a group, or -1, `(C, G)`."""
    room: Any
    """Weighted work that the devices left over can do within T, `(C,)`."""
    write: Any
    """Weighted seconds for a tensor and for a byte that they write, at least, `(C, 2)`."""
    price: Any
    """Weight of a second of each group, `(G,)`."""


@njit(cache=True)
def crossing(members: Any, producer: Any, readers: Any, first: Any, values: Any) -> int:
    """List the values that cross behind each ideal; returns how many, or -1 without room."""
    num = 0
    for x in range(len(members)):
        first[x] = num
        for v in range(len(producer)):
            if has(members[x], producer[v]) and not within(readers[v], members[x]):
                if num == len(values):
                    return -1
                values[num] = v
                num += 1
    first[len(members)] = num
    return num


@njit(cache=True)
def reach(part: Any, rules: Any, bounds: Any, devices: Any, tables: Any) -> None:
    """Work out `best` of all ideals from some ideals on, which are done with themselves.

    Args:
        part: ideals y, from the larger to the smaller end, of the stages that are looked at.
        rules: T, what no plan undercuts, and whether moving overlaps with computing.
        bounds: the ideals, `Boundaries`.
        devices: `Devices`.
        tables: `best`, the ideal behind the stage and the group of its device, `(N, C)` each, and
            the window of each ideal: weighted work in it and writing, for each state, `(N, C)`.
    """
    best, bottleneck = tables[0], rules[0]
    widest = devices.price.max() * bottleneck
    members, weight = bounds.members, bounds.weight
    promising = np.empty(part[0] + 1, dtype=np.int32)
    for y in range(part[0], part[1], -1):
        _drop(y, best, devices)
        alive, room = False, 0.0
        for c in range(best.shape[1]):
            if best[y, c] <= bottleneck:
                for g in range(devices.more.shape[1]):
                    if devices.more[c, g] >= 0:
                        alive, room = True, max(room, devices.room[devices.more[c, g]])
        if not alive:
            continue
        lowest = int(np.searchsorted(weight, (weight[y] - widest) * (1 - 1e-9)))
        highest = min(y, int(np.searchsorted(weight, room, side="right")))
        num = 0
        for x in range(lowest, highest):
            within = True
            for word in range(members.shape[1]):
                if members[x, word] & ~members[y, word]:
                    within = False
                    break
            if within:
                promising[num] = x
                num += 1
        num = _promising(y, promising, num, rules, bounds, devices, tables)
        for k in range(num):
            _stage(promising[k], y, rules, bounds, devices, tables)


@njit(cache=True)
def _promising(
    y: int, promising: Any, num: int, rules: Any, bounds: Any, devices: Any, tables: Any
) -> int:
    """Of these ideals in y, keep those that a stage between may help, if moving took nothing."""
    bottleneck, proven, _ = rules
    best, window = tables[0], tables[3]
    compute, barred, more, room = bounds.compute, bounds.barred, devices.more, devices.room
    states, groups = more.shape
    kept = 0
    for k in range(num):
        x, helps = promising[k], False
        for g in range(groups):
            busy = max(proven, compute[y, g] - compute[x, g])
            if busy > bottleneck or barred[y, g] != barred[x, g]:
                continue
            for c in range(states):
                then = more[c, g]
                if then < 0 or best[y, c] > bottleneck or window[x, then] > room[then]:
                    continue
                if max(busy, best[y, c]) < best[x, then]:
                    helps = True
                    break
        if helps:
            promising[kept] = x
            kept += 1
    return kept


@njit(cache=True)
def _stage(x: int, y: int, rules: Any, bounds: Any, devices: Any, tables: Any) -> None:
    """The stage between two ideals, on each device and behind each state that allow it."""
    bottleneck, proven, full = rules
    best, behind, group, window = tables
    moved = (-1.0, 0.0, 0.0, 0.0)
    for g in range(devices.more.shape[1]):
        compute = bounds.compute[y, g] - bounds.compute[x, g]
        if bounds.barred[y, g] != bounds.barred[x, g] or compute > bottleneck:
            continue
        busy = -1.0
        for c in range(best.shape[1]):
            then = devices.more[c, g]
            if then < 0 or best[y, c] > bottleneck or window[x, then] > devices.room[then]:
                continue
            if max(compute, best[y, c], proven) >= best[x, then]:
                continue  # no better plan comes of it, whatever moves
            if busy < 0:
                if moved[0] < 0:
                    moved = _moved(x, y, bounds, devices)
                busy = _busy(compute, moved, devices.wire[g], full)
            value = max(busy, best[y, c])
            if value > bottleneck or value >= best[x, then]:
                continue
            if _fits(x, y, g, then, bounds, devices):
                best[x, then], behind[x, then], group[x, then] = value, y, g


@njit(cache=True, inline="always")
def _busy(compute: float, moved: Any, wire: Any, full: bool) -> float:
    """Seconds of a stage that writes and reads so much."""
    write = send_s((wire[0], wire[1]), moved[0], moved[1])
    read = send_s((wire[2], wire[3]), moved[2], moved[3])
    return float(max(compute, write, read) if full else compute + write + read)


@njit(cache=True)
def _drop(y: int, best: Any, devices: Any) -> None:
    """Forget states that another with fewer devices matches."""
    least = best[y].copy()  # of each state and those with fewer devices
    for c in range(best.shape[1]):
        for g in range(devices.more.shape[1]):
            then = devices.more[c, g]
            if then >= 0 and least[c] <= least[then]:
                least[then], best[y, then] = least[c], np.inf


@njit(cache=True)
def _moved(x: int, y: int, bounds: Any, devices: Any) -> Any:
    """Tensors and bytes that a stage writes, tensors and bytes that it reads."""
    writes = written = reads = read = 0.0
    inner, outer = bounds.members[x], bounds.members[y]
    for k in range(bounds.first[y], bounds.first[y + 1]):
        v = bounds.crossing[k]
        if not has(inner, devices.producer[v]):
            writes += devices.count[v]
            written += devices.size[v]
    for k in range(bounds.first[x], bounds.first[x + 1]):
        v = bounds.crossing[k]
        for word in range(len(inner)):
            if devices.readers[v, word] & outer[word] & ~inner[word]:
                reads += devices.count[v]
                read += devices.size[v]
                break
    return writes, written, reads, read


@njit(cache=True)
def _fits(x: int, y: int, g: int, c: int, bounds: Any, devices: Any) -> bool:
    """Whether the stage fits the memory of a device of group g, the last one that c counts."""
    limit = devices.limit[g]
    if limit == np.inf:
        return True
    need = bounds.parameters[y] - bounds.parameters[x]
    need += (bounds.saved[y] - bounds.saved[x]) * devices.live[devices.position[c]]
    peak = 0.0
    for i in range(len(devices.peak)):
        if devices.peak[i] > peak and has(bounds.members[y], i) and not has(bounds.members[x], i):
            peak = devices.peak[i]
    return bool(need + peak <= limit)
