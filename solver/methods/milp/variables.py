"""The integer program under construction: its variables, and how to read a solution of it.

Positions j = 1..D stand at the end of the pipeline: the last stage is always position D, and unused
positions are the first ones. So the number of stages after a position, which its memory depends on,
is known. Times are divided by `scale`, the warm start's bottleneck, and memory by the model's size,
so that the solver's tolerances mean what they say.

    p[i,j]  1 if unit i is at a position <= j          (binary, j < D; 1 for j = D)
    a[d,j]  1 if device d holds position j             (binary)
    y[i,d]  1 if unit i is on device d                 (follows from p and a)
    c[v,j]  1 if value v crosses boundary j|j+1        (follows from p)
    t[j]    time to move what crosses j|j+1            (relay)
    C[d]    compute time of device d;  R[d], S[d] its receive and send time
    T       the bottleneck
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pulp

from skyfx.solver.problem.instance import UnitPlacement
from skyfx.solver.problem.problem import Problem

Expression: TypeAlias = Any
"""A variable or a linear expression of PuLP, which has no types."""


@dataclass
class Model:
    """The program under construction, and how to read a solution of it."""

    problem: Problem
    scale: float
    lp: Any = field(default_factory=lambda: pulp.LpProblem("skyfx", pulp.LpMinimize))

    def __post_init__(self) -> None:
        n, d = self.problem.num_units, self.problem.num_devices
        self.units, self.devices, self.positions = range(n), range(d), range(1, d + 1)
        self.boundaries = range(1, d)
        self._p = {
            (i, j): self.variable(f"p_{i}_{j}", cat="Binary")
            for i in self.units
            for j in self.boundaries
        }
        self.a = {
            (e, j): self.variable(f"a_{e}_{j}", cat="Binary")
            for e in self.devices
            for j in self.positions
        }
        self.y = {(i, e): self.variable(f"y_{i}_{e}", 1) for i in self.units for e in self.devices}
        self.compute = [self.variable(f"C_{e}") for e in self.devices]
        self.receive = [self.variable(f"R_{e}") for e in self.devices]
        self.send = [self.variable(f"S_{e}") for e in self.devices]
        self.move = {j: self.variable(f"t_{j}") for j in self.boundaries}
        self.bottleneck = self.variable("T")

    def variable(
        self, name: str, at_most: float | None = None, cat: str = "Continuous"
    ) -> Expression:
        """Add a variable that is not negative."""
        return self.lp.add_variable(name, 0, at_most, cat)

    def p(self, i: int, j: int) -> Expression:
        """`p[i,j]`, with its constants at both ends."""
        if j == 0:
            return 0
        return 1 if j == self.problem.num_devices else self._p[i, j]

    def at(self, i: int, j: int) -> Expression:
        """1 if unit i is at position j."""
        return self.p(i, j) - self.p(i, j - 1)

    def used(self, j: int) -> Expression:
        """1 if position j has a device."""
        return pulp.lpSum(self.a[d, j] for d in self.devices)

    def placed(self, d: int, j: int) -> Expression:
        """1 if device d holds a position <= j."""
        return pulp.lpSum(self.a[d, earlier] for earlier in range(1, j + 1))

    def require(self, constraint: Expression) -> None:
        """Add a constraint; one between constants has nothing to add."""
        if not isinstance(constraint, bool):
            self.lp += constraint

    def start(self, stages: UnitPlacement) -> dict[str, float]:
        """The binaries of a known plan, by variable name."""
        first = self.problem.num_devices - len(stages) + 1
        values = {f"a_{d}_{j}": 0.0 for d in self.devices for j in self.positions}
        for j, (d, part) in enumerate(self._in_list_order(stages), start=first):
            values[f"a_{d}_{j}"] = 1.0
            for i in part:
                values |= {f"p_{i}_{b}": float(b >= j) for b in self.boundaries}
        return values

    def placement(self, values: Mapping[str, float]) -> UnitPlacement:
        """The plan that a solution describes; each binary by the nearer of 0 and 1."""
        position = {
            i: 1 + sum(values[f"p_{i}_{j}"] < 0.5 for j in self.boundaries) for i in self.units
        }
        stages = []
        for j in self.positions:
            device = max(self.devices, key=lambda d: values[f"a_{d}_{j}"])
            if values[f"a_{device}_{j}"] > 0.5:
                stages.append((device, [i for i in self.units if position[i] == j]))
        return stages

    def _in_list_order(self, stages: UnitPlacement) -> UnitPlacement:
        """The same plan with identical devices in the order that [Symmetry] asks for."""
        free = [iter(group) for group in self.problem.identical_devices]
        group_of = {d: g for g, group in enumerate(self.problem.identical_devices) for d in group}
        return [(next(free[group_of[d]]), part) for d, part in stages]
