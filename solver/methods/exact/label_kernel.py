"""The kernel of the DP over ideals: labels that pass from ideal to ideal, in compiled loops.

A label at (state s, ideal I) stands for plans of everything outside I whose first stage, of state
s, is still open. It holds three sums:

    t   seconds of the open stage so far: what it sends, and its units outside I
    a   weighted time of the closed stages beyond T, sum_k y[d_k] (time_s(k) - T); mostly negative
    m   bytes of the open stage at its position

A label that is no better than another in all three is dropped. More than `width` labels of one cell
are thinned, in one of two ways. For a proof two become the least of both, a plan that need not
exist and is better than each: where none is left, there is none. For a plan one of two is dropped:
what is left exists.

With a `mode` other than BUSY latency is summed: with SHORTEST in `t`, which goes on adding up over
stages where T is endless; with STEP in `a`, where every stage keeps T as well.

Work that was put aside has to fit into what the stages leave of T: `a` of a whole plan and the work
aside may not exceed 0. Before that, `room[s]` is what is still to come: T for each device that is
not in s and for the open stage; the units in I will take at least `rest[I]` of it. Of the work
aside the closed stages behind I have to do at least `least[I]`, what reads something outside I; and
they can do no more than `most[I]`, what nothing in I reads: what they leave of T beyond is no use.
"""

import math
from typing import Any

import numpy as np
from numba import njit

__all__: list[str] = [
    "BUSY",
    "OVERFLOW",
    "SHORTEST",
    "STEP",
    "backtrack",
    "complete_labels",
    "propagate",
]

BUSY, SHORTEST, STEP = 0, 1, 2
"""What labels sum: weighted time beyond T, latency alone, or latency within T."""

OVERFLOW = -1
NONE = -1


@njit(cache=True)
def propagate(
    part: Any, rules: Any, states: Any, covers: Any, costs: Any, pool: Any, cells: Any
) -> int:
    """Make the labels of some states for one T.

    Args:
        part: the first of these states, the one behind the last, and the number of labels so far.
        rules: T, weighted work put aside (with STEP, latency aside less what a plan may have),
            whether moves overlap, the mode, labels a cell, and whether this is for a proof.
        states: group of each, devices from each on, `first` and `following` of what comes next.
        covers: `first`, `above`, `added` of the ideals.
        costs: `time[G, n]`, `move[G, G, N]`, `need[positions, n]`, `limit[G]`, `y[G]`, `rest[N]`,
            `room[S]`, `most[N]`, `least[N]`.
        pool: `t`, `a`, `m` and `back` of the labels.
        cells: start and count of the labels, `(S, N)` each.

    Returns:
        How many labels there are now, or `OVERFLOW` where the pool is too small.
    """
    width = rules[4]
    t, a, m, back = pool
    start, count = cells
    group, position, _, _ = states
    first, above, added = covers
    time, _, need, limit, _, rest, room, _, _ = costs
    open_ = (np.empty(4096), np.empty(4096), np.empty(4096), np.empty(4096, dtype=np.int32))
    begin, end, used = part
    spare = -rules[1] if rules[3] == STEP else 0.0
    for s in range(begin, end):
        g, p = group[s], position[s]
        for i in range(start.shape[1] - 1, -1, -1):
            start[s, i], count[s, i] = used, 0
            if rest[i] > room[s] + spare or not _reached(states, covers, count, s, i):
                continue
            num = _close(rules, states, costs, pool, cells, s, i, open_)
            for x in range(first[i], first[i + 1]):
                unit, j = added[x], above[x]
                for label in range(start[s, j], start[s, j] + count[s, j]):
                    longer, larger = t[label] + time[g, unit], m[label] + need[p, unit]
                    if longer <= rules[0] and larger <= limit[g]:
                        num = _add(open_, num, longer, a[label], larger, label)
            num = _reduce(open_, _prune(rules, costs, open_, num, g, s, i), width, rules)
            if used + num > len(t):
                return OVERFLOW
            for x in range(num):
                t[used], a[used], m[used] = open_[0][x], open_[1][x], open_[2][x]
                back[used] = open_[3][x]
                used += 1
            count[s, i] = num
    return int(used)


@njit(cache=True, inline="always")
def _reached(states: Any, covers: Any, count: Any, s: int, i: int) -> bool:
    """Whether any label can come to a cell; most have none, and this is the quick way out."""
    first, above, _ = covers
    for x in range(first[i], first[i + 1]):
        if count[s, above[x]]:
            return True
    _, _, first_after, following = states
    for x in range(first_after[s], first_after[s + 1]):
        if count[following[x], i]:
            return True
    return bool(first_after[s] == first_after[s + 1])


@njit(cache=True)
def _close(
    rules: Any, states: Any, costs: Any, pool: Any, cells: Any, s: int, i: int, open_: Any
) -> int:
    """Open a stage of state s that ends at ideal i: a label closes, or the pipeline ends."""
    bottleneck, _, full, mode, _, _ = rules
    most, least = costs[7][i], costs[8][i]
    t, a, _, _ = pool
    start, count = cells
    group, _, first, following = states
    move_s, weight = costs[1], costs[4]
    num = 0
    if first[s] == first[s + 1]:
        return _add(open_, 0, 0.0, 0.0, 0.0, NONE) if i == start.shape[1] - 1 else 0
    for x in range(first[s], first[s + 1]):
        r = following[x]
        move = move_s[group[s], group[r], i]
        for label in range(start[r, i], start[r, i] + count[r, i]):
            if mode == SHORTEST:
                num = _add(open_, num, t[label] + move, 0.0, 0.0, label)
            elif mode == STEP and full:
                if move <= bottleneck:
                    num = _add(open_, num, 0.0, a[label] + t[label] + move, 0.0, label)
            elif mode == STEP:
                if t[label] + move <= bottleneck:
                    num = _add(open_, num, move, a[label] + t[label], 0.0, label)
            elif full:
                busy = a[label] + weight[group[r]] * (t[label] - bottleneck)
                if move <= bottleneck and busy <= -least:
                    num = _add(open_, num, 0.0, max(busy, -most), 0.0, label)
            elif t[label] + move <= bottleneck:
                busy = a[label] + weight[group[r]] * (t[label] + move - bottleneck)
                if busy <= -least:
                    num = _add(open_, num, move, max(busy, -most), 0.0, label)
    return num


@njit(cache=True)
def _add(open_: Any, num: int, t: float, a: float, m: float, back: int) -> int:
    """Add a label unless another is as good; drop those that it makes useless."""
    ts, as_, ms, backs = open_
    kept = 0
    for x in range(num):
        if ts[x] <= t and as_[x] <= a and ms[x] <= m:
            return num
    for x in range(num):
        if not (t <= ts[x] and a <= as_[x] and m <= ms[x]):
            ts[kept], as_[kept], ms[kept], backs[kept] = ts[x], as_[x], ms[x], backs[x]
            kept += 1
    if kept == len(ts):  # full: the least of both is better than each
        kept -= 1
        t, a, m = min(t, ts[kept]), min(a, as_[kept]), min(m, ms[kept])
    ts[kept], as_[kept], ms[kept], backs[kept] = t, a, m, back
    return kept + 1


@njit(cache=True)
def _prune(rules: Any, costs: Any, open_: Any, num: int, g: int, s: int, i: int) -> int:
    """Keep the labels that leave enough weighted time for the units in ideal i."""
    ts, as_, ms, backs = open_
    if rules[3] == SHORTEST:
        return num
    weight, left = costs[4], costs[6][s] - costs[5][i] - rules[1]
    kept = 0
    for x in range(num):
        if as_[x] + weight[g] * ts[x] <= left:
            ts[kept], as_[kept], ms[kept], backs[kept] = ts[x], as_[x], ms[x], backs[x]
            kept += 1
    return kept


@njit(cache=True)
def _reduce(open_: Any, num: int, width: int, rules: Any) -> int:
    """At most `width` labels: of the two nearest one is left, or the least of both.

    What is near is by t; with STEP by both sums, which are seconds of latency alike.
    """
    ts, as_, ms, backs = open_
    both, proof = rules[3] == STEP, rules[5]
    if num <= width:
        return num
    order = np.argsort(ts[:num])
    ts[:num], as_[:num], ms[:num] = ts[:num][order], as_[:num][order], ms[:num][order]
    backs[:num] = backs[:num][order]
    while num > width:
        x, gap = 0, math.inf
        for y in range(num - 1):
            apart = ts[y + 1] - ts[y]
            if both:
                apart += abs(as_[y + 1] - as_[y])
            if apart < gap:
                x, gap = y, apart
        if proof:
            as_[x], ms[x] = min(as_[x], as_[x + 1]), min(ms[x], ms[x + 1])
        elif as_[x + 1] < as_[x] and x > 0:
            ts[x], as_[x], ms[x], backs[x] = ts[x + 1], as_[x + 1], ms[x + 1], backs[x + 1]
        for y in range(x + 1, num - 1):
            ts[y], as_[y], ms[y], backs[y] = ts[y + 1], as_[y + 1], ms[y + 1], backs[y + 1]
        num -= 1
    return num


@njit(cache=True)
def complete_labels(rules: Any, states: Any, costs: Any, pool: Any, cells: Any, labels: Any) -> int:
    """List whole plans in `labels`, those with the least of the mode's sum first; how many."""
    t, a, _, _ = pool
    start, count = cells
    busy = np.full(len(labels), math.inf)
    num = 0
    for s in range(start.shape[0]):
        for label in range(start[s, 0], start[s, 0] + count[s, 0]):
            value = a[label] + t[label]
            if rules[3] == BUSY:
                value = a[label] + costs[4][states[0][s]] * (t[label] - rules[0])
            if value > -rules[1]:
                continue
            x = num if num < len(labels) else int(busy.argmax())
            if value < busy[x]:
                busy[x], labels[x] = value, label
                num = max(num, x + 1)
    labels[:num] = labels[:num][np.argsort(busy[:num])]
    return num


@njit(cache=True)
def backtrack(label: int, states: Any, covers: Any, pool: Any, cells: Any, path: Any) -> int:
    """Write the cells `(state, ideal)` of a plan to `path`, first stage first; returns how many."""
    start, count = cells
    first, above, _ = covers
    _, _, first_after, following = states
    back = pool[3]
    s, i, num = 0, 0, 0
    while not start[s, 0] <= label < start[s, 0] + count[s, 0]:
        s += 1
    while label != NONE:
        path[num, 0], path[num, 1] = s, i
        num += 1
        label = back[label]
        here = (s, i)
        for x in range(first[i], first[i + 1]):
            if start[s, above[x]] <= label < start[s, above[x]] + count[s, above[x]]:
                i = above[x]
                break
        if (s, i) == here:
            for x in range(first_after[s], first_after[s + 1]):
                r = following[x]
                if start[r, i] <= label < start[r, i] + count[r, i]:
                    s = r
                    break
    return num
