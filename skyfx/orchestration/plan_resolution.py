"""Where a pipeline's plan comes from: a plan that the caller gives, or a search."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from torch import nn

from skyfx.measurement.cost_cache import check_cache_folder
from skyfx.partitioning.weights import Weights
from skyfx.passes.planner_graph import to_planner_graph
from skyfx.runtime.batches.microbatch import Batch
from skyfx.solver.core import files
from skyfx.solver.core.cluster import Cluster
from skyfx.solver.core.field_checks import non_negative, one_of
from skyfx.solver.core.files import require_folder
from skyfx.solver.core.graph import Graph
from skyfx.solver.core.pins import Pin
from skyfx.solver.core.plan import Assumptions, Plan, Strategy
from skyfx.solver.planning.planner import solve
from skyfx.tracing.capture import Capture, example_batch


@dataclass(frozen=True, slots=True)
class PlanSource:
    """Plans a measured model for a cluster, and again when the cluster has changed.

    Attributes:
        graph: the measured model.
        batch: an example; it may split into fewer micro-batches than `assumptions` asks for.
        gap: relative gap at which a search ends.
        time_limit_s: seconds after which it ends.
    """

    graph: Graph
    batch: Batch
    assumptions: Assumptions
    strategy: Strategy
    gap: float
    time_limit_s: float

    def replan(self, cluster: Cluster) -> Plan:
        """The plan for these devices, with as many micro-batches as the batch really makes."""
        parts = self.batch.split(self.graph.microbatch_size)
        solution = solve(
            self.graph,
            cluster,
            replace(self.assumptions, microbatches=len(parts)),
            strategy=self.strategy,
            gap=self.gap,
            time_limit_s=self.time_limit_s,
        )
        if solution.interrupted:  # Ctrl-C in a script means to stop, not to go on with less
            raise KeyboardInterrupt
        return solution.plan

    def first_plan(self, cluster: Cluster, keep: str | os.PathLike[str] | None) -> Plan:
        """The plan; it and the files that it was made from are written to the folder `keep`."""
        plan = self.replan(cluster)
        if keep is not None:
            for document, kind in ((self.graph, "graph"), (cluster, "cluster"), (plan, "plan")):
                files.write(document, Path(keep) / f"{plan.graph.name}.{kind}.json", force=True)
        return plan


def check_files(
    weights: str | os.PathLike[str] | None, keep: str | os.PathLike[str] | None
) -> None:
    """Refuse weights that cannot be read, and folders that cannot be written."""
    if weights is not None:
        Weights(weights).close()
    if keep is not None:
        require_folder("keep", keep)
    check_cache_folder()


def check_request(
    assumptions: Assumptions, cluster: Cluster, strategy: Strategy, gap: float, time_limit_s: float
) -> None:
    """Refuse what the planner would refuse, before there is a graph."""
    one_of("strategy", strategy, get_args(Strategy))
    non_negative("gap", gap)
    non_negative("time_limit_s", time_limit_s)
    assumptions.check()
    names = [device.name for device in cluster.devices]
    for pin in map(Pin.of, assumptions.pins):
        pin.check_device(names)


def check_patterns(pins: Sequence[str], captured: Capture) -> None:
    """Refuse pins that match no node."""
    nodes = to_planner_graph(captured).nodes if pins else ()
    for pin in map(Pin.of, pins):
        pin.check_pattern(nodes)


def read_arguments(
    model: nn.Module,
    example_inputs: Any,
    plan: Plan | str | os.PathLike[str] | None,
    weights: str | os.PathLike[str] | None,
    keep: str | os.PathLike[str] | None,
) -> tuple[Batch, Plan | None]:
    """The example, and the plan if the caller gives one; refuses files that cannot be used."""
    check_files(weights, keep)
    batch = example_batch(model, example_inputs)
    if plan is None or isinstance(plan, Plan):
        return batch, plan
    return batch, files.read(plan, Plan)
