"""The one call: capture, measure, solve, split, run."""

import logging
import math
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from torch import nn

from skyfx.devices.host_resources import free_bytes
from skyfx.devices.resolve import DeviceList
from skyfx.measurement.measure import Progress, measure
from skyfx.orchestration.environment import Environment, site_of
from skyfx.orchestration.rebalancing import Rebalancing
from skyfx.partitioning.splitter import Splitter, captured_for, check_plan
from skyfx.partitioning.weights import Weights
from skyfx.runtime.device import LocalDevice
from skyfx.runtime.execution.microbatch import Batch
from skyfx.runtime.memory.limits import MemoryLimits
from skyfx.runtime.memory.malloc import HOLES, return_freed
from skyfx.runtime.pipeline import Pipeline
from skyfx.solver.core import files
from skyfx.solver.core.cluster import Cluster
from skyfx.solver.core.field_checks import one_of, positive
from skyfx.solver.core.graph import Graph
from skyfx.solver.core.plan import Assumptions, Mode, Objective, Plan, Schedule, Strategy
from skyfx.solver.planning.peak_repair import solve_within
from skyfx.solver.planning.planner import Solution, solve
from skyfx.tracing.capture import Capture, dummy_inputs

__all__: list[str] = ["capture_and_measure", "is_tight", "partition"]

logger = logging.getLogger(__name__)

NEARLY = 0.9
"""The share of a device's free memory from which a limit is the machine's own."""


def partition(
    model: nn.Module,
    devices: DeviceList,
    *,
    example_inputs: Any = None,
    plan: Plan | str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    mode: Mode = "training",
    objective: Objective = "throughput",
    schedule: Schedule = "1f1b",
    strategy: Strategy = "optimal",
    num_microbatches: int = 8,
    optimizer_state_ratio: float = 2.0,
    pins: Sequence[str] = (),
    gap: float = 0.01,
    time_limit_s: float = 20.0,
    keep: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Pipeline:
    """Split a model over devices and get it ready to run.

    Args:
        model: any module. Its parameters stay its own; they move to the devices of their stages.
        devices: torch devices (`["cuda:0", "cpu"]`), `skyfx.Device`s, a `Cluster` or its file.
        example_inputs: one batch: a tensor, a tuple, a dict; transformers models have their own.
        plan: a plan or its file, instead of measuring and solving.
        weights: a safetensors file, or a folder of them, for a model without values (see
            `empty_weights`): each stage reads its own tensors.
        mode: `training` (which infers as well) or `inference`.
        objective: `throughput`, `step` or `latency`, to be minimised.
        schedule: `1f1b`, `gpipe`, `generated` (made for the plan, within its memory), `tapered`
            (the stages made for that, too: the shortest step, whatever the objective) or
            `interleaved` (two stages a device).
        strategy: `optimal`, or the baselines `even` or `dynamic`.
        num_microbatches: parts that a batch is split into.
        optimizer_state_ratio: bytes of optimizer state per byte of parameters; 2 for Adam.
        pins: `PATTERN=DEVICE` or `PATTERN!=DEVICE`: nodes or modules that have to be on a device,
            or must not be, such as `embeddings=cpu`.
        gap: how far the plan may be from the best, relatively, to stop searching.
        time_limit_s: seconds after which the best plan so far is taken, with its true gap.
        keep: folder that graph, cluster and plan are written to (by the first process), as from
            `skyfx capture` and `skyfx solve`; earlier ones of the same name are replaced.
        progress: told of each node that has been measured.

    Returns:
        The pipeline; its workers are started.

    Raises:
        CaptureError: the model cannot be captured.
        PlanError: a device is not on this machine, or the plan is not one for this model.
        InfeasibleError: the model does not fit the devices (`NoPlanError`: none found in time).
    """
    site = site_of(devices)
    batch = Batch.of(dummy_inputs(model, example_inputs))
    rebalance = None
    if plan is not None:
        given, captured = _given(plan, model, batch, site.cluster)
    else:
        one_of("strategy", strategy, get_args(Strategy))
        assumptions = Assumptions(
            mode=mode,
            objective=objective,
            schedule=schedule,
            overlap=site.overlap,
            microbatches=num_microbatches,
            optimizer_state_ratio=optimizer_state_ratio,
            pins=tuple(pins),
        )
        assumptions.check()
        search = partial(solve, strategy=strategy, gap=gap, time_limit_s=time_limit_s)
        captured = _capture(model, batch, mode, num_microbatches)
        graph, cluster = site.measured(captured, progress)
        plan_for = partial(_planned, graph, assumptions=assumptions, batch=batch, search=search)
        given = site.agreed(lambda: _kept(plan_for(cluster), graph, cluster, keep))
        rebalance = Rebalancing(model, site, captured, graph, cluster, plan_for)
    return _pipeline(model, given, captured, site, weights, rebalance)


def _given(
    plan: Plan | str | os.PathLike[str], model: nn.Module, batch: Batch, cluster: Cluster
) -> tuple[Plan, Capture]:
    """The plan, read if need be and held against the model, and the capture that it is for."""
    read = plan if isinstance(plan, Plan) else files.read(plan, Plan)
    captured = _capture(model, batch, read.assumptions.mode, read.assumptions.microbatches)
    check_plan(read, captured, [device.name for device in cluster.devices])
    return read, captured


def _planned(
    graph: Graph,
    cluster: Cluster,
    assumptions: Assumptions,
    batch: Batch,
    search: Callable[..., Solution],
) -> Plan:
    """The plan for as many micro-batches as the batch really makes: at most those asked for."""
    parts = batch.split(graph.microbatch_size)
    real = replace(assumptions, microbatches=len(parts))
    solution = solve_within(graph, cluster, real, search)
    if solution.interrupted:  # Ctrl-C in a script means to stop, not to go on with less
        raise KeyboardInterrupt
    return solution.plan


def _kept(
    plan: Plan, graph: Graph, cluster: Cluster, folder: str | os.PathLike[str] | None
) -> Plan:
    """The plan, once it and what it was made from are in the folder, if there is one."""
    if folder is not None:
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        for document, kind in ((graph, "graph"), (cluster, "cluster"), (plan, "plan")):
            files.write(document, path / f"{plan.graph.name}.{kind}.json", force=True)
    return plan


def _pipeline(
    model: nn.Module,
    plan: Plan,
    captured: Capture,
    site: Environment,
    weights: str | os.PathLike[str] | None,
    rebalance: Rebalancing | None,
) -> Pipeline:
    places = site.places(plan)
    logger.info("the plan:\n%s", plan)
    here = [f"stage {k} on {place.name!r}" for k, place in enumerate(places) if place is not None]
    logger.info("this process runs %s", ", ".join(here) or "no stage")
    own = {place.name for place in places if place is not None and place.device.type == "cpu"}
    if is_tight(plan, own, site.cluster):
        return_freed()
    opened = None if weights is None else Weights(weights)
    limits = _enforced(model, site)
    try:
        splitter = Splitter(model, plan, places, site.on_cpu(plan), captured, opened)
        workers = site.workers(places, plan)
        return Pipeline(model, plan, workers, splitter, captured.microbatch, rebalance, limits.lift)
    except BaseException:
        limits.lift()
        raise
    finally:
        if opened is not None:
            opened.close()


def _enforced(model: nn.Module, site: Environment) -> MemoryLimits:
    """Hold this process to its devices' limits, as far as the machine itself does not."""
    known = {place: place.memory_bytes for place in site.here.values()}
    given = {
        place: limit
        for place, limit in known.items()
        if limit is not None and limit < NEARLY * free_bytes(place.device)
    }
    cpus = [place for place in known if place.device.type == "cpu"]
    is_limited = bool(cpus) and all(place in given for place in cpus)
    return MemoryLimits(
        sum(given[place] for place in cpus) if is_limited else None,
        {place.device: limit for place, limit in given.items() if place.device.type != "cpu"},
        [*model.parameters(), *model.buffers()],
    )


def is_tight(plan: Plan, names: Collection[str], cluster: Cluster) -> bool:
    """Whether a process whose CPUs have these names lacks the memory to keep what is freed."""
    here = [stage for stage in plan.stages if stage.device in names]
    used = {stage.device for stage in here}  # once, however many stages a device has
    limits = [device.memory_bytes for device in cluster.devices if device.name in used]
    known = [limit for limit in limits if limit is not None]
    needed = sum(max(stage.memory_bytes, stage.peak_bytes) for stage in here)
    return len(known) == len(limits) > 0 and HOLES * needed > sum(known)


def capture_and_measure(
    model: nn.Module,
    places: Iterable[LocalDevice],
    *,
    example_inputs: Any = None,
    mode: Mode = "training",
    num_microbatches: int = 8,
    progress: Progress | None = None,
) -> Graph:
    """The first half of `partition`, for planning offline: the measured graph."""
    batch = Batch.of(dummy_inputs(model, example_inputs))
    return measure(_capture(model, batch, mode, num_microbatches), places, progress=progress)


def _capture(model: nn.Module, batch: Batch, mode: Mode, num_microbatches: int) -> Capture:
    """Capture the model on the first of so many micro-batches."""
    positive("num_microbatches", num_microbatches)
    microbatch = batch.split(math.ceil(batch.batch_size / num_microbatches))[0]
    return captured_for(model, microbatch, training=mode == "training")
