"""The exact method in `host` communication for graphs with many ideals, for throughput.

`host_pair_dp` lists every stage that a plan can have; a branching graph has too many. Here T is
given, and stages that no plan within T can have are never visited (`host_window_kernel`). One pass
finds the best of the plans that keep T, or proves that there is none. T begins near the proven
bound and rises until there is a plan.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from skyfx.solver.costs.cost_model import in_flight_at
from skyfx.solver.methods.exact.host_window_kernel import (
    Devices,
    WindowArrays,
    WindowBoundaries,
    WindowRules,
    crossing,
    reach,
)
from skyfx.solver.methods.ideals.bitset_ideals import BitIdeals
from skyfx.solver.methods.ideals.device_states import States
from skyfx.solver.methods.limits import Limits
from skyfx.solver.methods.method import Bound, MethodUpdate, SearchState
from skyfx.solver.problem.infeasibility import nothing_fits
from skyfx.solver.problem.instance import Floats, UnitPlacement, Value
from skyfx.solver.problem.problem import Problem
from skyfx.solver.problem.tolerances import BOUND_SAFETY, OPTIMALITY_TOLERANCE

MAX_COUNTS = 1024
"""Counts of devices used."""

MAX_IDEALS = 2_000_000
MAX_CELLS = 25_000_000
"""States times ideals in a window; a cell takes 22 bytes."""

PART = 256
"""Ideals between two looks at the clock."""

RISE = 0.01
"""How far above the proven bound T begins; each time twice as far."""


def host_window_dp(task: SearchState) -> Iterator[MethodUpdate]:
    """Find and prove the best bottleneck where values go through the host's memory."""
    problem, states = task.problem, task.features.num_counts
    levels = task.features.levels(MAX_IDEALS, task.limits)
    if levels is None:
        yield MethodUpdate(remark="too many ideals")
        return
    members = np.concatenate([ideals for ideals, _ in levels])
    tables = WindowTables(problem, task.limits, task.features.lattice, members)
    if len(tables.members) == 1:
        yield MethodUpdate(stages=[(0, range(problem.num_units))], remark="nothing costs anything")
        return
    low, rise = task.bound.value, RISE
    highest = min(task.bottleneck_s * (1 - OPTIMALITY_TOLERANCE / 2), tables.endless_s)
    middle = -1.0
    while middle < highest:
        middle = min(highest, low * (1 + rise) if low > 0 else math.inf)
        if middle > highest * 0.995:
            middle = highest
        found = tables.best(middle, low)
        remark = f"{len(tables.members)} ideals, {tables.num_alive} in a window, x {states} states"
        if found is None:
            yield MethodUpdate(remark=f"{remark}: more than there is room for")
            return
        value, stages = found
        low, rise = max(low, min(value, middle) * BOUND_SAFETY), 2 * rise
        yield MethodUpdate(stages=stages, bound=Bound(low, "host window dp"), remark=remark)
        if stages is not None:
            return
    if task.incumbent is None:
        yield MethodUpdate(infeasible=nothing_fits(problem))


@dataclass
class WindowTables:
    """The dynamic program for any T."""

    problem: Problem
    limits: Limits
    ideals: BitIdeals
    members: Any
    """All ideals as bits, `(N, words)`, by growing size."""
    num_alive: int = 0

    @cached_property
    def endless_s(self) -> float:
        """A bottleneck that every plan keeps, unless a device cannot run a unit."""
        time = np.where(np.isfinite(self.problem.time_s), self.problem.time_s, 0.0)
        sizes = [(float(v.count), v.output_bytes) for v, _ in self._values]
        values = np.array(sizes).reshape(-1, 2).sum(axis=0)
        moving = self._wires.reshape(-1, 2, 2) @ values
        return float(2 * (time.sum(axis=1).max() + moving.sum(axis=1).max())) or 1e-300

    def best(self, bottleneck: float, proven: float) -> tuple[float, UnitPlacement | None] | None:
        """The best plan that keeps `bottleneck`, if any; None where the tables get too large.

        `proven` is a lower bound; the DP does not distinguish bottlenecks below it.
        """
        limit, full = bottleneck / BOUND_SAFETY, self.problem.assumptions.overlap == "full"
        devices = self._devices(limit)
        bounds, window = self._boundaries(devices)
        if not self.num_alive:
            return math.inf, None
        if window.size > MAX_CELLS:
            return None
        shape, best = window.shape, np.full(window.shape, np.inf)
        after, group = np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.int16)
        best[-1, 0] = 0.0
        rules, tables = WindowRules(limit, proven, full), WindowArrays(best, after, group, window)
        for y in range(len(best) - 1, 0, -PART):
            self.limits.check()
            reach(y, max(0, y - PART), rules, bounds, devices, tables)
        state = int(best[0].argmin())
        if not best[0, state] <= limit:
            return math.inf, None
        return float(best[0, state]), self._trace(bounds, tables, state)

    def _trace(self, bounds: WindowBoundaries, tables: WindowArrays, state: int) -> UnitPlacement:
        """The plan that begins with the empty ideal and a state."""
        chain, groups, x, counts = [bounds.members[0]], [], 0, list(self._counts[state])
        while sum(counts):
            state = self._counts.index(tuple(counts))
            groups.append(int(tables.group[x, state]))
            x = int(tables.after[x, state])
            counts[groups[-1]] -= 1
            chain.append(bounds.members[x])
        free = [iter(group) for group in self._states.groups]
        return self.ideals.placement([next(free[g]) for g in groups], chain, math.inf)

    def _boundaries(self, devices: Devices) -> tuple[WindowBoundaries, Floats]:
        """The ideals in the window of any state, by growing work, and their windows, `(N, C)`.

        A window is the weighted work in the ideal and, unless devices write while they compute,
        the least weighted time to write the values that cross.
        """
        parts, of_units = np.array_split(self.members, 64), self._of_units
        inside = np.concatenate([self.ideals.held(p).astype(float) @ of_units for p in parts])
        weight = inside[:, 0]
        used = devices.room.max() - devices.room
        fits = np.zeros(len(weight), dtype=bool)
        for room, then in zip(devices.room, used, strict=True):
            fits |= (weight <= room) & (weight[-1] - weight <= then)
        kept = np.flatnonzero(fits)
        kept = kept[np.argsort(weight[kept], kind="stable")]
        groups = len(self._states.groups)
        columns = np.split(inside[kept], [1, 1 + groups, 1 + 2 * groups, 2 + 2 * groups], axis=1)
        w, compute, barred, parameters, saved = map(np.ascontiguousarray, columns)
        first, values, crosses = self._crossing(self.members[kept], devices)
        memory = parameters[:, 0], saved[:, 0]
        bounds = WindowBoundaries(
            self.members[kept], w[:, 0], compute, barred, *memory, first, values
        )
        # Without both ends the devices cannot do all work within T.
        ends = len(kept) and kept[0] == 0 and kept[-1] == len(weight) - 1
        self.num_alive = len(kept) if ends else 0
        full = self.problem.assumptions.overlap == "full"
        return bounds, w + crosses @ devices.write.T * (not full)

    @cached_property
    def _of_units(self) -> Floats:
        """Per unit, weighted work, seconds and whether barred by group, parameters, saved bytes."""
        time, units = self._states.time_s[:, self.ideals.units], self.ideals.units
        weight, finite = self.ideals.weights(self._states), np.isfinite(time)
        memory = self.problem.resident_bytes[units], self.problem.saved_bytes[units]
        return np.vstack([weight, np.where(finite, time, 0.0), ~finite, *memory]).T

    def _crossing(self, members: Any, devices: Devices) -> tuple[Any, Any, Floats]:
        """The values that cross after each ideal, and how many tensors and bytes they are."""
        first, num, found = np.zeros(len(members) + 1, dtype=np.int64), 16 * len(members), -1
        while found < 0:
            values = np.empty(num, dtype=np.int32)
            found = crossing(members, devices.producer, devices.readers, first, values)
            num *= 2
        values = values[:found]
        sizes = np.concatenate([[[0.0, 0.0]], np.stack([devices.count, devices.size])[:, values].T])
        running = np.cumsum(sizes, axis=0)[first]
        return first, values, np.diff(running, axis=0)

    def _devices(self, bottleneck: float) -> Devices:
        problem, groups = self.problem, self._states.groups
        index = {counts: c for c, counts in enumerate(self._counts)}
        more = [
            [index.get((*of[:g], of[g] + 1, *of[g + 1 :]), -1) for g in range(len(groups))]
            for of in self._counts
        ]
        free = np.array([len(group) for group in groups]) - np.array(self._counts)
        writing = self._states.price[:, None] * self._wires[:, :2]
        write = [writing[left > 0].min(axis=0) if any(left) else (0.0, 0.0) for left in free]
        live = [in_flight_at(problem.assumptions, p) for p in range(problem.num_devices + 1)]
        place = self.ideals.place
        return Devices(
            np.array([place[v.producer] for v, _ in self._values], dtype=np.int64),
            self.ideals.words(readers for _, readers in self._values),
            np.array([float(v.count) for v, _ in self._values]),
            np.array([v.output_bytes for v, _ in self._values]),
            problem.peak_bytes[self.ideals.units],
            self._wires,
            problem.memory_limit[[group[0] for group in groups]] / BOUND_SAFETY,
            np.array(live, dtype=float),
            np.array([sum(counts) for counts in self._counts]),
            np.array(more),
            free @ self._states.price * (bottleneck / BOUND_SAFETY),
            np.array(write) * BOUND_SAFETY,
            self._states.price,
        )

    @cached_property
    def _states(self) -> States:
        return States(self.problem)

    @cached_property
    def _counts(self) -> list[tuple[int, ...]]:
        """Devices used per group, of each state; the first state uses none."""
        sizes = [len(group) + 1 for group in self._states.groups]
        return [tuple(map(int, index)) for index in np.ndindex(*sizes)]

    @cached_property
    def _wires(self) -> Floats:
        """Latency and seconds per byte to the host and from it, `(G, 4)`."""
        wire, first = self.problem.host_wire, [group[0] for group in self._states.groups]
        return np.array([(*wire(d, to_host=True), *wire(d, to_host=False)) for d in first], float)

    @cached_property
    def _values(self) -> list[tuple[Value, list[int]]]:
        """Values that units of the lattice make, and the other units there that read them."""
        place = self.ideals.place
        return [(v, of) for v, of in self.ideals.values if of and v.producer in place]
