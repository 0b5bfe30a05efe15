"""The states of a DP over devices: the devices used from a stage on, and the device of that stage.

Devices that can be swapped without changing any cost form a group `g`; only the number of devices
used per group counts. With all devices unlike, these are all subsets; with few kinds they are few.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from skyfx.solver.problem.instance import Floats
from skyfx.solver.problem.problem import Problem

MAX_STATES = 20_000
"""The most states for a DP that visits each one; eleven unlike devices have 11,264."""


class StateArrays(NamedTuple):
    """Of `S` states, the group of each, the number of stages from it on, `(S,)`, and successors.

    Those of state s are `successor[first[s]:first[s + 1]]`.
    """

    group: Any
    position: Any
    first: Any
    successor: Any


@dataclass(frozen=True)
class States:
    """States `(counts, g)`: the stage on group g, and `counts` devices of each group from it on.

    They are ordered by number of devices, so the successors of a state come before it.
    """

    problem: Problem

    @classmethod
    def number(cls, problem: Problem) -> int:
        """The number of states, without listing them."""
        sizes = [len(group) + 1 for group in problem.identical_devices]
        total = math.prod(sizes)
        return sum(total // size * (size - 1) for size in sizes)

    @property
    def groups(self) -> list[list[int]]:
        """Devices of each group."""
        return self.problem.identical_devices

    @cached_property
    def all(self) -> list[tuple[tuple[int, ...], int]]:
        """The states."""
        ranges = [range(len(group) + 1) for group in self.groups]
        by_size = sorted(itertools.product(*ranges), key=sum)
        return [(counts, g) for counts in by_size for g in range(len(ranges)) if counts[g]]

    @cached_property
    def arrays(self) -> StateArrays:
        """All states, for compiled loops."""
        index = {state: s for s, state in enumerate(self.all)}
        first, successor = [0], []
        for counts, g in self.all:
            rest = tuple(c - (h == g) for h, c in enumerate(counts))
            successor += [index[rest, h] for h, c in enumerate(rest) if c]
            first.append(len(successor))
        group, position = [g for _, g in self.all], [sum(counts) for counts, _ in self.all]
        columns = group, position, first, successor
        return StateArrays(*(np.array(column, dtype=np.int32) for column in columns))

    def successors(self, s: int) -> np.ndarray:
        """The states that can come after a state."""
        first, successor = self.arrays[2:]
        return np.asarray(successor[first[s] : first[s + 1]])

    @cached_property
    def counts(self) -> np.ndarray:
        """The devices of each group from each state's stage on, `(S, G)`."""
        return np.array([counts for counts, _ in self.all])

    @cached_property
    def wires(self) -> Floats:
        """Latency and seconds per byte from group to group, `(2, G, G)`."""
        size = len(self.groups)
        wires = np.zeros((2, size, size))
        for g, h in itertools.product(range(size), repeat=2):
            if g != h or len(self.groups[g]) > 1:
                wires[:, g, h] = self.problem.wire(self.groups[g][0], self.groups[h][-1])
        return wires

    @cached_property
    def time_s(self) -> Floats:
        """Seconds of each unit on each group's devices, `(G, n)`."""
        return self.problem.time_s[[group[0] for group in self.groups]]

    @cached_property
    def price(self) -> Floats:
        """A price of each group's time, `(G,)`: its speed over all units.

        With any prices `y >= 0`, stages that keep T do no more weighted work than `T sum_g y[g]`.
        """
        work = np.where(np.isfinite(self.time_s), self.time_s, 0.0).sum(axis=1)
        return np.asarray(np.divide(1.0, work, out=np.ones_like(work), where=work > 0))

    def devices(self, states: Sequence[int]) -> Iterator[int]:
        """A device for each state of a plan, no device twice."""
        free = [iter(group) for group in self.groups]
        return (next(free[self.all[s][1]]) for s in states)
