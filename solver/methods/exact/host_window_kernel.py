"""The kernel of the DP over all ideals of a graph in `host` communication, in compiled loops.

From the last stage to the first: `best[x, c]` is the least bottleneck of stages that hold
everything outside ideal x, on the devices that state c counts. It is fast because of the *window*
of a state: the work in ideal x, and writing the values that cross after it, have to fit into the
devices that are left, within T. Few ideals are in the window of any state.

Legend: `x`, `y` ideals, x in y, by growing weighted work `weight`; `c` a state, `g` a group of
identical devices; `i` unit, `v` value. Lists of lists are joined: the list of x is from `first[x]`
to `first[x + 1]`.
"""

from typing import Any, NamedTuple

import numpy as np

from skyfx.solver.costs.moves import send_s
from skyfx.solver.kernels import kernel
from skyfx.solver.methods.ideals.bitset_kernel import has, within


class WindowBoundaries(NamedTuple):
    """The ideals after which a stage may begin."""

    members: Any
    """As bits, `(N, words)`."""
    weight: Any
    """Weighted work, `(N,)`."""
    compute: Any
    """Seconds on each group's device, `(N, G)`, without units that it cannot run."""
    barred: Any
    """The number of units that the device cannot run, `(N, G)`."""
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
    """The number of devices that each state uses, `(C,)`."""
    more: Any
    """The state with one more device of a group, or -1, `(C, G)`."""
    room: Any
    """Weighted work that the devices that are left can do within T, `(C,)`."""
    write: Any
    """Least weighted seconds for a tensor and for a byte that those devices write, `(C, 2)`."""
    price: Any
    """Weight of a second of each group, `(G,)`."""


class WindowRules(NamedTuple):
    """T, a proven lower bound, and whether moves overlap with computing."""

    bottleneck: float
    proven: float
    overlaps: bool


class WindowArrays(NamedTuple):
    """Of each ideal and state, `(N, C)`: the best plan's stage, and the window."""

    best: Any
    after: Any
    """The ideal after the stage."""
    group: Any
    """The group of its device."""
    window: Any
    """Weighted work in the ideal and of writing."""


@kernel()
def crossing(members: Any, producer: Any, readers: Any, first: Any, values: Any) -> int:
    """List the values that cross after each ideal; how many, or -1 if `values` is too short."""
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


@kernel()
def reach(begin: int, end: int, rules: Any, bounds: Any, devices: Any, tables: Any) -> None:
    """Update `best` by all stages that end at an ideal from `begin` down to `end`, exclusive.

    `best` of these ideals has to be final: larger ideals come first.
    """
    best, bottleneck = tables.best, rules.bottleneck
    widest = devices.price.max() * bottleneck
    members, weight = bounds.members, bounds.weight
    promising = np.empty(begin + 1, dtype=np.int32)
    for y in range(begin, end, -1):
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


@kernel()
def _promising(
    y: int, promising: Any, num: int, rules: Any, bounds: Any, devices: Any, tables: Any
) -> int:
    """Keep the ideals in y from which a stage to y may help if moving took no time."""
    bottleneck, proven = rules.bottleneck, rules.proven
    best, window = tables.best, tables.window
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


@kernel()
def _stage(x: int, y: int, rules: Any, bounds: Any, devices: Any, tables: Any) -> None:
    """The stage between two ideals, on each device and before each state that allow it."""
    bottleneck, proven, overlaps = rules
    best, after, group, window = tables
    writes, written, reads, read = -1.0, 0.0, 0.0, 0.0
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
                if writes < 0:
                    writes, written, reads, read = _moved(x, y, bounds, devices)
                wire = devices.wire[g]
                send = send_s((wire[0], wire[1]), writes, written)
                receive = send_s((wire[2], wire[3]), reads, read)
                busy = max(compute, send, receive) if overlaps else compute + send + receive
            value = max(busy, best[y, c])
            if value > bottleneck or value >= best[x, then]:
                continue
            if _fits(x, y, g, then, bounds, devices):
                best[x, then], after[x, then], group[x, then] = value, y, g


@kernel()
def _drop(y: int, best: Any, devices: Any) -> None:
    """Drop states that are no better than a state with fewer devices."""
    least = best[y].copy()  # of each state and of those with fewer devices
    for c in range(best.shape[1]):
        for g in range(devices.more.shape[1]):
            then = devices.more[c, g]
            if then >= 0 and least[c] <= least[then]:
                least[then], best[y, then] = least[c], np.inf


@kernel()
def _moved(x: int, y: int, bounds: Any, devices: Any) -> Any:
    """Tensors and bytes that a stage writes, and tensors and bytes that it reads."""
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


@kernel()
def _fits(x: int, y: int, g: int, c: int, bounds: Any, devices: Any) -> bool:
    """Whether the stage fits the memory of a device of group g, the last device that c counts."""
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
