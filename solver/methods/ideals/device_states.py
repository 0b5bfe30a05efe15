"""The states of a dynamic program over devices: which are used from a stage on, which comes first.

Devices that can be swapped without changing any cost form a group `g`; what matters is how many of
each group are used. With all devices unlike these are the subsets; with few kinds they are few.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from skyfx.solver.problem.problem import Floats, Problem

__all__: list[str] = ["MAX_STATES", "States", "prices"]

MAX_STATES = 20_000
"""So many can be told apart by a program that looks at all; eleven unlike devices have 11,264."""

Counts = tuple[int, ...]


@dataclass(frozen=True)
class States:
    """States `(counts, g)`: the stage on group g, and `counts` devices of each group from it on.

    They stand by growing number of devices, so what can follow a state stands before it.
    """

    problem: Problem

    @classmethod
    def number(cls, problem: Problem) -> int:
        """How many there are."""
        sizes = [len(group) + 1 for group in problem.identical_devices]
        total = 1
        for size in sizes:
            total *= size
        return sum(total // size * (size - 1) for size in sizes)

    @property
    def groups(self) -> list[list[int]]:
        """Devices of each group."""
        return self.problem.identical_devices

    @cached_property
    def all(self) -> list[tuple[Counts, int]]:
        """The states."""
        ranges = [range(len(group) + 1) for group in self.groups]
        by_size = sorted(itertools.product(*ranges), key=sum)
        return [(counts, g) for counts in by_size for g in range(len(ranges)) if counts[g]]

    @cached_property
    def group(self) -> np.ndarray:
        """The group of each state's stage, `(S,)`."""
        return np.array([g for _, g in self.all], dtype=np.int32)

    @cached_property
    def position(self) -> np.ndarray:
        """How many stages there are from each state's on, `(S,)`."""
        return np.array([sum(counts) for counts, _ in self.all], dtype=np.int32)

    @cached_property
    def following(self) -> tuple[np.ndarray, np.ndarray]:
        """What can come next: `states[first[s]:first[s + 1]]`."""
        index = {state: s for s, state in enumerate(self.all)}
        first, following = [0], []
        for counts, g in self.all:
            rest = tuple(c - (h == g) for h, c in enumerate(counts))
            following += [index[rest, h] for h, c in enumerate(rest) if c]
            first.append(len(following))
        return np.array(first, dtype=np.int32), np.array(following, dtype=np.int32)

    @cached_property
    def wires(self) -> Floats:
        """Latency and seconds per byte from group to group and back, `(4, G, G)`."""
        size = len(self.groups)
        wires = np.zeros((4, size, size))
        for g, h in itertools.product(range(size), repeat=2):
            if g == h and len(self.groups[g]) == 1:
                continue
            source, target = self.groups[g][0], self.groups[h][-1]
            wires[:2, g, h] = self.problem.wire(source, target)
            wires[2:, g, h] = self.problem.wire(target, source)
        return wires

    @cached_property
    def time_s(self) -> Floats:
        """Seconds of each unit on each group's devices, `(G, n)`."""
        return self.problem.time_s[[group[0] for group in self.groups]]

    def devices(self, states: Sequence[int]) -> Iterator[int]:
        """A device for each state of a plan, every one once."""
        free = [iter(group) for group in self.groups]
        return (next(free[self.all[s][1]]) for s in states)


def prices(time_s: Floats) -> Floats:
    """A price of each group's time, `(G,)`: its speed over all units of `time_s`, `(G, n)`.

    With any prices `y >= 0`, stages that keep T do no more weighted work than `T sum_g y[g]`.
    """
    work = np.where(np.isfinite(time_s), time_s, 0.0).sum(axis=1)
    price: Floats = np.where(work > 0, 1.0 / np.where(work > 0, work, 1.0), 1.0)
    return price
