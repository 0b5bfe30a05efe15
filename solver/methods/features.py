"""The properties of a problem that decide which methods apply, each worked out once per search."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from skyfx.solver.methods.ideals.bitset_ideals import BitIdeals
from skyfx.solver.methods.ideals.device_states import States
from skyfx.solver.methods.limits import Limits
from skyfx.solver.problem.problem import Problem

MAX_LEVEL_STATES = 5000
MAX_IDEALS = 3_000_000
"""Ideals that are listed: to list them takes some seconds and a quarter of a gigabyte."""

MAX_CELLS = 600_000_000
"""States times ideals; a cell takes a byte."""

MAX_LEVEL = 40_000_000
"""States times ideals of one size; such a cell takes 16 bytes."""


@dataclass
class ProblemFeatures:
    """A problem with its properties and the lattice of its ideals."""

    problem: Problem
    _levels: list[tuple[Any, Any]] | None = field(default=None, init=False, repr=False)
    _fewer_than_all: int = field(default=0, init=False, repr=False)

    @cached_property
    def num_states(self) -> int:
        """States of devices, as in `States`."""
        return States.number(self.problem)

    @cached_property
    def num_counts(self) -> int:
        """Ways to use so many devices of each group."""
        sizes = [len(group) + 1 for group in self.problem.identical_devices]
        return int(np.prod(sizes, dtype=object))

    @cached_property
    def is_chain(self) -> bool:
        """Whether each unit reads the one before it."""
        read = set(self.problem.edges)
        return all((i - 1, i) in read for i in range(1, self.problem.num_units))

    @property
    def moves_are_free(self) -> bool:
        """Whether there is no link that moving could take time on."""
        cluster = self.problem.cluster
        return cluster.default_link is None and not cluster.links

    @property
    def runs_everywhere(self) -> bool:
        """Whether all devices run all units."""
        return bool(np.isfinite(self.problem.time_s).all())

    @cached_property
    def lattice(self) -> BitIdeals:
        """The lattice, whose ideals `levels` lists."""
        return BitIdeals(self.problem)

    def levels(self, at_most: int, limits: Limits) -> list[tuple[Any, Any]] | None:
        """All ideals by size, as `BitIdeals.levels`; None for more than `at_most`, or MAX_IDEALS.

        They are enumerated once, and again only where more of them are allowed than before.
        """
        at_most = min(at_most, MAX_IDEALS)
        if self._levels is None and at_most > self._fewer_than_all:
            self._levels = self.lattice.levels(at_most, limits)
            self._fewer_than_all = at_most if self._levels is None else 0
        if self._levels is None or sum(len(ideals) for ideals, _ in self._levels) > at_most:
            return None
        return self._levels

    def lists_all_ideals(self, limits: Limits) -> bool:
        """Whether there is memory for a table of all ideals and states, for throughput."""
        throughput = self.problem.assumptions.objective == "throughput"
        if not throughput or self.num_states > MAX_LEVEL_STATES:
            return False
        levels = self.levels(MAX_CELLS // self.num_states, limits)
        if levels is None:
            return False
        return max(len(ideals) for ideals, _ in levels) * self.num_states <= MAX_LEVEL
