"""The least cost of relaxed units, charged to the units that read them.

In the bound a relaxed unit could be anywhere, and its outputs move for free. But a unit with one
reader is either in the stage of its reader, and then takes its time there, or that stage receives
its output. Such units form trees that end in a unit of the lattice. Of all ways to cut a tree into
a part inside the stage and a part before it, the cheapest is charged to the reader:

    charge[d] = min over parts X inside:  time_d(X) + receive_d(inputs of X from the rest)

The rest of the tree's work is still anywhere. With the devices' prices y and the least weighted
time of each unit, `least(u) = min_e y[e] time_e(u)`, the same argument gives

    rest = sum_u least(u) + min over d of (cut[d] - y[d] charge[d])
    cut[d] = min over X:  sum over X of (y[d] time_d(u) - least(u)) + y[d] receive_d(...)
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from skyfx.solver.methods.ideals.device_states import States
from skyfx.solver.problem.instance import Floats
from skyfx.solver.problem.problem import Problem


class RelaxedTree(NamedTuple):
    """Relaxed units that are charged together, and the rest of their weighted work."""

    units: tuple[int, ...]
    weight: float


class RelaxedCharges(NamedTuple):
    """Seconds charged to each unit on each group's devices, `(G, n)`, and all trees."""

    time_s: Floats
    trees: tuple[RelaxedTree, ...]

    @classmethod
    def of(cls, problem: Problem, states: States, relaxed: Sequence[int]) -> "RelaxedCharges":
        """Charge each tree to its reader; a unit with several readers is a tree of its own."""
        growing = _Trees(problem, states)
        for unit in sorted(relaxed):
            growing.add(unit)
        charged = np.zeros_like(states.time_s)
        trees, inside = [], set(relaxed)
        for unit in sorted(relaxed, reverse=True):
            reader = growing.reader[unit]
            if reader is None or (reader in inside and not growing.whole[reader]):
                trees.append(RelaxedTree((unit,), float(growing.least[unit])))
                growing.whole[unit] = False
            elif reader not in inside:
                charged[:, reader] += growing.charge[unit]
                trees.append(RelaxedTree(tuple(growing.units[unit]), growing.rest(unit)))
        return cls(charged, tuple(trees))


class _Trees:
    """The trees of units with one reader, built from their leaves on."""

    def __init__(self, problem: Problem, states: States) -> None:
        self.time_s, self.price = states.time_s, states.price
        n = problem.num_units
        self.receive_s = _receive_s(problem, states)
        self.least: Floats = (self.price[:, None] * self.time_s).min(axis=0)
        self.reader = [r[0] if len(r) == 1 else None for r in problem.readers]
        self.whole = [True] * n
        self.units: list[list[int]] = [[] for _ in range(n)]
        self.charge, self.cut = np.zeros((2, n, len(self.price)))

    def add(self, unit: int) -> None:
        """Add a unit after all its inputs."""
        time, receive, price = self.time_s[:, unit], self.receive_s[:, unit], self.price
        self.units[unit].append(unit)
        self.charge[unit] = np.minimum(receive, time + self.charge[unit])
        inside = price * time - self.least[unit] + self.cut[unit]
        self.cut[unit] = np.minimum(price * receive, inside)
        reader = self.reader[unit]
        if reader is not None:
            self.units[reader] += self.units[unit]
            self.charge[reader] += self.charge[unit]
            self.cut[reader] += self.cut[unit]

    def rest(self, unit: int) -> float:
        """The rest of the weighted work of the tree that ends in a unit."""
        work = float(self.least[self.units[unit]].sum())
        return max(0.0, work + float((self.cut[unit] - self.price * self.charge[unit]).min()))


def _receive_s(problem: Problem, states: States) -> Floats:
    """The least seconds to receive a unit's outputs and send their gradients back, `(G, n)`."""
    if problem.assumptions.overlap == "full":  # receiving takes no time of its own
        return np.zeros_like(states.time_s)
    alone = np.diag([len(group) == 1 for group in states.groups])
    wires = np.where(alone, np.inf, states.wires[1])
    into, back = wires.min(axis=0), wires.min(axis=1)
    receive = np.zeros_like(states.time_s)
    for value in problem.values:
        with np.errstate(invalid="ignore"):
            moved = into * value.output_bytes + back * value.gradient_bytes
        receive[:, value.producer] += np.nan_to_num(moved, nan=0.0, posinf=np.inf)
    return receive
