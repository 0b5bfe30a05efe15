"""A lower bound for chains: prices on units that no set of intervals can earn.

Let prices `p[i] >= 0` add up to 1 over the units of a chain. In a plan with bottleneck T each
device runs an interval that takes it no longer than T, and all intervals together earn 1. So if

    sum over d of value[d] < 1,     value[d] = the most that device d can earn within T,

there is no such plan, whatever the prices: T is a lower bound. It is the dual of choosing intervals
by column generation. A device is granted the fastest wires that it has, and roles (`pricing`) are
granted once each, to different devices.

The first prices are each unit's part of all work. Better ones have one price for each *kind* of
unit (of the same times on all devices) and come from a linear program over them,

    minimise   sum over d of value[d] + sum over roles r of extra[r]
               value[d]            >= value of interval c     of each interval c that was chosen
               value[d] + extra[r] >= value of interval c     by d in role r
               sum of the prices of all units = 1

to which each round adds the intervals that earn most by the prices of the last (Kelley 1960). The
next prices lie between the best so far and the program's.

It holds for chains alone. In a general graph a stage need not be an interval of one order.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pulp

from skyfx.solver.methods import mip_backend
from skyfx.solver.methods.bisection import INTERVAL_DUAL, Bisection
from skyfx.solver.methods.bounds import pricing
from skyfx.solver.methods.bounds.pricing import ANY, BEGIN, Columns
from skyfx.solver.methods.limits import Limits
from skyfx.solver.methods.method import Bound, MethodUpdate, SearchState
from skyfx.solver.problem.instance import Floats
from skyfx.solver.problem.interval_tables import IntervalTables, interval_tables, prefix_sums
from skyfx.solver.problem.tolerances import BOUND_SAFETY

MAX_KINDS = 200
"""Kinds of units that get a price of their own."""

AIMS = (4e-3, 5e-4)
"""How far above the best bound prices are looked for, one after the other."""

ROUNDS = 12
"""Of the linear program, for each aim."""

NEAR = 2e-5
"""Distance of the best prices from what the program proves possible at which a search ends."""


def interval_dual_bound(task: SearchState) -> Iterator[MethodUpdate]:
    """Bound the bottleneck of a chain."""
    problem = task.problem
    of, prices = interval_tables(problem, range(problem.num_units)), pricing.work_shares(problem)
    if problem.assumptions.overlap == "full":  # moving takes no time of its own
        of = of._replace(receive=np.zeros_like(of.receive), send=np.zeros_like(of.send))
    high = task.bottleneck_s
    if not math.isfinite(high):
        high = float(of.prefix_time[:, -1].max()) + 2 * float(of.receive.max() + of.send.max())
    best = task.bound.value

    def told(remark: str) -> MethodUpdate:
        return MethodUpdate(bound=Bound(best * BOUND_SAFETY, "prices of intervals"), remark=remark)

    ruled_out = _ruled_out(prices, best, high, of)
    if ruled_out > best:
        best = ruled_out
        yield told("each unit's part of all work as its price")
    _, kind_of = np.unique(problem.time_s, axis=1, return_inverse=True)
    kind_of = kind_of.reshape(-1)
    if kind_of.max() >= MAX_KINDS:
        return
    for aim in AIMS:
        for better in _improved(prices, kind_of, best * (1 + aim), of, task.limits):
            prices, ruled_out = better, _ruled_out(better, best, high, of)
            if ruled_out > best:
                best = ruled_out
                yield told(f"prices of {kind_of.max() + 1} kinds of units")


def _earned(prices: Floats, bottleneck: float, of: IntervalTables) -> tuple[float, Columns]:
    """The value of all devices' best intervals within T, infinite if one can do all; and these."""
    columns = pricing.best_columns(prefix_sums(prices), bottleneck, of)
    if columns.end[BEGIN].max() == len(prices):
        return math.inf, columns
    value = columns.value
    gain, _ = pricing.assign_roles(np.maximum(value[BEGIN:] - value[ANY], 0.0))
    return float(value[ANY].sum()) + gain, columns


def _ruled_out(prices: Floats, low: float, high: float, of: IntervalTables) -> float:
    """The largest T between two that these prices rule out; `low`, if they rule out none."""
    if _earned(prices, low * (1 + 1e-5), of)[0] >= BOUND_SAFETY:
        return low
    search = Bisection(low, high, INTERVAL_DUAL)
    for bottleneck in search:
        if _earned(prices, bottleneck, of)[0] < BOUND_SAFETY:
            search.low = bottleneck
        else:
            search.keep(bottleneck)
    return search.low


def _improved(
    prices: Floats, kind_of: Any, bottleneck: float, of: IntervalTables, limits: Limits
) -> Iterator[Floats]:
    """Prices by which devices earn less and less within T."""
    program = _Program(kind_of)
    best, step = math.inf, 0.3
    tried = better = prices
    for _ in range(ROUNDS):
        if limits.left_s <= 0:
            return
        earned, chosen = _earned(tried, bottleneck, of)
        if not math.isfinite(earned):
            return
        if earned < best:
            best, better, step = earned, tried, 0.3
            yield better
        else:
            step = min(1.0, 1.5 * step)
        program.add(chosen)
        least, answer = program.solve(limits)
        if answer is None or least >= min(1.0, best - NEAR):
            return
        tried = step * answer + (1 - step) * better
        tried = tried / tried.sum()


class _Program:
    """The linear program over the prices of kinds; its constraints grow."""

    def __init__(self, kind_of: Any) -> None:
        self.kind_of = kind_of
        self.before = prefix_sums((kind_of == np.arange(kind_of.max() + 1)[:, None]) * 1.0)
        """Units of each kind before each cut, `(K, n + 1)`."""
        self.lp = pulp.LpProblem("prices", pulp.LpMinimize)
        self.prices = [self.lp.add_variable(f"p_{k}", 0) for k in range(len(self.before))]
        self.values: dict[int, Any] = {}
        self.extra: dict[int, Any] = {}
        self.lp += pulp.lpSum(self._earned(self.before[:, -1])) == 1

    def add(self, columns: Columns) -> None:
        """Add the best intervals of all devices and roles; a role only where it gains."""
        value, start, end = columns
        for d in range(value.shape[1]):
            for role in range(len(value)):
                if role != ANY and value[role, d] <= value[ANY, d]:
                    continue
                granted = [self._variable(self.values, "w", d)]
                granted += [self._variable(self.extra, "x", role)] if role != ANY else []
                counts = self.before[:, end[role, d]] - self.before[:, start[role, d]]
                self.lp += pulp.lpSum(granted) >= pulp.lpSum(self._earned(counts))

    def solve(self, limits: Limits) -> tuple[float, Floats | None]:
        """The least that devices earn by the intervals so far, and the units' prices for it."""
        granted = [*self.values.values(), *self.extra.values()]
        self.lp.setObjective(pulp.lpSum(granted))
        values = mip_backend.minimise(self.lp, {}, time_limit_s=limits.left_s, gap=0.0).values
        if values is None:
            return -math.inf, None
        prices = np.array([max(values[p.name], 0.0) for p in self.prices])
        return sum(values[x.name] for x in granted), prices[self.kind_of]

    def _earned(self, counts: Floats) -> list[Any]:
        return [c * p for p, c in zip(self.prices, counts.tolist(), strict=True) if c]

    def _variable(self, of: dict[int, Any], letter: str, i: int) -> Any:
        if i not in of:
            of[i] = self.lp.add_variable(f"{letter}_{i}", 0)
        return of[i]
