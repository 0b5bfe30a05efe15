"""From a plan and a capture to a pipeline whose workers are started."""

import logging
import os
from collections.abc import Collection

from torch import nn

from skyfx.devices.host_resources import free_bytes
from skyfx.orchestration.environment import Environment
from skyfx.orchestration.rebalancing import Rebalancing
from skyfx.partitioning.splitter import Splitter
from skyfx.partitioning.weights import Weights
from skyfx.runtime.memory.limits import MemoryLimits
from skyfx.runtime.memory.malloc import HOLES, return_freed
from skyfx.runtime.pipeline import Pipeline
from skyfx.solver.core.cluster import Cluster
from skyfx.solver.core.plan import Plan
from skyfx.tracing.capture import Capture

__all__: list[str] = ["assemble", "is_tight"]

logger = logging.getLogger(__name__)

NEARLY = 0.9
"""The share of a device's free memory from which a limit is the machine's own."""


def assemble(
    model: nn.Module,
    plan: Plan,
    captured: Capture,
    environment: Environment,
    weights: str | os.PathLike[str] | None = None,
    rebalance: Rebalancing | None = None,
) -> Pipeline:
    """Split the model as the plan says and start the workers of this process.

    Args:
        model: its parameters move to the devices of their stages.
        plan: for this model and these devices.
        captured: the capture that the plan is for.
        environment: the devices.
        weights: safetensors for a model without values.
        rebalance: makes another plan when devices become slower.
    """
    places = environment.places(plan)
    logger.info("the plan:\n%s", plan)
    here = [f"stage {k} on {place.name!r}" for k, place in enumerate(places) if place is not None]
    logger.info("this process runs %s", ", ".join(here) or "no stage")
    own = {place.name for place in places if place is not None and place.device.type == "cpu"}
    if is_tight(plan, own, environment.cluster):
        return_freed()
    opened = None if weights is None else Weights(weights)
    limits = _enforced_limits(model, environment)
    try:
        on_cpu = environment.on_cpu(plan)
        splitter = Splitter(model, plan, places, on_cpu, captured, opened)
        workers = environment.workers(places, plan)
        return Pipeline(model, plan, workers, splitter, captured.microbatch, rebalance, limits.lift)
    except BaseException:
        limits.lift()
        raise
    finally:
        if opened is not None:
            opened.close()


def _enforced_limits(model: nn.Module, environment: Environment) -> MemoryLimits:
    """Hold this process to the memory limits of its devices that the machine does not enforce."""
    known = {place: place.memory_bytes for place in environment.here.values()}
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
