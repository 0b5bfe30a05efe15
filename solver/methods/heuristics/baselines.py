"""The plans that one would make without a solver.

They are evaluated beside every plan, and no answer is worse.
"""

from itertools import pairwise

import numpy as np

from skyfx.solver.problem.instance import UnitPlacement
from skyfx.solver.problem.problem import Problem
from skyfx.solver.problem.tolerances import CLEARLY

Boundaries = list[int]
"""Stage k of `D` holds the units `[b[k], b[k+1])`; `(D + 1,)`."""


def best_single_device(problem: Problem) -> UnitPlacement | None:
    """Everything on the one device where the objective is best; None where it fits none."""
    everything = range(problem.num_units)
    needed = problem.need_bytes(1).sum() + problem.peak_bytes.max()
    may_fit = needed <= problem.memory_limit * CLEARLY
    time_s = np.where(may_fit, problem.time_s.sum(axis=1), np.inf)
    options: list[tuple[float, int]] = []
    for d in np.argsort(time_s, kind="stable").tolist():
        # No message is sent, so the objective follows the time: only the first few are evaluated.
        if not np.isfinite(time_s[d]) or (options and time_s[d] > time_s[options[0][1]] * CLEARLY):
            break
        if problem.fits(cost := problem.cost([(d, everything)]), [(d, everything)]):
            options.append((cost.objective_value, d))
    return [(min(options)[1], everything)] if options else None


def even(problem: Problem) -> UnitPlacement | None:
    """Equal numbers of nodes a device, in the cluster's order; None where they do not fit."""
    return _if_it_fits(problem, _stages(_even_boundaries(problem)))


def dynamic(problem: Problem) -> UnitPlacement | None:
    """Sky Computing's heuristic: from the even split, repair memory, then even out the loads.

    Unlike its original, a boundary moves in both directions, by the loads of the two stages beside
    it.
    """
    boundaries = _even_boundaries(problem)
    for _ in range(problem.num_units):
        if not _repair_memory(problem, boundaries):
            break
    for _ in range(problem.num_units):
        moved = [_balance(problem, boundaries, k) for k in range(1, problem.num_devices)]
        if not any(moved):
            break
    return _if_it_fits(problem, _stages(boundaries))


def _even_boundaries(problem: Problem) -> Boundaries:
    counts = np.cumsum([0] + [len(members) for members in problem.members])
    share = counts[-1] / problem.num_devices
    inner = [int(np.abs(counts - share * k).argmin()) for k in range(1, problem.num_devices)]
    return [0, *inner, problem.num_units]


def _stages(boundaries: Boundaries) -> UnitPlacement:
    return [(d, range(a, b)) for d, (a, b) in enumerate(pairwise(boundaries)) if b > a]


def _if_it_fits(problem: Problem, stages: UnitPlacement) -> UnitPlacement | None:
    return stages if problem.fits(problem.cost(stages), stages) else None


def _memory(problem: Problem, boundaries: Boundaries, d: int) -> float:
    part = slice(boundaries[d], boundaries[d + 1])
    need = problem.need_bytes(position=problem.num_devices - d)[part].sum()
    return float(need + problem.peak_bytes[part].max(initial=0.0))


def _load(problem: Problem, boundaries: Boundaries, d: int) -> float:
    return float(problem.time_s[d, boundaries[d] : boundaries[d + 1]].sum())


def _repair_memory(problem: Problem, boundaries: Boundaries) -> bool:
    """Each stage that is too large hands one unit to the neighbour with more room.

    Returns:
        Whether any did.
    """
    moved = False
    for d in range(problem.num_devices):
        full = boundaries[d + 1] > boundaries[d]
        if not full or _memory(problem, boundaries, d) <= problem.memory_limit[d]:
            continue
        room = {
            e: problem.memory_limit[e] - _memory(problem, boundaries, e)
            for e in (d - 1, d + 1)
            if 0 <= e < problem.num_devices
        }
        if room and max(room.values()) > 0:
            neighbour = max(room, key=lambda e: room[e])
            if neighbour > d:
                boundaries[d + 1] -= 1
            else:
                boundaries[d] += 1
            moved = True
    return moved


def _balance(problem: Problem, boundaries: Boundaries, k: int) -> bool:
    """Move boundary k by a unit toward the larger of the two loads if that lowers it."""
    left, right = _load(problem, boundaries, k - 1), _load(problem, boundaries, k)
    step = -1 if left > right else 1
    moved = boundaries.copy()
    moved[k] += step
    if not moved[k - 1] <= moved[k] <= moved[k + 1]:
        return False
    after = max(_load(problem, moved, k - 1), _load(problem, moved, k))
    fits = all(_memory(problem, moved, d) <= problem.memory_limit[d] for d in (k - 1, k))
    if after >= max(left, right) or not fits:
        return False
    boundaries[:] = moved
    return True
