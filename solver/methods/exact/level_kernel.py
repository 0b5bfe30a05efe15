"""The kernel of the DP over all ideals in `relay`, level by level, in compiled loops.

`least[x, s]` is the least time that an open stage of state s has taken by the ideal x: its sends,
and its units outside x. It comes from an ideal with one unit more, or from closing the stage after
it and beginning a new one at x. This one number per cell is enough where memory does not bind and
no unit is relaxed. Only states in whose *window* an ideal lies are visited: within T and by weight,
the work in the ideal fits the devices that are left, and the work outside it fits those in use.

Legend: `x` ideal, `s`, `r` states, r a successor of s; `g`, `h` groups of identical devices.
"""

from typing import Any, NamedTuple

import numpy as np

from skyfx.solver.costs.moves import Crossing, move_s
from skyfx.solver.kernels import kernel
from skyfx.solver.methods.ideals.bitset_kernel import Covers, has, within
from skyfx.solver.methods.ideals.device_states import StateArrays

BEGINS = 255
"""How a label came about: the last stage begins."""

CLOSES = 200
"""How a label came about: from this number on, by which successor; below, by which cover."""


class LevelRules(NamedTuple):
    """What is asked of one level."""

    bottleneck: float
    overlaps: bool  # moves with computing
    last: bool  # whether this is the last level


class Values(NamedTuple):
    """The values that can cross a boundary, `(V,)` each."""

    producer: Any
    """Its unit; -1 for an input, which crosses from the first stage on; -2 for one that floats."""
    readers: Any
    """As bits, `(V, words)`."""
    is_output: Any
    forward_bytes: Any
    backward_bytes: Any


class Level(NamedTuple):
    """The ideals of one size; weighted work in each and outside it, `(N,)`."""

    covers: Covers
    crossing: Crossing
    inside: Any
    outside: Any


class LevelCosts(NamedTuple):
    """What states cost."""

    states: StateArrays
    time: Any
    """`(G, n)`"""
    wires: Any
    """Latency and seconds per byte, `(2, G, G)`."""
    left: Any
    """Weighted work that an open stage and the devices that are left can do in T, `(S,)`."""
    used: Any
    """Weighted work that the devices of a state can do in T, `(S,)`."""


@kernel()
def crossing_sums(members: Any, values: Any) -> Any:
    """What crosses the boundary after each ideal, `(N,)` each."""
    sums = np.zeros((4, len(members)))
    crossing = Crossing(sums[0], sums[1], sums[2], sums[3])
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
                crossing.forward_bytes[x] += values.forward_bytes[v]
                crossing.backward_bytes[x] += values.backward_bytes[v]
                crossing.forward[x] = 1.0
                if values.backward_bytes[v] > 0:
                    crossing.backward[x] = 1.0
    return crossing


@kernel()
def descend(
    begin: int, end: int, rules: Any, level: Any, costs: Any, above: Any, least: Any, how: Any
) -> None:
    """Work out the labels of the ideals from `begin` to `end` of a level from those of the next.

    Args:
        begin: the first of these ideals.
        end: the ideal after the last of them.
        rules: `LevelRules`.
        level: `Level`.
        costs: `LevelCosts`.
        above: `least` of the next level, `(M, S)`.
        least: of this level, `(N, S)`; to be filled.
        how: how each label came about, `(N, S)`; to be filled.
    """
    # Unpacked before the loops: a field of a tuple that is read in a loop costs its time there.
    bottleneck, overlaps, last = rules
    (first, target, unit), crossings, inside, outside = level
    forward_bytes, backward_bytes, forward, backward = crossings
    (group, _, begins, successor), time, wires, left, used = costs
    groups = time.shape[0]
    move = np.empty((groups, groups))
    for x in range(begin, end):
        least[x] = np.inf
        crossing = Crossing(forward_bytes[x], backward_bytes[x], forward[x], backward[x])
        for g in range(groups):
            for h in range(groups):
                there, back = (wires[0, g, h], wires[1, g, h]), (wires[0, h, g], wires[1, h, g])
                move[g, h] = move_s(there, back, crossing)
        for s in range(len(group)):
            if inside[x] > left[s] or outside[x] > used[s]:
                continue
            g, best, way = group[s], np.inf, 0
            if last and begins[s] == begins[s + 1]:
                best, way = 0.0, BEGINS
            for k in range(first[x], first[x + 1]):
                longer = above[target[k], s] + time[g, unit[k]]
                if longer < best:
                    best, way = longer, k - first[x]
            for k in range(begins[s], begins[s + 1]):
                moved, closed = move[g, group[successor[k]]], least[x, successor[k]]
                busy = max(closed, moved) if overlaps else closed + moved
                opened = 0.0 if overlaps else moved
                if busy <= bottleneck and opened < best:
                    best, way = opened, CLOSES + k - begins[s]
            if best <= bottleneck:
                least[x, s], how[x, s] = best, way
