"""All ideals of a problem by size, and what each of them holds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from skyfx.solver.methods.ideals.device_states import States
from skyfx.solver.methods.ideals.order_ideals import (
    Ideals,
    bits,
    flat,
    floating,
    levels,
    members_of,
    neighbours,
    words,
)
from skyfx.solver.methods.limits import Limits
from skyfx.solver.problem.instance import Floats, UnitPlacement, Value
from skyfx.solver.problem.problem import Problem


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
        return words(sets, len(self.units))

    @cached_property
    def readers(self) -> tuple[Any, Any]:
        """Where each unit's list of readers begins, `(n + 1,)`, and all lists."""
        lists = self._neighbours[0]
        return flat([[self.place[b] for b in lists[i]] for i in self.units])

    def levels(self, at_most: int, limits: Limits) -> list[tuple[Any, Any]] | None:
        """All ideals by size, as from `order_ideals.levels`."""
        return levels(self.reads, self.readers, range(len(self.units)), at_most, limits)

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
        sets = [[self.units[x] for x in members_of(row)] for row in chain]
        stages = [(d, k, k + 1) for k, d in enumerate(devices)]
        return Ideals.chain(self.problem, sets).placement(stages, bottleneck, moves_s)
