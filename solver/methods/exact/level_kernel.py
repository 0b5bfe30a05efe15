"""The kernel of the DP over all ideals in `relay`, level by level, in compiled loops.

`least[x, s]` is the least time that an open stage of state s has taken by the ideal x: its sends,
and its units outside x. It comes from an ideal with one unit more, or from closing the stage behind
it and beginning a new one at x. No label is needed but this one number where memory does not bind
and no unit is put aside. Only states in whose *window* an ideal lies are looked at: the work in it
fits the devices that are left, and the work outside it those that are used, by weight and within T.

Legend: `x`, `y` ideals, `s`, `r` states, r behind s; `g`, `h` groups of identical devices.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from skyfx.solver.methods.ideals.bitset_kernels import has, within

__all__: list[str] = ["BEGINS", "CLOSES", "Costs", "Crossing", "crossing_sums", "descend"]

BEGINS = 255
"""How a label came about: the last stage begins; from this on, by which state behind; else by
which unit."""

CLOSES = 200


class Crossing(NamedTuple):
    """The values that can cross a boundary."""

    producer: Any
    """Its unit; -1 for an input, which crosses from the first stage on; -2 for one that floats."""
    readers: Any
    """As bits, `(V, words)`."""
    is_output: Any
    forward: Any
    backward: Any


class Costs(NamedTuple):
    """What states cost."""

    group: Any
    first: Any
    """States that can follow: `following[first[s]:first[s + 1]]`."""
    following: Any
    time: Any
    """`(G, n)`"""
    wires: Any
    """Latency and seconds per byte there, and back, `(4, G, G)`."""
    left: Any
    """Weighted work that an open stage and the devices that are left can do in T, `(S,)`."""
    used: Any
    """Weighted work that the devices of a state can do in T, `(S,)`."""


@njit(cache=True)
def crossing_sums(members: Any, values: Any) -> Any:
    """Bytes forward and back behind each ideal, and whether anything crosses, `(N, 4)`."""
    sums = np.zeros((len(members), 4))
    for x in range(len(members)):
        for v in range(len(values.producer)):
            producer = values.producer[v]
            if producer >= 0 and not has(members[x], producer):
                continue
            if producer == -2:
                read = False
                for word in range(members.shape[1]):
                    read = read or bool(values.readers[v, word] & members[x, word])
                if not read:
                    continue
            if values.is_output[v] or not within(values.readers[v], members[x]):
                sums[x, 0] += values.forward[v]
                sums[x, 1] += values.backward[v]
                sums[x, 2] = 1.0
                if values.backward[v] > 0:
                    sums[x, 3] = 1.0
    return sums


@njit(cache=True)
def descend(
    part: Any, rules: Any, level: Any, costs: Any, above: Any, least: Any, how: Any
) -> None:
    """Work out the labels of some ideals of a level from those of the next one.

    Args:
        part: the first ideal, and the one behind the last.
        rules: T, whether moves overlap with computing, whether this is the last level.
        level: covers of its ideals (`first`, `above`, `added`), what crosses behind them, and the
            weighted work in them and outside them.
        costs: `Costs`.
        above: `least` of the next level, `(M, S)`.
        least: of this level, `(N, S)`; to be filled.
        how: how each label came about, `(N, S)`; to be filled.
    """
    bottleneck, full, last = rules
    first, larger, added, sums, inside, outside = level
    group, begin, following = costs.group, costs.first, costs.following
    time, left, used = costs.time, costs.left, costs.used
    groups = time.shape[0]
    move = np.empty((groups, groups))
    for x in range(part[0], part[1]):
        least[x] = np.inf
        for g in range(groups):
            for h in range(groups):
                there = costs.wires[0, g, h] * sums[x, 2] + costs.wires[1, g, h] * sums[x, 0]
                back = costs.wires[2, g, h] * sums[x, 3] + costs.wires[3, g, h] * sums[x, 1]
                move[g, h] = there + back
        for s in range(len(group)):
            if inside[x] > left[s] or outside[x] > used[s]:
                continue
            g, best, way = group[s], np.inf, 0
            if last and begin[s] == begin[s + 1]:
                best, way = 0.0, BEGINS
            for k in range(first[x], first[x + 1]):
                longer = above[larger[k], s] + time[g, added[k]]
                if longer < best:
                    best, way = longer, k - first[x]
            for k in range(begin[s], begin[s + 1]):
                moved, closed = move[g, group[following[k]]], least[x, following[k]]
                busy = max(closed, moved) if full else closed + moved
                opened = 0.0 if full else moved
                if busy <= bottleneck and opened < best:
                    best, way = opened, CLOSES + k - begin[s]
            if best <= bottleneck:
                least[x, s], how[x, s] = best, way
