"""Whether this process has the memory to run the whole model in plain torch."""

import torch
from torch import nn

from skyfx.devices.host_resources import free_bytes
from skyfx.orchestration.environment import Environment
from skyfx.passes.planner_graph import to_planner_graph
from skyfx.runtime.memory.limits import allowed_bytes
from skyfx.solver.core.plan import Plan
from skyfx.solver.core.schedule import in_flight_counts
from skyfx.solver.costs.cost_model import resident_bytes
from skyfx.tracing.capture import Capture
from skyfx.verification.observation import RunMode

SHARE = 0.9
"""Of the free memory that a run may take."""


def lacking(
    model: nn.Module, captured: Capture, plan: Plan, environment: Environment, how: RunMode
) -> str:
    """Why the model cannot be run as a whole on this process's CPU; empty if it can.

    It takes copies of what is on other devices, a gradient for each parameter, and what operators
    save or work with, as the plan has it for all stages.
    """
    cpu = torch.device("cpu")
    tensors = [*model.parameters(), *model.buffers()]
    there = sum(x.nbytes for x in tensors if x.device == cpu)
    needed = float(sum(x.nbytes for x in tensors if x.device != cpu))
    if how.backward:
        needed += sum(x.nbytes for x in model.parameters() if x.requires_grad)
    saves = how.backward or not plan.assumptions.training
    needed += _working_bytes(captured, plan, saves=saves)
    limits = [x.memory_bytes for x in environment.local.values() if x.device == cpu]
    known = [x for x in limits if x is not None]
    free = [SHARE * free_bytes(cpu), allowed_bytes()]
    if known and len(known) == len(limits):
        free.append(sum(known) - there)
    if needed <= min(free):
        return ""
    return (
        f"plain torch would take {(there + needed) / 2**20:.0f} MiB for the whole model, and this "
        f"process has {max(0.0, there + min(free)) / 2**20:.0f} MiB"
    )


def _working_bytes(captured: Capture, plan: Plan, *, saves: bool) -> float:
    """What one micro-batch takes in all stages together, beside parameters, as planned.

    `saves` says whether what operators save for a backward is among it.
    """
    assumed = plan.assumptions
    size_of = {x.id: resident_bytes(x, assumed) for x in to_planner_graph(captured).nodes}
    usual = in_flight_counts(assumed.schedule, len(plan.stages), assumed.microbatches)
    saved, brief = 0.0, 0.0
    for stage, live in zip(plan.stages, plan.live or usual, strict=True):
        parameters = sum(size_of[x] for x in stage.nodes)
        saved += max(0.0, stage.memory_bytes - parameters) / max(1, live) + stage.recompute_bytes
        brief = max(brief, stage.peak_bytes - stage.memory_bytes)
    return saved * saves + brief
