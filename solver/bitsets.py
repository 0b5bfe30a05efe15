"""Sets of units as bits in words, and a graph's ideals enumerated as such, in compiled loops."""

from typing import Any

import numpy as np
from numba import njit

__all__: list[str] = ["ascend", "covers", "has", "within"]

ONE = np.uint64(1)


@njit(cache=True, inline="always")
def has(bits: Any, i: int) -> bool:
    """Whether unit i is in a set."""
    return bool((bits[i >> 6] >> np.uint64(i & 63)) & ONE)


@njit(cache=True)
def _hash(bits: Any) -> Any:
    key = np.uint64(0x243F6A8885A308D3)
    for x in range(len(bits)):
        key = (key ^ bits[x]) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
    return key


@njit(cache=True)
def _slot(bits: Any, rows: Any, table: Any) -> int:
    """Where a set stands in the hash table, or would."""
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


@njit(cache=True)
def ascend(ideals: Any, reads: Any, at_most: int) -> Any:
    """The ideals with one unit more than these, `(M, words)`; the first `at_most + 1` of them.

    Args:
        ideals: of one size, as bits, `(N, words)`.
        reads: what each unit reads, as bits, `(n, words)`.
        at_most: where to stop.
    """
    width, num = ideals.shape[1], 0
    rows = np.empty((max(64, 2 * len(ideals)), width), dtype=np.uint64)
    table = np.full(4 * len(rows), -1, dtype=np.int64)
    larger = np.empty(width, dtype=np.uint64)
    for x in range(len(ideals)):
        for i in range(len(reads)):
            if has(ideals[x], i) or not within(reads[i], ideals[x]):
                continue
            larger[:] = ideals[x]
            larger[i >> 6] |= ONE << np.uint64(i & 63)
            k = _slot(larger, rows, table)
            if table[k] >= 0:
                continue
            rows[num], table[k] = larger, num
            num += 1
            if num > at_most:
                return rows[:num]
            if num == len(rows):
                twice = np.empty((2 * num, width), dtype=np.uint64)
                twice[:num], rows = rows, twice
                table = np.full(4 * len(rows), -1, dtype=np.int64)
                for y in range(num):
                    table[_slot(rows[y], rows, table)] = y
    return rows[:num]


@njit(cache=True)
def covers(ideals: Any, larger: Any, reads: Any) -> Any:
    """Which of the next level's ideals have one unit more, and which unit.

    Args:
        ideals: of one size, as bits, `(N, words)`.
        larger: all that have one unit more, `(M, words)`.
        reads: what each unit reads, as bits, `(n, words)`.

    Returns:
        Lists one behind the other: where each ideal's begins, `(N + 1,)`, the larger ideal, the
        unit.
    """
    table = np.full(4 * len(larger), -1, dtype=np.int64)
    for y in range(len(larger)):
        table[_slot(larger[y], larger, table)] = y
    first = np.zeros(len(ideals) + 1, dtype=np.int64)
    above = np.empty(4 * len(ideals) + len(reads), dtype=np.int32)
    added = np.empty(len(above), dtype=np.int32)
    bits, num = np.empty(ideals.shape[1], dtype=np.uint64), 0
    for x in range(len(ideals)):
        if num + len(reads) > len(above):
            above = np.concatenate((above, np.empty_like(above)))
            added = np.concatenate((added, np.empty_like(added)))
        for i in range(len(reads)):
            if not has(ideals[x], i) and within(reads[i], ideals[x]):
                bits[:] = ideals[x]
                bits[i >> 6] |= ONE << np.uint64(i & 63)
                above[num], added[num] = table[_slot(bits, larger, table)], i
                num += 1
        first[x + 1] = num
    return first, above[:num], added[:num]


@njit(cache=True, inline="always")
def within(small: Any, large: Any) -> bool:
    """Whether a set is within another."""
    for x in range(len(small)):  # noqa: SIM110 (numba compiles no generators)
        if small[x] & ~large[x]:
            return False
    return True
