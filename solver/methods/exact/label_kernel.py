"""The kernel of the DP over ideals: labels that pass from ideal to ideal, in compiled loops.

A label at (state s, ideal I) stands for plans of everything outside I whose first stage, of state
s, is still open. It holds three sums:

    t   seconds of the open stage so far: its sends, and its units outside I
    a   weighted time of the closed stages beyond T, sum_k y[d_k] (time_s(k) - T); mostly negative
    m   bytes of the open stage at its position

A label that is no better than another in all three sums is dropped. A cell with more than `width`
labels is reduced. When proving, two labels are merged into their component-wise minimum, a
relaxation; if no label survives, T is infeasible. When searching for a plan, one of the two is
dropped, so every label that is left has a plan.

With a `mode` other than BUSY the latency is summed: with SHORTEST in `t`, which goes on adding up
over stages and where T is infinite; with STEP in `a`, where every stage keeps T as well.

The work of relaxed units has to fit into the time that the stages leave of T: `a` of a whole plan
and the relaxed work may not exceed 0. Before that, `room[s]` is the time still to come: T for each
device that is not in s and for the open stage. The units in I take at least `rest[I]` of it. The
closed stages after I have to do at least `least[I]` of the relaxed work, which reads something
outside I. They can do at most `most[I]` of it, which nothing in I reads; more time is of no use.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from skyfx.solver.kernels import kernel
from skyfx.solver.methods.ideals.bitset_kernel import Covers
from skyfx.solver.methods.ideals.device_states import StateArrays

BUSY, SHORTEST, STEP = 0, 1, 2
"""What labels sum: weighted time beyond T, latency alone, or latency within T."""

OVERFLOW = NONE = -1
MOST_OPEN = 4096  # labels of one cell before it is reduced


class LabelRules(NamedTuple):
    """What a plan has to keep, and how labels are reduced.

    `relaxed` is the weighted relaxed work; with STEP it is the relaxed latency less the latency
    that a plan may have.
    """

    bottleneck: float
    relaxed: float
    overlaps: bool  # moves with computing
    mode: int
    width: int
    proof: bool


class LabelCosts(NamedTuple):
    """Costs at one T: of `G` groups, `n` units, `N` ideals, `S` states, `P` positions."""

    time: Any  # (G, n)
    move: Any  # (G, G, N)
    need: Any  # (P, n)
    limit: Any  # (G,)
    price: Any  # (G,), y in the legend
    rest: Any  # (N,)
    room: Any  # (S,)
    most: Any  # (N,)
    least: Any  # (N,)


class Labels(NamedTuple):
    """The sums of labels in arrays of one length."""

    t: Any
    a: Any
    m: Any
    back: Any  # the label that each came from


class Cells(NamedTuple):
    """Where the labels of each cell are in the pool, `(S, N)` each."""

    start: Any
    count: Any


class LabelArrays(NamedTuple):
    """All that labels are made from, and where they are kept."""

    states: StateArrays
    covers: Covers
    costs: LabelCosts
    pool: Labels
    cells: Cells


@kernel()
def propagate(begin: int, end: int, used: int, rules: Any, tables: Any) -> int:
    """Add the labels of states `begin` to `end` after `used` labels; how many now, or OVERFLOW."""
    states, covers, costs, (t, a, m, back), (start, count) = tables
    (first, target, unit), (time, _, need, limit, _, rest, room, _, _) = covers, costs
    ts, as_, ms = np.empty(MOST_OPEN), np.empty(MOST_OPEN), np.empty(MOST_OPEN)
    opened = Labels(ts, as_, ms, np.empty(MOST_OPEN, dtype=np.int32))
    spare = -rules.relaxed if rules.mode == STEP else 0.0
    for s in range(begin, end):
        g, p = states.group[s], states.position[s]
        for i in range(start.shape[1] - 1, -1, -1):
            start[s, i], count[s, i] = used, 0
            if rest[i] > room[s] + spare or not _reached(states, covers, count, s, i):
                continue
            num = _close_stage(rules, tables, s, i, opened)
            for x in range(first[i], first[i + 1]):
                u, j = unit[x], target[x]
                for label in range(start[s, j], start[s, j] + count[s, j]):
                    longer, larger = t[label] + time[g, u], m[label] + need[p, u]
                    if longer <= rules.bottleneck and larger <= limit[g]:
                        num = _add(opened, num, longer, a[label], larger, label)
            num = _reduce(opened, _prune(rules, costs, opened, num, g, s, i), rules)
            if used + num > len(t):
                return OVERFLOW
            for x in range(num):
                t[used], a[used], m[used], back[used] = ts[x], as_[x], ms[x], opened.back[x]
                used += 1
            count[s, i] = num
    return int(used)


@kernel(inline=True)
def _reached(states: Any, covers: Any, count: Any, s: int, i: int) -> bool:
    """Whether any label can come to a cell; most have none, and this is the quick way out."""
    first, target, _ = covers
    for x in range(first[i], first[i + 1]):
        if count[s, target[x]]:
            return True
    _, _, begin, successor = states
    for x in range(begin[s], begin[s + 1]):
        if count[successor[x], i]:
            return True
    return bool(begin[s] == begin[s + 1])


@kernel()
def _close_stage(rules: Any, tables: Any, s: int, i: int, opened: Any) -> int:
    """Open a stage of state s that ends at ideal i: a label closes, or the pipeline ends."""
    (group, _, first, successor), _, costs, (t, a, _, _), (start, count) = tables
    (bottleneck, _, overlaps, mode, _, _), move_s, prices = rules, costs.move, costs.price
    most, least, num = costs.most[i], costs.least[i], 0
    if first[s] == first[s + 1]:
        return _add(opened, 0, 0.0, 0.0, 0.0, NONE) if i == start.shape[1] - 1 else 0
    for x in range(first[s], first[s + 1]):
        r = successor[x]
        move, price = move_s[group[s], group[r], i], prices[group[r]]
        for label in range(start[r, i], start[r, i] + count[r, i]):
            if mode == SHORTEST:
                num = _add(opened, num, t[label] + move, 0.0, 0.0, label)
            elif mode == STEP and overlaps:
                if move <= bottleneck:
                    num = _add(opened, num, 0.0, a[label] + t[label] + move, 0.0, label)
            elif mode == STEP:
                if t[label] + move <= bottleneck:
                    num = _add(opened, num, move, a[label] + t[label], 0.0, label)
            elif overlaps:
                busy = a[label] + price * (t[label] - bottleneck)
                if move <= bottleneck and busy <= -least:
                    num = _add(opened, num, 0.0, max(busy, -most), 0.0, label)
            elif t[label] + move <= bottleneck:
                busy = a[label] + price * (t[label] + move - bottleneck)
                if busy <= -least:
                    num = _add(opened, num, move, max(busy, -most), 0.0, label)
    return num


@kernel()
def _add(opened: Any, num: int, t: float, a: float, m: float, back: int) -> int:
    """Add a label unless another is as good; drop those that it makes useless."""
    ts, as_, ms, backs = opened
    kept = 0
    for x in range(num):
        if ts[x] <= t and as_[x] <= a and ms[x] <= m:
            return num
    for x in range(num):
        if not (t <= ts[x] and a <= as_[x] and m <= ms[x]):
            ts[kept], as_[kept], ms[kept], backs[kept] = ts[x], as_[x], ms[x], backs[x]
            kept += 1
    if kept == len(ts):  # full: the minimum of two is no worse than each
        kept -= 1
        t, a, m = min(t, ts[kept]), min(a, as_[kept]), min(m, ms[kept])
    ts[kept], as_[kept], ms[kept], backs[kept] = t, a, m, back
    return kept + 1


@kernel()
def _prune(rules: Any, costs: Any, opened: Any, num: int, g: int, s: int, i: int) -> int:
    """Keep the labels that leave enough weighted time for the units in ideal i."""
    ts, as_, ms, backs = opened
    if rules.mode == SHORTEST:
        return num
    price, left = costs.price[g], costs.room[s] - costs.rest[i] - rules.relaxed
    kept = 0
    for x in range(num):
        if as_[x] + price * ts[x] <= left:
            ts[kept], as_[kept], ms[kept], backs[kept] = ts[x], as_[x], ms[x], backs[x]
            kept += 1
    return kept


@kernel()
def _reduce(opened: Any, num: int, rules: Any) -> int:
    """At most `width` labels: the two nearest become one of them, or their minimum for a proof.

    Distance is by t; with STEP by both sums, since both are seconds of latency.
    """
    ts, as_, ms, backs = opened
    if num <= rules.width:
        return num
    order = np.argsort(ts[:num])
    ts[:num], as_[:num], ms[:num] = ts[:num][order], as_[:num][order], ms[:num][order]
    backs[:num] = backs[:num][order]
    while num > rules.width:
        x, gap = 0, math.inf
        for y in range(num - 1):
            apart = ts[y + 1] - ts[y]
            if rules.mode == STEP:
                apart += abs(as_[y + 1] - as_[y])
            if apart < gap:
                x, gap = y, apart
        if rules.proof:
            as_[x], ms[x] = min(as_[x], as_[x + 1]), min(ms[x], ms[x + 1])
        elif as_[x + 1] < as_[x] and x > 0:
            ts[x], as_[x], ms[x], backs[x] = ts[x + 1], as_[x + 1], ms[x + 1], backs[x + 1]
        for y in range(x + 1, num - 1):
            ts[y], as_[y], ms[y], backs[y] = ts[y + 1], as_[y + 1], ms[y + 1], backs[y + 1]
        num -= 1
    return num


@kernel()
def complete_labels(rules: Any, tables: Any, labels: Any) -> int:
    """Write the best whole plans' labels to `labels`, least sum first; returns how many."""
    states, _, costs, pool, cells = tables
    start, count = cells
    sums = np.full(len(labels), math.inf)
    num = 0
    for s in range(start.shape[0]):
        for label in range(start[s, 0], start[s, 0] + count[s, 0]):
            value = pool.a[label] + pool.t[label]
            if rules.mode == BUSY:
                beyond = pool.t[label] - rules.bottleneck
                value = pool.a[label] + costs.price[states.group[s]] * beyond
            if value > -rules.relaxed:
                continue
            x = num if num < len(labels) else int(sums.argmax())
            if value < sums[x]:
                sums[x], labels[x] = value, label
                num = max(num, x + 1)
    labels[:num] = labels[:num][np.argsort(sums[:num])]
    return num


@kernel()
def backtrack(label: int, tables: Any, path: Any) -> int:
    """Write the cells `(state, ideal)` of a plan to `path`, first stage first; returns how many."""
    states, covers, _, pool, cells = tables
    start, count = cells
    s, i, num = 0, 0, 0
    while not start[s, 0] <= label < start[s, 0] + count[s, 0]:
        s += 1
    while label != NONE:
        path[num, 0], path[num, 1] = s, i
        num += 1
        label = pool.back[label]
        here = (s, i)
        for x in range(covers.first[i], covers.first[i + 1]):
            larger = covers.target[x]
            if start[s, larger] <= label < start[s, larger] + count[s, larger]:
                i = larger
                break
        if (s, i) == here:
            for x in range(states.first[s], states.first[s + 1]):
                r = states.successor[x]
                if start[r, i] <= label < start[r, i] + count[r, i]:
                    s = r
                    break
    return num
