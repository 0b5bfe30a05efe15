"""Plans whose peaks fit, where the cost model's `memory_bytes` alone would not say so."""

from collections.abc import Callable
from dataclasses import replace

from skyfx.solver.cluster import Cluster
from skyfx.solver.errors import InfeasibleError, NoPlanError
from skyfx.solver.graph import Graph
from skyfx.solver.peak import peak_bytes
from skyfx.solver.plan import Assumptions
from skyfx.solver.solve import Solution

__all__: list[str] = ["solve_within"]

ROUNDS = 5
RESERVE = 0.1
"""Of a predicted peak, what a device must have free beside it: what predictions were too low by."""


def solve_within(
    graph: Graph,
    cluster: Cluster,
    assumptions: Assumptions,
    search: Callable[[Graph, Cluster, Assumptions], Solution],
) -> Solution:
    """Search, and search again with lower limits while a stage's peak is above its device's.

    The plan that comes back is for the cluster with the limits that it was searched with, as its
    digest says: so is its bound.

    Raises:
        NoPlanError: no such plan was found.
        InfeasibleError: none exists even by what lasts alone.
    """
    worst: tuple[str, float, float] | None = None
    limits = {device.name: device.memory_bytes for device in cluster.devices}
    lowered = dict(limits)
    for _ in range(ROUNDS):
        devices = tuple(replace(d, memory_bytes=lowered[d.name]) for d in cluster.devices)
        try:
            solution = search(graph, replace(cluster, devices=devices), assumptions)
        except InfeasibleError:
            if worst is None:
                raise
            break
        stages = solution.plan.stages
        peaks = peak_bytes(graph, cluster, [(s.device, s.nodes) for s in stages], assumptions)
        over = False
        for stage, predicted in zip(stages, peaks, strict=True):
            peak = (1 + RESERVE) * predicted
            limit, now = limits[stage.device], lowered[stage.device]
            if limit is not None and now is not None and peak > limit:
                lowered[stage.device] = max(0.0, min(now, stage.memory_bytes) - (peak - limit))
                over, worst = True, (stage.device, peak, limit)
        if not over:
            return solution
    assert worst is not None
    name, peak, limit = worst
    raise NoPlanError(
        f"no plan was found that fits at its peak: the stage on {name!r} would take "
        f"{peak / 2**20:.1f} MiB for moments (and a tenth in reserve), its limit is "
        f"{limit / 2**20:.1f} MiB. Raise its memory_bytes, or make micro-batches smaller "
        f"(num_microbatches, now {assumptions.microbatches})"
    )
