"""A planning problem as all methods see it: the instance, and the memory of its devices."""

import itertools
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np

from skyfx.solver.core.cluster import HOST
from skyfx.solver.costs.cost_model import Cost
from skyfx.solver.problem.instance import Floats, Instance, UnitPlacement


@dataclass(frozen=True)
class Problem(Instance):
    """An instance with the limits of the devices' memory."""

    def with_memory(self, device: int, memory_bytes: float) -> Self:
        """The same problem, but for the memory of one device; all of the instance is kept."""
        devices = list(self.cluster.devices)
        devices[device] = replace(devices[device], memory_bytes=memory_bytes)
        changed = replace(self, cluster=replace(self.cluster, devices=tuple(devices)))
        kept = {name: value for name, value in vars(self).items() if name in vars(Instance)}
        vars(changed).update(kept)
        return changed

    @cached_property
    def memory_limit(self) -> Floats:
        """Memory `(D,)` of each device, infinite where unlimited."""
        limits = [d.memory_bytes for d in self.cluster.devices]
        return np.array([np.inf if limit is None else limit for limit in limits], dtype=float)

    @cached_property
    def memory_binds(self) -> bool:
        """Whether any device lacks the memory for the whole model in the worst position."""
        most = float(self.need_bytes(self.num_devices).sum() + self.peak_bytes.max())
        return bool(most > self.memory_limit.min())

    @cached_property
    def identical_devices(self) -> list[list[int]]:
        """The devices in groups within which any two can be swapped and no plan's cost changes."""
        alike = defaultdict[tuple[float, bytes], list[list[int]]](list)
        for d in range(self.num_devices):
            groups = alike[float(self.memory_limit[d]), self.time_s[d].tobytes()]
            group = next((g for g in groups if self._identical_wires(g[0], d)), None)
            if group is None:
                groups.append(group := [])
            group.append(d)
        return sorted(itertools.chain(*alike.values()))

    def _identical_wires(self, d: int, e: int) -> bool:
        """Whether swapping two devices changes no wire."""
        others = [self._name(x) for x in range(self.num_devices) if x not in (d, e)]
        one, two = self._name(d), self._name(e)
        return bool(
            self._wire(one, two) == self._wire(two, one)
            and all(
                self._wire(one, x) == self._wire(two, x)
                and self._wire(x, one) == self._wire(x, two)
                for x in (*others, HOST)
            )
        )

    def fits(self, cost: Cost, stages: UnitPlacement) -> bool:
        """Whether each device may run its units and has the memory for them."""
        limits = [self.memory_limit[d] for d, _ in stages]
        within = all(m <= limit for m, limit in zip(cost.memory_bytes, limits, strict=True))
        return within and self.can_run(cost, stages)

    def can_run(self, cost: Cost, stages: UnitPlacement) -> bool:
        """Whether each device may run its units, with the memory for them or not."""
        allowed = all(self.allowed[d, list(part)].all() for d, part in stages)
        return allowed and bool(np.isfinite(cost.objective_value))


class OneInFlightProblem(Problem):
    """The same with one micro-batch in flight on every stage: no schedule takes less memory."""

    def need_bytes(self, position: int) -> Floats:
        """Memory `(n,)` of each unit, but for the peak, at any position."""
        return super().need_bytes(1)
