"""All ideals of a problem as bit sets in arrays, and compiled functions on such sets."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from skyfx.solver.kernels import kernel
from skyfx.solver.methods.ideals.device_states import States
from skyfx.solver.methods.ideals.order_ideals import Covers, Ideals, bits, floating, neighbours
from skyfx.solver.methods.limits import Limits
from skyfx.solver.problem.instance import Floats, UnitPlacement, Value
from skyfx.solver.problem.problem import Problem

ONE = np.uint64(1)


@dataclass(frozen=True)
class BitIdeals:
    """The lattice of a problem. Units in it are counted from 0; the others float."""

    problem: Problem

    @cached_property
    def units(self) -> list[int]:
        """The index in the problem of each unit."""
        outside = set(floating(self.problem))
        return [i for i in range(self.problem.num_units) if i not in outside]

    @cached_property
    def place(self) -> dict[int, int]:
        """The index here of each unit of the problem that does not float."""
        return {i: x for x, i in enumerate(self.units)}

    @cached_property
    def values(self) -> list[tuple[Value, list[int]]]:
        """Each value with the units, counted here, that read it, without its producer."""
        return [
            (v, sorted(self.place[i] for i in {*v.consumers} - {v.producer} if i in self.place))
            for v in self.problem.values
        ]

    @cached_property
    def _neighbours(self) -> tuple[list[list[int]], list[int]]:
        """Per unit of the problem, its readers as a list and its inputs as a bit set."""
        outside = frozenset(range(self.problem.num_units)) - set(self.units)
        return neighbours(self.problem, outside)

    @cached_property
    def reads(self) -> Any:
        """The inputs of each unit, also through units that float, `(n, words)`."""
        reads = self._neighbours[1]
        return self.words([self.place[a] for a in bits(reads[i])] for i in self.units)

    def words(self, sets: Iterable[Iterable[int]]) -> Any:
        """Sets of units as rows of 64-bit words."""
        width = 8 * max(1, (len(self.units) + 63) // 64)
        raw = b"".join(sum(1 << x for x in part).to_bytes(width, "little") for part in sets)
        return np.frombuffer(raw, dtype=np.uint64).reshape(-1, width // 8).copy()

    @cached_property
    def readers(self) -> tuple[Any, Any]:
        """Where each unit's list of readers begins, `(n + 1,)`, and all lists."""
        lists = self._neighbours[0]
        readers = [[self.place[b] for b in lists[i]] for i in self.units]
        first = np.cumsum([0, *map(len, readers)])
        return first.astype(np.int64), np.array([b for part in readers for b in part], dtype=int)

    def levels(self, at_most: int, limits: Limits) -> list[tuple[Any, Any]] | None:
        """All ideals by size, from the empty one; None if more than `at_most`.

        Per size, the ideals and the units that each can take next, `(N, words)` both.
        """
        empty, total = np.zeros((1, self.reads.shape[1]), dtype=np.uint64), 1
        sources = (x for x, reads in enumerate(self.reads) if not reads.any())
        levels = [(empty, self.words([sources]))]
        for _ in self.units:
            limits.check()
            levels.append(ascend(*levels[-1], self.reads, self.readers, at_most - total))
            total += len(levels[-1][0])
            if total > at_most:
                return None
        return levels

    def held(self, sets: Any) -> Any:
        """Whether each set holds each unit, `(N, n)`, of 0 and 1."""
        return np.unpackbits(sets.view(np.uint8), axis=1, bitorder="little", count=len(self.units))

    def weights(self, states: States) -> Floats:
        """The least priced time of each unit, `(n,)`; 0 for one that runs nowhere."""
        least = (states.price[:, None] * states.time_s[:, self.units]).min(axis=0)
        return np.where(np.isfinite(least), least, 0.0)

    def placement(
        self, devices: list[int], chain: list[Any], bottleneck: float, moves_s: Sequence[float] = ()
    ) -> UnitPlacement:
        """The plan whose stages, on these devices, lie between the ideals of a chain.

        `bottleneck` and `moves_s` are those of `Ideals.placement`.
        """
        members = [
            sum(1 << self.units[x] for x in bits(int.from_bytes(words.tobytes(), "little")))
            for words in chain
        ]
        stages = [(d, k, k + 1) for k, d in enumerate(devices)]
        return Ideals.chain(self.problem, members).placement(stages, bottleneck, moves_s)


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
