"""How many micro-batches may be in flight on the stages within the devices' memory."""

import math
from collections.abc import Mapping, Sequence

from skyfx.solver.core.timeline import Timeline
from skyfx.solver.costs.cost_model import Placement, by_device, memory_bytes
from skyfx.solver.costs.peak_memory import peaks
from skyfx.solver.problem.problem import Problem
from skyfx.solver.refinement.peak_excess import RESERVE

MANY = 10**6
"""More micro-batches than this are never asked for."""


class MemoryHeadroom:
    """The memory limits of a placement's devices, held against steady state and peaks."""

    def __init__(
        self, problem: Problem, placement: Placement, usual_peaks: Mapping[str, float]
    ) -> None:
        """Prepare the limits.

        Args:
            problem: with the limits of the devices.
            placement: the stages, of which a device may have several.
            usual_peaks: bytes of the devices at their peaks under 1f1b. Where that is above a limit
                already, it is the limit.
        """
        nodes = {node.id: node for node in problem.graph.nodes}
        each = [[nodes[v] for v in ids] for _, ids in placement]
        self._names = [name for name, _ in placement]
        self._steady = [memory_bytes(part, problem.assumptions, live=0) for part in each]
        self._saved = [sum(node.saved_bytes for node in part) for part in each]
        self._peaks = peaks(problem.graph, placement, problem.assumptions)
        self._limits = {
            device.name: math.inf if device.memory_bytes is None else device.memory_bytes
            for device in problem.cluster.devices
        }
        self._peak_limits = {
            name: max(limit / (1 + RESERVE), usual_peaks.get(name, 0.0))
            for name, limit in self._limits.items()
        }

    def max_in_flight(self) -> list[int]:
        """How many micro-batches each stage alone has memory for, `(num_stages,)`.

        One message waits in a forward, none in a backward; `fits` knows better.
        """
        found = []
        for k, (name, peak) in enumerate(zip(self._names, self._peaks, strict=True)):
            left = (
                self._limits[name] - self._steady[k],
                self._peak_limits[name] - peak.bytes(1, (1, 0)),
            )
            each = self._saved[k], peak.in_flight_bytes + peak.gradient_bytes
            count = min(
                math.inf if not size else space / size + more
                for space, size, more in zip(left, each, (0, 1), strict=True)
            )
            found.append(int(min(count, MANY)))
        return found

    def fits(self, live: Sequence[int], timeline: Timeline) -> bool:
        """Whether as many micro-batches may be live, `(num_stages,)`, in the step they make."""
        steady = [
            fixed + saved * count
            for fixed, saved, count in zip(self._steady, self._saved, live, strict=True)
        ]
        most = [
            peak.bytes(count, queued)
            for peak, count, queued in zip(self._peaks, live, timeline.max_queued, strict=True)
        ]
        return all(
            total <= limits[name]
            for needs, limits in ((steady, self._limits), (most, self._peak_limits))
            for name, total in by_device(self._names, needs).items()
        )
