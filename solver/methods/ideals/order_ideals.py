"""The order ideals of a problem: every set of units that can be finished at a boundary.

An ideal is a downward-closed set: with each unit it holds all units that the unit reads. The stage
between two ideals `I <= J` holds the units `J - I`, so plans are chains of ideals, on any graph.
A model that is mostly one line has few ideals; a wide one has up to `2^n`.

Units that cost nothing wherever they are *float*: the lattice is built without them.

- In `relay` an input is fed at stage 1, whatever stage holds its node. The first stage holds it.
- A source that takes no time, such as a parameter read by several layers, only travels further
  when it is made earlier. The stage of its first reader holds it. In `host` it needs one reader,
  or nothing to send.
- In `host` a unit that takes no time and has no reader goes where its one input is made.

Where memory binds, only units without memory float. So no plan is lost.

Units can also be *relaxed*: a caller that does so counts their time by other means. The other
units keep the order that the relaxed units imposed. A value that a relaxed unit makes or reads
crosses at least where its other readers need it.
"""

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyfx.solver.costs.moves import Crossing
from skyfx.solver.methods.ideals.bitset_kernel import Covers, ascend, covers
from skyfx.solver.methods.limits import Limits
from skyfx.solver.problem.instance import UnitPlacement, Value
from skyfx.solver.problem.problem import Problem


@dataclass(frozen=True)
class Ideals:
    """All ideals, `N` of them, by growing size: the first is empty, the last is everything.

    `members` are rows of bits, `(N, words)`, without the units of `outside`, which float or are
    relaxed.
    """

    problem: Problem
    outside: frozenset[int]
    members: Any
    covers: Covers

    @classmethod
    def of(cls, problem: Problem, at_most: int, relaxed: Collection[int] = ()) -> "Ideals | None":
        """Enumerate the ideals without the relaxed units; None if more than `at_most`."""
        outside = frozenset([*floating(problem), *relaxed])
        readers, reads = neighbours(problem, outside)
        n = problem.num_units
        inside = [i for i in range(n) if i not in outside]
        rows = words(map(bits, reads), n)
        listed = levels(rows, flat(readers), inside, at_most, Limits())
        if listed is None:
            return None
        columns, num = [(np.zeros(0, dtype=int),) * 3], 0
        for (ideals, ready), (larger, _) in itertools.pairwise(listed):
            first, target, unit = covers(ideals, ready, larger)
            columns.append((np.diff(first), target + (num + len(ideals)), unit))
            num += len(ideals)
        counts, target, unit = map(np.concatenate, zip(*columns, strict=True))
        first = np.cumsum([0, *counts, 0])
        found = Covers(*(column.astype(np.int32) for column in (first, target, unit)))
        return cls(problem, outside, np.concatenate([ideals for ideals, _ in listed]), found)

    @classmethod
    def line(cls, problem: Problem, order: Sequence[int]) -> "Ideals":
        """Only the ideals along one topological order of the units."""
        outside = frozenset(floating(problem))
        units = [i for i in order if i not in outside]
        members = words((units[:k] for k in range(len(units) + 1)), problem.num_units)
        first = np.minimum(np.arange(len(members) + 1), len(units))
        columns = (first, np.arange(1, len(members)), np.array(units))
        covers = Covers(*(column.astype(np.int32) for column in columns))
        return cls(problem, outside, members, covers)

    @classmethod
    def chain(cls, problem: Problem, sets: Iterable[Iterable[int]]) -> "Ideals":
        """Only these ideals, each in the next: enough to place a plan of them."""
        members = words(sets, problem.num_units)
        return cls(problem, frozenset(floating(problem)), members, Covers((), (), ()))

    def __len__(self) -> int:
        return len(self.members)

    @cached_property
    def holds(self) -> NDArray[np.bool_]:
        """Whether a unit is in an ideal, `(n, N)`; units outside are in none."""
        n, raw = self.problem.num_units, self.members.view(np.uint8)
        bits = np.unpackbits(raw, axis=1, bitorder="little", count=n)
        return np.ascontiguousarray(bits.T).astype(bool)

    @cached_property
    def crossing(self) -> Crossing:
        """What crosses a boundary after each ideal, `(N,)` each."""
        crossing = Crossing(*np.zeros((4, len(self))))
        for value in self.problem.values:
            live = self._is_live(value)
            crossing.forward_bytes[live] += value.output_bytes
            crossing.backward_bytes[live] += value.gradient_bytes
            crossing.forward[live] = 1.0
            if value.gradient_bytes > 0:
                crossing.backward[live] = 1.0
        return crossing

    def placement(
        self, of: Iterable[tuple[int, int, int]], bottleneck: float, moves_s: Sequence[float] = ()
    ) -> UnitPlacement:
        """The plan of `(device, ideal before, ideal after)` per stage, with the units outside.

        Each unit outside goes as near to its readers as `bottleneck` allows, in seconds. One
        without readers goes near to its inputs, or near to the model's caller if it has none.
        `moves_s` are the times of the moves between the stages, if they count.
        """
        taken = [
            (d, members_of(self.members[after] & ~self.members[before])) for d, before, after in of
        ]
        time_s, last = self.problem.time_s, len(taken) - 1
        relay = self.problem.assumptions.communication == "relay"
        waits = moves_s and self.problem.assumptions.overlap != "full"
        moves = [0.0, *moves_s, 0.0] if waits else [0.0] * (len(taken) + 1)
        around = zip(taken, moves, moves[1:], strict=False)
        load = [float(time_s[d, part].sum()) + (a + b) for (d, part), a, b in around]
        stage_of = {i: k for k, (_, part) in enumerate(taken) for i in part}
        for i in sorted(self.outside, reverse=True):
            earliest = max((stage_of[j] for j in self.before[i]), default=0)
            latest = min((stage_of[j] for j in self.problem.readers[i]), default=last)
            if relay and self.problem.graph.nodes[self.problem.members[i][0]].is_input:
                latest = earliest
            times = {k: load[k] + time_s[taken[k][0], i] for k in range(earliest, latest + 1)}
            late = bool(self.problem.readers[i]) or not self.before[i]
            near = sorted(times, reverse=late)
            k = next((k for k in near if times[k] <= bottleneck), None)
            k = min(times, key=lambda k: times[k]) if k is None else k
            stage_of[i], load[k] = k, times[k]
            taken[k][1].append(i)
        return [(d, sorted(part)) for d, part in taken]

    @cached_property
    def after(self) -> list[list[int]]:
        """Per unit, the units in the lattice that read it, also through units outside."""
        after = [0] * self.problem.num_units
        for a, b in sorted(self.problem.edges, reverse=True):
            after[a] |= after[b] if b in self.outside else 1 << b
        return [list(bits(readers)) for readers in after]

    @cached_property
    def before(self) -> list[list[int]]:
        """Per unit, the units in the lattice that it reads, also through units outside."""
        return [list(bits(reads)) for reads in neighbours(self.problem, self.outside)[1]]

    def _is_live(self, value: Value) -> NDArray[np.bool_]:
        """Whether the value crosses the boundary after each ideal, `(N,)`."""
        readers = [i for i in value.consumers if i not in self.outside]
        live: NDArray[np.bool_] = np.logical_not(self.holds[readers].all(axis=0)) | value.is_output
        if value.is_input:
            return live
        outside = value.producer in self.outside
        return live & (self.holds[readers].any(axis=0) if outside else self.holds[value.producer])


def floating(problem: Problem) -> list[int]:
    """The units that cost nothing wherever they are, so the lattice is built without them."""
    memory = problem.need_bytes(problem.num_devices) + problem.peak_bytes
    costs = (problem.time_s != 0).any(axis=0) | (problem.memory_binds & (memory > 0))
    free = {i for i, unit in enumerate(problem.members) if not costs[i] and len(unit) == 1}
    if problem.assumptions.communication == "relay":
        return sorted(i for i in free if not problem.reads[i])
    return _floating_by_host(problem, free)


def _floating_by_host(problem: Problem, free: set[int]) -> list[int]:
    """Sources with one reader or nothing to send, then sinks with one value to read."""
    readers = [set(of) for of in problem.readers]
    reads = [set(of) for of in problem.reads]
    sizes = np.zeros(problem.num_units)
    devices = range(problem.num_devices)
    waits = any(problem.host_wire(d, to_host=way)[0] > 0 for d in devices for way in (True, False))
    for value in problem.values:
        sizes[value.producer] += value.output_bytes + waits
    found: set[int] = set()
    for i in range(problem.num_units):
        if i in free and reads[i] <= found and (len(readers[i]) <= 1 or sizes[i] == 0):
            found.add(i)
    for i in reversed(range(problem.num_units)):
        if i in free and not readers[i] - found and len(reads[i] - found) <= 1:
            found.add(i)
    return sorted(found)


def neighbours(problem: Problem, outside: frozenset[int]) -> tuple[list[list[int]], list[int]]:
    """Per unit, its readers as a list and its inputs as a bit set, also through units outside."""
    reads = [0] * problem.num_units
    for a, b in sorted(problem.edges, key=lambda edge: edge[1]):
        reads[b] |= reads[a] if a in outside else 1 << a
    readers: list[list[int]] = [[] for _ in range(problem.num_units)]
    for b, read in enumerate(reads):
        if b not in outside:
            for a in bits(read):
                readers[a].append(b)
    return readers, reads


def bits(of: int) -> Iterator[int]:
    """The members of a bit set, ascending."""
    while of:
        lowest = of & -of
        yield lowest.bit_length() - 1
        of ^= lowest


def members_of(row: Any) -> list[int]:
    """The members of a set that is a row of words, ascending."""
    return list(bits(int.from_bytes(row.tobytes(), "little")))


def words(sets: Iterable[Iterable[int]], num_units: int) -> Any:
    """Sets of units as rows of 64-bit words."""
    width = 8 * max(1, (num_units + 63) // 64)
    raw = b"".join(sum(1 << x for x in part).to_bytes(width, "little") for part in sets)
    return np.frombuffer(raw, dtype=np.uint64).reshape(-1, width // 8).copy()


def flat(lists: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    """Where each list begins, `(n + 1,)`, and all lists."""
    first = np.cumsum([0, *map(len, lists)])
    return first.astype(np.int64), np.array([x for part in lists for x in part], dtype=int)


def levels(
    reads: Any, readers: tuple[Any, Any], units: Iterable[int], at_most: int, limits: Limits
) -> list[tuple[Any, Any]] | None:
    """All ideals by size, from the empty one; None if more than `at_most`.

    Args:
        reads: the inputs of each unit, `(n, words)`.
        readers: the readers of each unit, as from `flat`.
        units: those in the lattice.
        at_most: the most ideals.
        limits: of the search.

    Returns:
        Per size, the ideals and the units that each can take next, `(N, words)` both.
    """
    sources = [x for x in units if not reads[x].any()]
    listed, total = [(words([[]], len(reads)), words([sources], len(reads)))], 1
    while listed[-1][1].any():
        limits.check()
        listed.append(ascend(*listed[-1], reads, readers, at_most - total))
        total += len(listed[-1][0])
        if total > at_most:
            return None
    return listed
