"""Bisection for the least bottleneck T that a plan can keep.

search = Bisection(low, high, LEVELS)
for bottleneck in search:
    plan = oracle(bottleneck)
    if plan is None:
        search.low = bottleneck
    else:
        search.keep(bottleneck, plan.bottleneck_s)
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from skyfx.solver.problem.tolerances import OPTIMALITY_TOLERANCE


class Policy(NamedTuple):
    """How to choose the next T, by relative distances."""

    tolerance: float
    """Distance of the two ends at which the search is over."""
    near: float = 0.0
    """Distance from which on T is just below the best plan: without a plan there, it is proven."""
    rise: float = math.inf
    """How far T may rise above the lower end: a DP is faster where it can prune more."""


LABELS = Policy(OPTIMALITY_TOLERANCE, near=0.003, rise=0.3)
LEVELS = Policy(OPTIMALITY_TOLERANCE, near=0.003, rise=0.1)
BLOCK_PHASES = Policy(OPTIMALITY_TOLERANCE, near=1e-4)
INTERVAL_LABELS = Policy(1e-4)
INTERVALS = Policy(1e-5)
INTERVAL_DUAL = Policy(1e-5)
ORDER_SPLIT = Policy(1e-4)


@dataclass(slots=True)
class Bisection:
    """An iterator over T. After each T its user says whether a plan can keep it.

    Attributes:
        low: no plan has a smaller bottleneck.
        high: the bottleneck of a plan, or a T that a plan may keep.
        floor: T may rise to this value, whatever the policy says.
        reached: whether a plan is known that keeps `high`.
    """

    low: float
    high: float
    policy: Policy
    floor: float = 0.0
    reached: bool = True

    def __iter__(self) -> Iterator[float]:
        tolerance, near, rise = self.policy
        zero = self.low == 0 and rise < math.inf  # T = 0 comes first: no multiple of it is above
        while self.high > self.low * (1 + tolerance):
            if self.reached and self.high < self.low * (1 + near):
                yield self.high * (1 - OPTIMALITY_TOLERANCE / 2)
                continue
            risen = self.low * (1 + rise) if self.low > 0 else 0.0 if zero else math.inf
            zero = False
            yield min((self.low + self.high) / 2, max(risen, self.floor))

    def keep(self, bottleneck: float, reached: float | None = None) -> None:
        """A plan can keep this T; `reached` is the bottleneck of the plan found, if any."""
        reached = bottleneck if reached is None else reached
        self.reached = reached <= bottleneck
        self.high = min(bottleneck, reached)
