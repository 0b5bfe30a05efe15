"""A lower bound on the latency where memory binds: prices on the devices' memory.

With any prices y[d] >= 0 of a byte, in seconds, a plan that keeps all limits takes

    sum_i time[d(i), i]  >=  sum_i min_d (time[d, i] + y[d] need[i])  -  sum_d y[d] limit[d]

The best prices are those of the linear program that shares all units out freely, in parts too, with
one variable for all units of a kind: of the same times and the same need.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pulp

from skyfx.solver.methods import mip_backend
from skyfx.solver.methods.method import Bound, MethodUpdate, SearchState
from skyfx.solver.problem.instance import Floats
from skyfx.solver.problem.tolerances import BOUND_SAFETY

MAX_ROWS = 50_000
"""Kinds times devices."""


def memory_dual_bound(task: SearchState) -> Iterator[MethodUpdate]:
    """Bound the latency where memory binds."""
    problem = task.problem
    need, limited = problem.need_bytes(1), np.isfinite(problem.memory_limit)
    unit = float(need.sum()) or 1.0
    kinds, numbers = np.unique(np.vstack([problem.time_s, need / unit]), axis=1, return_counts=True)
    limit = np.where(limited, problem.memory_limit / unit, 0.0)
    if kinds.size > MAX_ROWS:
        yield MethodUpdate(remark=f"{kinds.shape[1]} kinds of units are too many")
        return
    prices = _prices(kinds, numbers, limit, task)
    if prices is None:
        return
    prices = np.where(limited, np.maximum(prices, 0.0), 0.0)
    least = (kinds[:-1] + prices[:, None] * kinds[-1]).min(axis=0)
    bound_s = float(least @ numbers - prices @ limit) * BOUND_SAFETY
    remark = f"prices of {np.count_nonzero(prices)} memories"
    yield MethodUpdate(bound=Bound(bound_s, "work and memory shared out freely"), remark=remark)


def _prices(kinds: Floats, numbers: Any, limit: Floats, task: SearchState) -> Floats | None:
    """What a byte of each device's memory is worth, `(D,)`."""
    lp = pulp.LpProblem("memory", pulp.LpMinimize)
    least = [lp.add_variable(f"u_{k}") for k in range(kinds.shape[1])]
    price = [lp.add_variable(f"y_{d}", 0) for d in range(len(limit))]
    worth = pulp.lpSum(int(n) * u for n, u in zip(numbers, least, strict=True))
    lp.setObjective(pulp.lpSum(float(m) * y for m, y in zip(limit, price, strict=True)) - worth)
    for d, y in enumerate(price):
        for k, u in enumerate(least):
            if np.isfinite(kinds[d, k]):
                lp += u - float(kinds[-1, k]) * y <= float(kinds[d, k])
    values = mip_backend.minimise(lp, {}, time_limit_s=task.limits.left_s, gap=0.0).values
    return None if values is None else np.array([values.get(y.name, 0.0) for y in price])
