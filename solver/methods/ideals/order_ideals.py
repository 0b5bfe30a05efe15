"""The ideals of a problem: every set of units that a pipeline can have finished at a boundary.

An ideal (a downward-closed set) holds with each unit all that the unit reads. Stages between two
ideals `I <= J` hold the units `J - I`; so plans are chains of ideals, on any graph. Ideals are few
where a model is mostly one line, and as many as `2^n` where it is not.

Units that cost nothing wherever they are *float*: the lattice is built without them.

- In `relay` an input is fed at stage 1, whatever stage holds its node: the first one does.
- A source that takes no time, such as a parameter read by several layers, only travels further
  when it is made earlier: the stage of its first reader holds it. In `host` it has to have one
  reader, or nothing to send.
- In `host` what takes no time and nobody reads goes where the one value that it reads is made.

Where memory binds only units without memory float. So nothing is lost.

Units can also be put *aside*: a caller that does so counts their time by other means. What is left
keeps the order that they imposed. A value that they make or read crosses at least where its other
readers ask for it.
"""

import itertools
import operator
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from skyfx.solver.problem.problem import Floats, Problem, UnitPlacement, Value

__all__: list[str] = ["Ideals", "bits", "floating", "neighbours"]

Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Ideals:
    """All ideals, `N` of them, by growing size: the first is empty, the last is everything.

    `members` are bit sets of units, without those of `outside`, which float or are put aside. The
    ideals that add one unit to ideal I are `above[first[I]:first[I + 1]]`; `added` says which unit.
    """

    problem: Problem
    outside: frozenset[int]
    members: list[int]
    first: Ints
    above: Ints
    added: Ints

    @classmethod
    def of(cls, problem: Problem, at_most: int, aside: Collection[int] = ()) -> "Ideals | None":
        """Enumerate the ideals; None where there are more than `at_most`."""
        outside = frozenset([*floating(problem), *aside])
        readers, reads = neighbours(problem, outside)
        start = [i for i in range(problem.num_units) if i not in outside and not reads[i]]
        free = {0: sum(1 << i for i in start)}  # of each ideal, the units that can come next
        members: list[int] = []
        first, above, added = [0], [], []
        while free:
            following: dict[int, int] = {}
            place: dict[int, int] = {}
            base = len(members) + len(free)
            for ideal, ready in free.items():
                members.append(ideal)
                for i in bits(ready):
                    larger = ideal | 1 << i
                    if larger not in following:
                        now = (j for j in readers[i] if not reads[j] & ~larger)
                        following[larger] = ready & ~(1 << i) | sum(1 << j for j in now)
                        place[larger] = base + len(place)
                    above.append(place[larger])
                    added.append(i)
                first.append(len(above))
            if len(members) + len(following) > at_most:
                return None
            free = following
        arrays = (np.array(a, dtype=np.int32) for a in (first, above, added))
        return cls(problem, outside, members, *arrays)

    @classmethod
    def line(cls, problem: Problem, order: Sequence[int]) -> "Ideals":
        """Only the ideals along one topological order of the units."""
        outside = frozenset(floating(problem))
        added = [i for i in order if i not in outside]
        members = list(itertools.accumulate((1 << i for i in added), operator.or_, initial=0))
        first = np.minimum(np.arange(len(members) + 1), len(added)).astype(np.int32)
        above = np.arange(1, len(members), dtype=np.int32)
        return cls(problem, outside, members, first, above, np.array(added, dtype=np.int32))

    @classmethod
    def chain(cls, problem: Problem, members: list[int]) -> "Ideals":
        """Only these ideals, each in the next: enough to place a plan of them."""
        none = np.zeros(0, dtype=np.int32)
        return cls(problem, frozenset(floating(problem)), members, none, none, none)

    @property
    def covers(self) -> tuple[Ints, Ints, Ints]:
        """`first`, `above` and `added`."""
        return self.first, self.above, self.added

    def __len__(self) -> int:
        return len(self.members)

    @cached_property
    def holds(self) -> NDArray[np.bool_]:
        """Which unit is in which ideal, `(n, N)`; those outside are in none."""
        n = self.problem.num_units
        width = (n + 7) // 8
        raw = b"".join(ideal.to_bytes(width, "little") for ideal in self.members)
        packed = np.frombuffer(raw, dtype=np.uint8).reshape(len(self), width)
        bits = np.unpackbits(packed, axis=1, bitorder="little")[:, :n]
        return np.ascontiguousarray(bits.T).astype(bool)

    @cached_property
    def crossing(self) -> Floats:
        """What crosses a boundary behind each ideal, `(4, N)`.

        Bytes forward, bytes backward, 1 where any value crosses, 1 where any gradient does.
        """
        total = np.zeros((4, len(self)))
        for value in self.problem.values:
            alive = self._alive(value)
            total[0, alive] += value.output_bytes
            total[1, alive] += value.gradient_bytes
            total[2, alive] = 1.0
            total[3, alive] += value.gradient_bytes > 0
        np.minimum(total[3], 1.0, out=total[3])
        return total

    def placement(
        self, stages: Iterable[tuple[int, int, int]], moving_s: Sequence[float], bottleneck: float
    ) -> UnitPlacement:
        """The plan of `(device, ideal before, ideal behind)` a stage, with the units outside.

        Each of those goes as near to its readers as it may and keeps `bottleneck`, in seconds; one
        without readers goes near to what it reads, or if that is nothing to the model's caller.
        `moving_s` is each stage's sends and receives.
        """
        taken = [
            (d, list(bits(self.members[after] & ~self.members[before])))
            for d, before, after in stages
        ]
        time_s, last = self.problem.time_s, len(taken) - 1
        relay = self.problem.assumptions.communication == "relay"
        computing = (float(time_s[d, part].sum()) for d, part in taken)
        load = [c + m for c, m in zip(computing, moving_s, strict=True)]
        stage_of = {i: k for k, (_, part) in enumerate(taken) for i in part}
        for i in sorted(self.outside, reverse=True):
            earliest = max((stage_of[j] for j in self._before[i]), default=0)
            latest = min((stage_of[j] for j in self.problem.readers[i]), default=last)
            if relay and self._is_input(i):
                latest = earliest
            times = {k: load[k] + time_s[taken[k][0], i] for k in range(earliest, latest + 1)}
            late = bool(self.problem.readers[i]) or not self._before[i]
            near = sorted(times, reverse=late)
            k = next((k for k in near if times[k] <= bottleneck), None)
            k = min(times, key=lambda k: times[k]) if k is None else k
            stage_of[i], load[k] = k, times[k]
            taken[k][1].append(i)
        return [(d, sorted(part)) for d, part in taken]

    def around(self, unit: int) -> tuple[list[int], list[int]]:
        """The units in the lattice that a unit outside reads, and those that read it."""
        return self._before[unit], self._after[unit]

    @cached_property
    def _after(self) -> list[list[int]]:
        """Of each unit, the units in the lattice that read it, also through those outside."""
        after = [0] * self.problem.num_units
        for a, b in sorted(self.problem.edges, reverse=True):
            after[a] |= after[b] if b in self.outside else 1 << b
        return [list(bits(readers)) for readers in after]

    @cached_property
    def _before(self) -> list[list[int]]:
        """Of each unit, the units in the lattice that it reads, also through those outside."""
        return [list(bits(reads)) for reads in neighbours(self.problem, self.outside)[1]]

    def _alive(self, value: Value) -> NDArray[np.bool_]:
        """At which ideals the value crosses the boundary."""
        readers = [i for i in value.consumers if i not in self.outside]
        behind = np.logical_not(self.holds[readers].all(axis=0)) | value.is_output
        if value.is_input:
            return behind
        if value.producer in self.outside:
            behind &= self.holds[readers].any(axis=0)
        else:
            behind &= self.holds[value.producer]
        alive: NDArray[np.bool_] = behind
        return alive

    def _is_input(self, unit: int) -> bool:
        return self.problem.graph.nodes[self.problem.members[unit][0]].is_input


def floating(problem: Problem) -> list[int]:
    """The units that cost nothing wherever they are, and so need no place in the lattice."""
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
    """Of each unit, its readers as a list and what it reads as a bit set; through those outside."""
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
