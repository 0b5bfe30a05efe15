"""The one place where a plan is made: stages, their figures, the certificate, and the sources."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from skyfx.solver.core.plan import (
    Alternatives,
    Plan,
    Reference,
    SolverInfo,
    Stage,
    Strategy,
    relative_gap,
)
from skyfx.solver.costs.peak_memory import peak_bytes
from skyfx.solver.costs.recomputation import recompute_s, recomputed_in, segments_of
from skyfx.solver.methods import mip_backend
from skyfx.solver.methods.method import Bound, Candidate
from skyfx.solver.problem.problem import Problem
from skyfx.solver.problem.tolerances import OPTIMALITY_TOLERANCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """The files that a plan was made from, and the search that found it."""

    graph: Reference
    cluster: Reference
    alternatives: Alternatives
    strategy: Strategy
    solver: str = "HiGHS"
    wall_s: float = 0.0
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ScheduledStages:
    """Stages under the schedule that was asked for.

    Attributes:
        candidate: the stages and their cost under the schedule.
        in_flight: micro-batches in flight on each stage, `(num_stages,)`; None where the schedule
            says so itself.
        step_s: a simulated step; 0 where none was simulated.
        usual_step_s: a simulated step of the best plan for 1f1b; None where none was simulated.
        remark: a sentence about the schedule.
    """

    candidate: Candidate
    in_flight: Sequence[int] | None = None
    step_s: float = 0.0
    usual_step_s: float | None = None
    remark: str = ""


def build(
    problem: Problem, scheduled: ScheduledStages, bound: Bound, provenance: Provenance
) -> Plan:
    """Make the plan.

    Args:
        problem: with the schedule that was asked for.
        scheduled: the stages.
        bound: a lower bound on the objective that holds under the schedule.
        provenance: the files and the search.
    """
    cost, told = scheduled.candidate.cost, provenance
    value = cost.objective_value
    is_best = value <= bound.value * (1 + OPTIMALITY_TOLERANCE)
    lower_bound = value if is_best else bound.value
    return Plan(
        graph=told.graph,
        cluster=told.cluster,
        assumptions=problem.assumptions,
        stages=_stages(problem, scheduled),
        bottleneck_s=cost.bottleneck_s,
        step_s=cost.step_s,
        objective_value=value,
        lower_bound=lower_bound,
        gap=relative_gap(value, lower_bound),
        solver=SolverInfo(
            name=told.solver,
            version=mip_backend.version() if told.solver == "HiGHS" else "",
            status="optimal" if is_best else "feasible",
            wall_s=told.wall_s,
            strategy=told.strategy,
            binding=bound.binding,
            method=scheduled.candidate.method,
            says=(*told.remarks, scheduled.remark) if scheduled.remark else told.remarks,
        ),
        alternatives=replace(told.alternatives, simulated_1f1b_s=scheduled.usual_step_s),
        simulated_s=scheduled.step_s,
    )


def _stages(problem: Problem, scheduled: ScheduledStages) -> tuple[Stage, ...]:
    cost, placement = scheduled.candidate.cost, problem.placement(scheduled.candidate.stages)
    none: Sequence[int] = [0] * len(placement)
    peaks: Sequence[float] = none
    if problem.assumptions.communication == "relay":
        peaks = peak_bytes(
            problem.graph, problem.cluster, placement, problem.assumptions, scheduled.in_flight
        )
    devices = {device.name: device for device in problem.cluster.devices}
    again = [recomputed_in(problem.graph, ids) for _, ids in placement]
    return tuple(
        Stage(
            device=device,
            nodes=tuple(ids),
            compute_s=cost.compute_s[k],
            receive_s=cost.receive_s[k],
            send_s=cost.send_s[k],
            time_s=cost.time_s[k],
            memory_bytes=cost.memory_bytes[k],
            peak_bytes=peaks[k],
            limit_bytes=devices[device].memory_bytes,
            live=(scheduled.in_flight or none)[k],
            flops=cost.flops[k],
            recompute=segments_of(again[k]),
            recompute_s=recompute_s(devices[device], again[k]),
            recompute_bytes=sum((node.again_bytes for node in again[k]), 0.0),
        )
        for k, (device, ids) in enumerate(placement)
    )
