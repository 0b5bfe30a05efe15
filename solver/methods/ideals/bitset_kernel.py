"""Compiled functions on sets of units. A set is a row of 64-bit words, a bit per unit."""

from typing import Any, NamedTuple

import numpy as np

from skyfx.solver.kernels import kernel

ONE = np.uint64(1)


class Covers(NamedTuple):
    """The ideals that have one unit more than each ideal: the covers in the lattice.

    Those of ideal i are `target[first[i]:first[i + 1]]`, each larger by a `unit`.
    """

    first: Any
    target: Any
    unit: Any


@kernel(inline=True)
def has(bits: Any, i: int) -> bool:
    """Whether unit i is in a set."""
    return bool((bits[i >> 6] >> np.uint64(i & 63)) & ONE)


@kernel()
def _hash(bits: Any) -> Any:
    key = np.uint64(0x243F6A8885A308D3)
    for x in range(len(bits)):
        key = (key ^ bits[x]) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
    return key


@kernel()
def _slot(bits: Any, rows: Any, table: Any) -> int:
    """The slot of a set in the hash table, or the free slot for it."""
    num = len(table)
    k: Any = np.int64(_hash(bits) % np.uint64(num))
    while table[k] >= 0:
        same = True
        for x in range(len(bits)):
            if rows[table[k], x] != bits[x]:
                same = False
                break
        if same:
            break
        k = k + 1 if k + 1 < num else 0
    return int(k)


@kernel()
def ascend(ideals: Any, ready: Any, reads: Any, readers: Any, at_most: int) -> Any:
    """The ideals with one unit more than these; the first `at_most + 1` of them.

    Args:
        ideals: of one size, as bits, `(N, words)`.
        ready: the units that each can take next, as bits, `(N, words)`.
        reads: what each unit reads, as bits, `(n, words)`.
        readers: where each unit's list of readers begins, `(n + 1,)`, and all lists.
        at_most: the number of ideals after which to stop.

    Returns:
        The larger ideals, `(M, words)`, and the units that each can take next.
    """
    width, num = ideals.shape[1], 0
    rows = np.empty((max(64, 2 * len(ideals)), width), dtype=np.uint64)
    nexts = np.empty_like(rows)
    table = np.full(4 * len(rows), -1, dtype=np.int64)
    larger = np.empty(width, dtype=np.uint64)
    for x in range(len(ideals)):
        for word in range(width):
            left = ready[x, word]
            while left:
                i = 64 * word + lowest(left)
                left &= left - ONE
                larger[:] = ideals[x]
                larger[word] |= ONE << np.uint64(i & 63)
                k = _slot(larger, rows, table)
                if table[k] >= 0:
                    continue
                rows[num], nexts[num], table[k] = larger, ready[x], num
                nexts[num, word] &= ~(ONE << np.uint64(i & 63))
                for y in range(readers[0][i], readers[0][i + 1]):
                    j = readers[1][y]
                    if within(reads[j], larger):
                        nexts[num, j >> 6] |= ONE << np.uint64(j & 63)
                num += 1
                if num > at_most:
                    return rows[:num], nexts[:num]
                if num == len(rows):
                    rows, nexts = _twice(rows), _twice(nexts)
                    table = np.full(4 * len(rows), -1, dtype=np.int64)
                    for y in range(num):
                        table[_slot(rows[y], rows, table)] = y
    return rows[:num], nexts[:num]


@kernel()
def _twice(rows: Any) -> Any:
    """The same rows and as many empty ones."""
    larger = np.empty((2 * len(rows), rows.shape[1]), dtype=np.uint64)
    larger[: len(rows)] = rows
    return larger


@kernel(inline=True)
def lowest(word: Any) -> int:
    """The index of the lowest bit."""
    power, x = word & (~word + ONE), 0
    for step in (32, 16, 8, 4, 2, 1):
        if power >> np.uint64(step):
            power >>= np.uint64(step)
            x += step
    return x


@kernel()
def covers(ideals: Any, ready: Any, larger: Any) -> Any:
    """The covers of each ideal: the ideals of the next level with one unit more.

    Args:
        ideals: of one size, as bits, `(N, words)`.
        ready: the units that each can take next, as bits, `(N, words)`.
        larger: all that have one unit more, `(M, words)`.

    Returns:
        `Covers` of the ideals of this size; `target` counts the ideals of the next.
    """
    width, num = ideals.shape[1], 0
    table = np.full(4 * len(larger), -1, dtype=np.int64)
    for y in range(len(larger)):
        table[_slot(larger[y], larger, table)] = y
    first = np.zeros(len(ideals) + 1, dtype=np.int64)
    target = np.empty(4 * len(ideals) + 64 * width, dtype=np.int32)
    unit = np.empty_like(target)
    bits = np.empty(width, dtype=np.uint64)
    for x in range(len(ideals)):
        if num + 64 * width > len(target):
            target = np.concatenate((target, np.empty_like(target)))
            unit = np.concatenate((unit, np.empty_like(unit)))
        for word in range(width):
            left = ready[x, word]
            while left:
                i = 64 * word + lowest(left)
                left &= left - ONE
                bits[:] = ideals[x]
                bits[word] |= ONE << np.uint64(i & 63)
                target[num], unit[num] = table[_slot(bits, larger, table)], i
                num += 1
        first[x + 1] = num
    return Covers(first, target[:num], unit[:num])


@kernel(inline=True)
def within(small: Any, large: Any) -> bool:
    """Whether a set is within another."""
    for x in range(len(small)):  # noqa: SIM110 (numba compiles no generators)
        if small[x] & ~large[x]:
            return False
    return True
