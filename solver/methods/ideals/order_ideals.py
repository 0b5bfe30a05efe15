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
import operator
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skyfx.solver.costs.moves import Crossing
from skyfx.solver.problem.instance import UnitPlacement, Value
from skyfx.solver.problem.problem import Problem


class Covers(NamedTuple):
    """The ideals that have one unit more than each ideal: the covers in the lattice.

    Those of ideal i are `target[first[i]:first[i + 1]]`, each larger by a `unit`.
    """

    first: Any
    target: Any
    unit: Any


@dataclass(frozen=True)
class Ideals:
    """All ideals, `N` of them, by growing size: the first is empty, the last is everything.

    `members` are bit sets of units, without those of `outside`, which float or are relaxed.
    """

    problem: Problem
    outside: frozenset[int]
    members: list[int]
    covers: Covers

    @classmethod
    def of(cls, problem: Problem, at_most: int, relaxed: Collection[int] = ()) -> "Ideals | None":
        """Enumerate the ideals without the relaxed units; None if more than `at_most`."""
        outside = frozenset([*floating(problem), *relaxed])
        readers, reads = neighbours(problem, outside)
        start = [i for i in range(problem.num_units) if i not in outside and not reads[i]]
        free = {0: sum(1 << i for i in start)}  # of each ideal, the units that can come next
        members: list[int] = []
        covers = Covers([0], [], [])
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
                    covers.target.append(place[larger])
                    covers.unit.append(i)
                covers.first.append(len(covers.unit))
            if len(members) + len(following) > at_most:
                return None
            free = following
        arrays = Covers(*(np.array(column, dtype=np.int32) for column in covers))
        return cls(problem, outside, members, arrays)

    @classmethod
    def line(cls, problem: Problem, order: Sequence[int]) -> "Ideals":
        """Only the ideals along one topological order of the units."""
        outside = frozenset(floating(problem))
        units = [i for i in order if i not in outside]
        members = list(itertools.accumulate((1 << i for i in units), operator.or_, initial=0))
        first = np.minimum(np.arange(len(members) + 1), len(units))
        columns = (first, np.arange(1, len(members)), np.array(units))
        covers = Covers(*(column.astype(np.int32) for column in columns))
        return cls(problem, outside, members, covers)

    @classmethod
    def chain(cls, problem: Problem, members: list[int]) -> "Ideals":
        """Only these ideals, each in the next: enough to place a plan of them."""
        return cls(problem, frozenset(floating(problem)), members, Covers((), (), ()))

    def __len__(self) -> int:
        return len(self.members)

    @cached_property
    def holds(self) -> NDArray[np.bool_]:
        """Whether a unit is in an ideal, `(n, N)`; units outside are in none."""
        n = self.problem.num_units
        raw = b"".join(ideal.to_bytes((n + 7) // 8, "little") for ideal in self.members)
        packed = np.frombuffer(raw, dtype=np.uint8).reshape(len(self), -1)
        bits = np.unpackbits(packed, axis=1, bitorder="little", count=n)
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
            (d, list(bits(self.members[after] & ~self.members[before]))) for d, before, after in of
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
