"""Steps over ideals, against trying every plan."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from skyfx.solver import Assumptions, Cluster, Graph
from skyfx.solver.costs.cost_model import evaluate
from skyfx.solver.methods.bounds.simple_bounds import simple_bound
from skyfx.solver.methods.exact.label_lattice import LabelLattice
from skyfx.solver.methods.exact.step_label_dp import FINE, StepLabelTables, step_label_dp
from skyfx.solver.methods.features import ProblemFeatures
from skyfx.solver.methods.heuristics import baselines
from skyfx.solver.methods.ideals.device_states import States
from skyfx.solver.methods.ideals.relaxed_units import relax_until
from skyfx.solver.methods.limits import Limits
from skyfx.solver.methods.method import Candidate, SearchState
from skyfx.solver.methods.portfolio import Portfolio
from skyfx.solver.problem.problem import OneInFlightProblem, Problem
from tests.support.planning_instances import all_plans, assumptions, clusters, graphs
from tests.support.tiers import cases

CLOSE = 1e-6


def asked(a: Assumptions) -> Assumptions:
    return replace(a, communication="relay", objective="step")


def best_of_all(g: Graph, c: Cluster, a: Assumptions) -> float | None:
    return min((cost.objective_value for _, cost in all_plans(g, c, a)), default=None)


def first(problem: Problem) -> Candidate | None:
    """Any plan that fits."""
    made = (baselines.even(problem), baselines.dynamic(problem))
    found = [Candidate.of(problem, x) for x in (*made, baselines.best_single_device(problem))]
    return next((x for x in found if x is not None), None)


def run(problem: Problem, known: Candidate) -> tuple[float, float]:
    """The best value and the best bound of the method alone, from a plan."""
    simple = simple_bound(problem)
    best, bound = known.value, simple.value
    for answer in step_label_dp(SearchState(ProblemFeatures(problem), known, simple, Limits())):
        found = Candidate.of(problem, answer.stages)
        if found is not None:
            best = min(best, found.value)
        if answer.bound is not None:
            bound = max(bound, answer.bound.value)
    return best, bound


@cases(300)
@given(graphs(), clusters(), assumptions())
def test_no_plan_beats_the_bound(g: Graph, c: Cluster, a: Assumptions) -> None:
    problem = Problem(g, c, asked(a))
    known, best = first(problem), best_of_all(g, c, asked(a))
    if known is not None and best is not None:
        assert run(problem, known)[1] <= best * (1 + CLOSE)


@cases(300)
@given(graphs(), clusters(), assumptions())
def test_it_finds_and_proves_the_best(g: Graph, c: Cluster, a: Assumptions) -> None:
    a = replace(asked(a), mode="training")  # peaks in inference are no sums of units
    problem = Problem(g, c, a)
    known, best = first(problem), best_of_all(g, c, a)
    if known is not None and best is not None:
        found, bound = run(problem, known)
        assert found <= best * (1 + FINE) + CLOSE
        assert bound >= best * (1 - 2 * FINE) - CLOSE


@cases(300)
@given(graphs(), clusters(), assumptions(), st.integers(2, 6), st.floats(1.0, 3.0))
def test_the_latency_within_a_bottleneck_is_below_that_of_every_plan(
    g: Graph, c: Cluster, a: Assumptions, at_most: int, times: float
) -> None:
    a = asked(a)
    costs = [cost for _, cost in all_plans(g, c, a)]
    problem = Problem(g, c, a)
    relaxed = relax_until(problem, at_most)
    if relaxed is None or not costs:
        return
    tables = StepLabelTables(
        LabelLattice(problem, relaxed[0], States(problem), tuple(relaxed[1]), pool_size=10_000)
    )
    bottleneck = times * min(cost.bottleneck_s for cost in costs)
    least = min(x.latency_s for x in costs if x.bottleneck_s <= bottleneck * (1 + CLOSE))
    found = tables.within(bottleneck * (1 + CLOSE), least * (1 + CLOSE) + CLOSE)
    assert found is not None
    assert found[0] <= least * (1 + CLOSE) + 1e-9


@cases(200)
@given(graphs(), clusters(), assumptions())
def test_with_one_live_the_bound_holds_whatever_is_live(
    g: Graph, c: Cluster, a: Assumptions
) -> None:
    a = replace(asked(a), mode="training", schedule="1f1b")
    free = replace(c, devices=tuple(replace(d, memory_bytes=None) for d in c.devices))
    limits = {d.name: d.memory_bytes for d in c.devices}
    steps_s = []
    for placement, cost in all_plans(g, free, a):
        lasting = evaluate(g, c, placement, a, [1] * len(placement)).memory_bytes
        each = zip(placement, lasting, strict=True)
        if all((limit := limits[name]) is None or need <= limit for (name, _), need in each):
            steps_s.append(cost.step_s)
    relaxed = OneInFlightProblem(g, c, a)
    known = first(relaxed)
    if known is not None:
        bound = Portfolio(relaxed, Limits(time_limit_s=float("inf"), gap=0.01), known).run().bound
        assert bound.value <= min(steps_s) * (1 + CLOSE)
