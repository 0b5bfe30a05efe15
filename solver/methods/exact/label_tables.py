"""The DP over ideals and devices for any bottleneck T: whether there is a plan, and a plan."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from skyfx.solver.methods.exact.label_kernel import BUSY, Costs, Rules
from skyfx.solver.methods.exact.label_lattice import WIDTH, LabelLattice
from skyfx.solver.methods.ideals.device_states import prices
from skyfx.solver.methods.ideals.relaxed_charges import RelaxedCharges
from skyfx.solver.problem.instance import Floats, UnitPlacement
from skyfx.solver.problem.tolerances import BOUND_SAFETY

PLAN_WIDTH = 6
"""Labels per cell, for a plan."""


@dataclass
class LabelTables:
    """The tables of the dynamic program for throughput, ready for any T."""

    lattice: LabelLattice

    def possible(self, bottleneck: float) -> bool:
        """Whether there may be a plan with no stage above `bottleneck`; a no is a proof."""
        rules = self._rules(bottleneck, WIDTH, proof=True)
        return len(self.lattice.labels(rules, self._costs(rules))) > 0

    def plan(self, bottleneck: float) -> UnitPlacement | None:
        """A plan with no stage above `bottleneck` except for relaxed units; or None."""
        rules = self._rules(bottleneck, PLAN_WIDTH, proof=False)
        costs = self._costs(rules)
        return self.lattice.best(self.lattice.labels(rules, costs), costs, bottleneck)

    def _rules(self, bottleneck: float, width: int, *, proof: bool) -> Rules:
        relaxed = sum(tree.weight for tree in self._charges.trees) * BOUND_SAFETY
        overlaps = self.lattice.problem.assumptions.overlap == "full"
        return Rules(bottleneck / BOUND_SAFETY, relaxed, overlaps, BUSY, width, proof)

    def _costs(self, rules: Rules) -> Costs:
        price = self._price if self.lattice.relaxed else np.zeros(len(self._price))
        with np.errstate(over="ignore"):  # infinite room is right
            room = self.lattice.room(self._price) * rules.bottleneck / BOUND_SAFETY
        need, limit = self.lattice.memory
        times = self._time_s, self.lattice.move_s
        return Costs(*times, need, limit, price, self._rest, room, *self._relaxed_after)

    @cached_property
    def _charges(self) -> RelaxedCharges:
        lattice = self.lattice
        return RelaxedCharges.of(lattice.problem, lattice.states, lattice.relaxed, self._price)

    @cached_property
    def _time_s(self) -> Floats:
        """Seconds of each unit with its charges, a little less for a proof, `(G, n)`."""
        return np.asarray(self.lattice.states.time_s + self._charges.time_s * BOUND_SAFETY)

    @cached_property
    def _relaxed_after(self) -> tuple[Floats, Floats]:
        """The most and the least weighted relaxed work after each ideal, `(N,)` each."""
        ideals = self.lattice.ideals
        most, least = np.zeros(len(ideals)), np.zeros(len(ideals))
        for tree in self._charges.trees:
            around = [ideals.around(i) for i in tree.units]
            can = ~np.any([ideals.holds[after].any(axis=0) for _, after in around], axis=0)
            must = ~np.any([ideals.holds[before].all(axis=0) for before, _ in around], axis=0)
            most += tree.weight / BOUND_SAFETY * can
            least += tree.weight * BOUND_SAFETY * must
        return most, least

    @cached_property
    def _rest(self) -> Floats:
        """The least weighted time of the units in each ideal, `(N,)`."""
        least = (self._price[:, None] * self._time_s).min(axis=0)
        return np.array([least[inside].sum() for inside in self.lattice.ideals.holds.T])

    @cached_property
    def _price(self) -> Floats:
        return prices(self.lattice.states.time_s)
