"""The exact method for chains of repeated blocks, without links: depth costs nothing.

At a fixed bottleneck T, a stage may be as long as T allows and never loses by it: the next stage
starts later, so it ends no earlier. So only the *phase* of a stage in the repeated part counts: the
place inside the block where it starts. An order of the devices is then a path through phases that
uses each device once, an Eulerian path. As an integer program,

    x[g, f]  devices of group g that start in phase f            (integer)
    h[g]     1 if the first stage is on group g, l[g] the last
    z[f]     1 if the stages in between end in phase f

    into and out of each phase as often, from the first stage's end to z
    reach of the first stage + sum of reaches >= where the last one must start at the latest

Bisection on T: no solution is a proof, a solution is an order of the devices.

Legend: `b` units of a block, repeated in `[begin, end)`; the ends before and after it may differ.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pulp
from numpy.typing import NDArray

from skyfx.solver.methods import mip_backend
from skyfx.solver.methods.bisection import BLOCK_PHASES, Bisection
from skyfx.solver.methods.method import Bound, MethodUpdate, SearchState
from skyfx.solver.problem.instance import Floats, UnitPlacement
from skyfx.solver.problem.problem import Problem
from skyfx.solver.problem.tolerances import BOUND_SAFETY, OPTIMALITY_TOLERANCE

MAX_BLOCK = 64


def block_phase_milp(task: SearchState) -> Iterator[MethodUpdate]:
    """Find and prove the best plan of a chain of repeated blocks where moving is free."""
    problem = task.problem
    blocks = Blocks.of(problem)
    if blocks is None:
        yield MethodUpdate(remark="no repeated blocks")
        return
    remark = f"{blocks.begin}..{blocks.end} of {problem.num_units} units in blocks of {blocks.size}"
    high = task.bottleneck_s
    if not math.isfinite(high):
        high = float(blocks.time_s.sum(axis=1).min())
    policy = BLOCK_PHASES._replace(tolerance=max(OPTIMALITY_TOLERANCE, task.limits.gap))
    search = Bisection(task.bound.value, high, policy)
    for bottleneck in search:
        model = PhaseModel(blocks, bottleneck)
        answer = mip_backend.minimise(model.lp, {}, time_limit_s=task.limits.left_s, gap=0.0)
        if answer.infeasible:
            search.low = bottleneck * BOUND_SAFETY
            yield MethodUpdate(bound=Bound(search.low, "phases of repeated blocks"), remark=remark)
        elif answer.values is None:
            return
        else:
            stages = model.plan(answer.values)
            reached = math.inf if stages is None else problem.cost(stages).bottleneck_s
            search.keep(min(bottleneck, reached))
            yield MethodUpdate(stages=stages, interrupted=answer.interrupted, remark=remark)


@dataclass(frozen=True)
class Blocks:
    """The repeated part of a chain."""

    problem: Problem
    size: int
    begin: int
    end: int

    @classmethod
    def of(cls, problem: Problem) -> "Blocks | None":
        """The block with the longest repetition; None where less than half of the chain repeats."""
        time, n = problem.time_s, problem.num_units
        best: tuple[int, int, int] | None = None
        for size in range(1, min(MAX_BLOCK, n // 4) + 1):
            same = (time[:, size:] == time[:, :-size]).all(axis=0)
            runs = np.flatnonzero(np.diff(same, prepend=False, append=False)).reshape(-1, 2)
            if not len(runs):
                continue
            begin, stop = runs[(runs[:, 1] - runs[:, 0]).argmax()]
            length = int(stop - begin + size)
            busy = (time[:, begin : begin + size].sum(axis=1) > 0).all()
            if busy and length > n // 2 and (best is None or length > best[2] - best[1] + size):
                best = size, int(begin), int(begin) + length
        return None if best is None else cls(problem, *best)

    @cached_property
    def groups(self) -> list[list[int]]:
        """Devices of each group."""
        return self.problem.identical_devices

    @cached_property
    def time_s(self) -> Floats:
        """Seconds of each unit on each group's devices, `(G, n)`."""
        return self.problem.time_s[[group[0] for group in self.groups]]

    def reach(self, bottleneck: float) -> NDArray[np.int64]:
        """How many units a device manages from each phase on, `(G, b)`, were there no end."""
        block = self.time_s[:, self.begin : self.begin + self.size]
        whole = block.sum(axis=1)
        times = np.floor(bottleneck / whole)
        lengths = np.zeros((len(self.groups), self.size), dtype=int)
        for f in range(self.size):
            running = np.cumsum(np.roll(block, -f, axis=1), axis=1)
            rest = bottleneck - times * whole
            lengths[:, f] = times * self.size + (running <= rest[:, None]).sum(axis=1)
        return lengths

    def from_start(self, bottleneck: float) -> NDArray[np.int64]:
        """Where the first stage ends, `(G,)`; to be on the safe side, in the repeated part."""
        ends = (np.cumsum(self.time_s, axis=1) <= bottleneck).sum(axis=1)
        return np.asarray(np.maximum(ends, self.begin))

    def to_end(self, bottleneck: float) -> NDArray[np.int64]:
        """Where the last stage must start at the latest, `(G,)`; not after the repeated part."""
        left = np.cumsum(self.time_s[:, ::-1], axis=1) <= bottleneck
        starts = self.problem.num_units - left.sum(axis=1)
        return np.asarray(np.minimum(starts, self.end))


class PhaseModel:
    """The integer program for one T."""

    def __init__(self, blocks: Blocks, bottleneck: float) -> None:
        self.blocks, self.bottleneck = blocks, bottleneck / BOUND_SAFETY
        self.reach, self.first = blocks.reach(self.bottleneck), blocks.from_start(self.bottleneck)
        self.last = blocks.to_end(self.bottleneck)
        self.lp = pulp.LpProblem("phases", pulp.LpMinimize)
        groups, size = range(len(blocks.groups)), blocks.size
        phases, count = itertools.product(groups, range(size)), self._count
        self.x = {(g, f): count(f"x_{g}_{f}", len(blocks.groups[g])) for g, f in phases}
        self.heads = [self._count(f"h_{g}", 1) for g in groups]
        self.tails = [self._count(f"l_{g}", 1) for g in groups]
        z = [self._count(f"z_{f}", 1) for f in range(size)]
        self.lp.setObjective(pulp.lpSum([]))
        for ends in (self.heads, self.tails, z):
            self.lp += pulp.lpSum(ends) == 1
        for g in groups:
            used = pulp.lpSum(self.x[g, f] for f in range(size)) + self.heads[g] + self.tails[g]
            self.lp += used <= len(blocks.groups[g])
        for f in range(size):
            into = [self.x[g, e] for g in groups for e in range(size) if self._ends(g, e) == f]
            into += [self.heads[g] for g in groups if self._phase(int(self.first[g])) == f]
            out = [self.x[g, f] for g in groups]
            self.lp += pulp.lpSum(into) == pulp.lpSum(out) + z[f]
        progress = pulp.lpSum(int(self.reach[g, f]) * x for (g, f), x in self.x.items())
        start = pulp.lpSum(int(self.first[g]) * self.heads[g] for g in groups)
        target = pulp.lpSum(int(self.last[g]) * self.tails[g] for g in groups)
        self.lp += progress + start >= target

    def _count(self, name: str, at_most: int) -> Any:
        return self.lp.add_variable(name, 0, at_most, "Integer")

    def _phase(self, unit: int) -> int:
        return (unit - self.blocks.begin) % self.blocks.size

    def _ends(self, group: int, phase: int) -> int:
        return int(phase + self.reach[group, phase]) % self.blocks.size

    def plan(self, values: dict[str, float]) -> UnitPlacement | None:
        """The plan of a solution; None where its phases do not hang together."""
        size = self.blocks.size
        free = [list(group) for group in self.blocks.groups]
        first = next(g for g, h in enumerate(self.heads) if values[h.name] > 0.5)
        last = next(g for g, t in enumerate(self.tails) if values[t.name] > 0.5)
        edges: list[list[int]] = [[] for _ in range(size)]
        for (g, f), x in self.x.items():
            edges[f] += [g] * round(values[x.name])
        middle = self._euler(edges, self._phase(int(self.first[first])))
        if any(edges):
            return None
        return self._stages([free[g].pop() for g in [first, *middle, last]])

    def _euler(self, edges: list[list[int]], phase: int) -> list[int]:
        """An Eulerian path from a phase on, as groups in order (Hierholzer); it uses up `edges`."""
        walk, path = [(phase, -1)], []
        while walk:
            f, _ = walk[-1]
            if edges[f]:
                g = edges[f].pop()
                walk.append((self._ends(g, f), g))
            else:
                path.append(walk.pop()[1])
        return path[-2::-1]

    def _stages(self, order: list[int]) -> UnitPlacement:
        """Stages in this order, each as long as T allows; the last takes the rest."""
        problem, stages, start = self.blocks.problem, [], 0
        for d in order[:-1]:
            running = np.cumsum(problem.time_s[d, start:])
            end = start + int((running <= self.bottleneck).sum())
            stages.append((d, range(start, end)))
            start = end
        stages.append((order[-1], range(start, problem.num_units)))
        return [(d, part) for d, part in stages if len(part)]
