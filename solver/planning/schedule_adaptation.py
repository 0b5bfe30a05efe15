"""A plan for 1f1b made one for another schedule: `generated`, `tapered` or `interleaved`.

All begin from the best plan under 1f1b and its memory. Its bound then holds only for what such a
plan cannot get around: it may keep fewer micro-batches live, and with several stages a device it is
no plan of the kind that the bound is about.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from skyfx.solver.core.cluster import Cluster
from skyfx.solver.core.plan import (
    SCHEDULES_WITH_COUNTS,
    Assumptions,
    Plan,
    Stage,
    Status,
    relative_gap,
)
from skyfx.solver.core.schedule import in_flight_counts
from skyfx.solver.core.units import seconds
from skyfx.solver.costs.action_times import ActionTimes
from skyfx.solver.costs.cost_model import Cost, Placement, evaluate
from skyfx.solver.costs.peak_memory import peak_bytes
from skyfx.solver.costs.simulator import simulate
from skyfx.solver.errors import InfeasibleError, NoPlanError
from skyfx.solver.methods.bounds.simple_bounds import simple_bound
from skyfx.solver.methods.limits import Limits
from skyfx.solver.methods.method import Bound, Candidate
from skyfx.solver.methods.portfolio import Portfolio
from skyfx.solver.problem.infeasibility import explain
from skyfx.solver.problem.problem import OneInFlightProblem, Problem
from skyfx.solver.problem.tolerances import OPTIMALITY_TOLERANCE
from skyfx.solver.refinement.in_flight import Generated, Live, generate
from skyfx.solver.refinement.interleaving import interleaved
from skyfx.solver.refinement.memory_headroom import MemoryHeadroom
from skyfx.solver.refinement.step_annealing import shortened
from skyfx.solver.refinement.tapering import tapered

__all__: list[str] = ["adapt_schedule", "as_schedule_error", "search_assumptions", "stages_with"]

LEAST_S = 2.0
"""Seconds for a bound on plans of which other micro-batches are live."""

NEAR = 0.005
"""How near such a bound is to be to what is possible."""


def search_assumptions(assumptions: Assumptions) -> Assumptions:
    """What the plan is searched for under: 1f1b instead of a schedule that is made afterwards."""
    if assumptions.schedule in SCHEDULES_WITH_COUNTS:
        return replace(assumptions, schedule="1f1b")
    return assumptions


@contextmanager
def as_schedule_error(problem: Problem) -> Iterator[None]:
    """Within it, that no plan exists under 1f1b is no proof for a schedule made afterwards.

    With one micro-batch live everywhere, as if there were one alone, there may be plans.

    Raises:
        NoPlanError: no plan exists under 1f1b, though there may be one under the schedule.
    """
    try:
        yield
    except InfeasibleError as error:
        alone = replace(search_assumptions(problem.assumptions), microbatches=1)
        made_afterwards = problem.assumptions.schedule in SCHEDULES_WITH_COUNTS
        if not made_afterwards or explain(Problem(problem.graph, problem.cluster, alone)):
            raise
        raise NoPlanError(
            f"no plan was found for the schedule {problem.assumptions.schedule}, which begins from "
            f"one for 1f1b. For that, {error}"
        ) from None


def adapt_schedule(plan: Plan, problem: Problem) -> Plan:
    """The plan under the schedule that the problem asks for.

    Args:
        plan: for the same problem under `search_assumptions` assumptions.
        problem: with the schedule.
    """
    assumptions = problem.assumptions
    if assumptions == plan.assumptions:
        return plan
    if not assumptions.training:  # there is no backward to take turns with
        return _bounded(replace(plan, assumptions=assumptions), problem)
    if assumptions.communication == "host":  # nothing says what a step takes there
        live = in_flight_counts("1f1b", len(plan.stages), assumptions.microbatches)
        kept = [replace(stage, live=n) for stage, n in zip(plan.stages, live, strict=True)]
        return _bounded(replace(plan, assumptions=assumptions, stages=tuple(kept)), problem)
    first: Live | None = None
    stages = problem.stages(plan)
    is_tapered = assumptions.schedule == "tapered" and plan.solver.strategy == "optimal"
    usual_peaks = {stage.device: stage.peak_bytes for stage in plan.stages}
    if assumptions.schedule == "interleaved":
        stages, first = interleaved(problem, stages, usual_peaks) or (stages, None)
    elif problem.memory_binds and (assumptions.objective == "step" or is_tapered):
        stages, first = shortened(problem, stages, usual_peaks)
    elif is_tapered:
        stages = tapered(problem, stages)
    placement = problem.placement(stages)
    pace = ActionTimes.of(problem.graph, problem.cluster, placement, assumptions)
    room = MemoryHeadroom(problem, placement, usual_peaks)
    made = generate(pace, assumptions.microbatches, room.fits, first)
    return _bounded(_replanned(plan, problem, placement, made), problem)


def _bounded(plan: Plan, problem: Problem) -> Plan:
    """The plan with a bound that holds under its schedule, whatever is live on which stages."""
    bound = Bound(plan.lower_bound, plan.solver.binding)
    if plan.assumptions.schedule == "interleaved":
        bound = simple_bound(problem)
    elif plan.assumptions.training and problem.memory_binds:
        bound = _with_one_live(plan, problem)
    value = plan.objective_value
    is_best = value <= bound.value * (1 + OPTIMALITY_TOLERANCE)
    lower_bound = value if is_best else bound.value
    status: Status = "optimal" if is_best else "feasible"
    return replace(
        plan,
        lower_bound=lower_bound,
        gap=relative_gap(value, lower_bound),
        solver=replace(plan.solver, status=status, binding=bound.binding),
    )


def _with_one_live(plan: Plan, problem: Problem) -> Bound:
    """A bound whatever is live on which stages, in about as long as the plan has taken."""
    relaxed = OneInFlightProblem(
        problem.graph, problem.cluster, search_assumptions(problem.assumptions)
    )
    limits = Limits(began=time.monotonic(), time_limit_s=max(LEAST_S, plan.solver.wall_s), gap=NEAR)
    known = Candidate.of(relaxed, problem.stages(plan))
    try:
        return Portfolio(relaxed, limits, known).run().bound
    except NoPlanError:
        return simple_bound(problem)


def _replanned(plan: Plan, problem: Problem, placement: Placement, made: Generated) -> Plan:
    assumptions, schedule = problem.assumptions, problem.assumptions.schedule
    cost = evaluate(problem.graph, problem.cluster, placement, assumptions, made.live)
    peaks = peak_bytes(problem.graph, problem.cluster, placement, assumptions, made.live)
    before = [(stage.device, stage.nodes) for stage in plan.stages]
    usual_s = simulate(problem.graph, problem.cluster, before, plan.assumptions).step_s
    live = ", ".join(map(str, made.live))
    says = f"{schedule}: with {live} live, a simulated step takes {seconds(made.step_s)}"
    return replace(
        plan,
        assumptions=assumptions,
        stages=stages_with(problem.cluster, placement, cost, peaks, made.live),
        bottleneck_s=cost.bottleneck_s,
        step_s=cost.step_s,
        objective_value=cost.objective_value,
        simulated_s=made.step_s,
        solver=replace(
            plan.solver,
            says=(*plan.solver.says, f"{says}, one of 1f1b {seconds(usual_s)}"),
        ),
        alternatives=replace(plan.alternatives, simulated_1f1b_s=usual_s),
    )


def stages_with(
    cluster: Cluster,
    placement: Placement,
    cost: Cost,
    peaks: Sequence[float],
    live: Sequence[int],
) -> tuple[Stage, ...]:
    """The stages of a plan with their figures; `live` is 0 where the schedule says it."""
    limits = {device.name: device.memory_bytes for device in cluster.devices}
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
            limit_bytes=limits[device],
            live=live[k],
            flops=cost.flops[k],
        )
        for k, (device, ids) in enumerate(placement)
    )
