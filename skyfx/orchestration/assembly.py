"""From a plan and a capture to a pipeline whose workers are started."""

import logging
import os

from torch import nn

from skyfx.devices.host_resources import free_bytes
from skyfx.orchestration.environment import Environment, local_stages
from skyfx.partitioning.splitter import Splitter
from skyfx.partitioning.weights import Weights
from skyfx.runtime.batches.batch_cutter import BatchCutter
from skyfx.runtime.execution.workers import Deployment, Rebalancer
from skyfx.runtime.memory.limits import MemoryLimits
from skyfx.runtime.pipeline import Pipeline
from skyfx.solver.core.plan import Plan
from skyfx.tracing.capture import Capture

logger = logging.getLogger(__name__)

NEARLY = 0.9
"""The share of a device's free memory from which a limit is the machine's own."""


def assemble(
    model: nn.Module,
    plan: Plan,
    captured: Capture,
    environment: Environment,
    cutter: BatchCutter,
    weights: str | os.PathLike[str] | None = None,
    rebalancer: Rebalancer | None = None,
) -> Pipeline:
    """Split the model as the plan says and start the workers of this process.

    Args:
        model: its parameters move to the devices of their stages.
        plan: for this model and these devices.
        captured: the capture that the plan is for.
        environment: the devices.
        cutter: cuts batches into micro-batches.
        weights: safetensors for a model without values.
        rebalancer: makes another plan when devices become slower.
    """
    logger.info("the plan:\n%s", plan)
    local = local_stages(environment, plan)
    here = [f"stage {k} on {device.name!r}" for k, device in local.items()]
    logger.info("this process runs %s", ", ".join(here) or "no stage")
    opened = None if weights is None else Weights(weights)
    limits = _enforced_limits(model, plan, environment)
    try:
        splitter = splitter_for(environment, model, plan, opened)
        deployment = deploy(environment, splitter, captured)
        return Pipeline(model, deployment, cutter, limits, rebalancer)
    except BaseException:
        limits.lift()
        raise
    finally:
        if opened is not None:
            opened.close()


def splitter_for(
    environment: Environment, model: nn.Module, plan: Plan, weights: Weights | None = None
) -> Splitter:
    """Splits the model over the devices of the plan, of which this process has some."""
    devices = [environment.local.get(stage.device) for stage in plan.stages]
    return Splitter(model, plan, devices, environment.on_cpu(plan), weights, environment.group)


def deploy(environment: Environment, splitter: Splitter, captured: Capture) -> Deployment:
    """Split the model as captured for the plan, and start the workers of this process."""
    staged = splitter.split(captured)
    workers = environment.start_workers(splitter.plan)
    return Deployment(splitter.plan, workers, splitter, captured.microbatch, staged)


def _enforced_limits(model: nn.Module, plan: Plan, environment: Environment) -> MemoryLimits:
    """Hold this process to the memory limits of its devices that the machine does not enforce."""
    known = list(environment.local.values())
    given = {
        device: limit
        for device in known
        if (limit := device.memory_bytes) is not None and limit < NEARLY * free_bytes(device.device)
    }
    cpus = [device for device in known if device.device.type == "cpu"]
    is_limited = bool(cpus) and all(device in given for device in cpus)
    return MemoryLimits(
        sum(given[device] for device in cpus) if is_limited else None,
        {device.device: limit for device, limit in given.items() if device.device.type != "cpu"},
        [*model.parameters(), *model.buffers()],
        state_ratio=plan.assumptions.optimizer_state_ratio if plan.assumptions.training else 0.0,
        hard=any(device.hard for device in cpus),
    )
