"""Schedules that are made for a plan: how many micro-batches are live, and two stages a device."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyfx.solver import Assumptions, Cluster, Graph, Plan, solve, validate
from skyfx.solver.core.cluster import Wire
from skyfx.solver.core.plan import Schedule
from skyfx.solver.core.schedule import Kind, in_flight_counts, orders
from skyfx.solver.core.timeline import Timeline
from skyfx.solver.costs.action_times import ActionTimes, Message
from skyfx.solver.costs.cost_model import by_device, evaluate
from skyfx.solver.costs.peak_memory import peak_bytes
from skyfx.solver.costs.simulator import run_schedule, simulate
from skyfx.solver.errors import InfeasibleError, NoPlanError
from skyfx.solver.refinement.in_flight import generate
from tests.support.independent_validator import referee_faults
from tests.support.planning_instances import (
    all_plans,
    assumptions,
    clusters,
    cpus,
    graph,
    graphs,
    node,
)
from tests.support.tiers import cases

SCHEDULES: tuple[Schedule, ...] = ("generated", "tapered", "interleaved")


def pace(*seconds: float, latency_s: float = 0.0, devices: int | None = None) -> ActionTimes:
    """Stages of so many seconds, a backward twice its forward; a message takes its latency."""
    num = len(seconds)
    names = tuple(f"d{k % (devices or num)}" for k in range(num))
    wire = Wire(bandwidth_bytes_per_s=1e12, latency_s=latency_s)
    pairs = list(itertools.pairwise(names))
    ports = dict.fromkeys(names, 1e12)
    return ActionTimes(
        devices=names,
        seconds=tuple({Kind.FORWARD: s / 3, Kind.BACKWARD: 2 * s / 3} for s in seconds),
        forward=tuple(Message(a, b, wire, 1.0, True) for a, b in pairs),
        backward=tuple(Message(b, a, wire, 1.0, True) for a, b in pairs),
        sending=ports,
        receiving=ports,
    )


def anything(live: tuple[int, ...], timeline: Timeline) -> bool:
    return True


def test_more_are_live_where_the_way_to_the_end_and_back_is_long() -> None:
    """A micro-batch comes back to the first stage after 16 s; each takes 3 s there."""
    long = pace(3.0, 3.0, 3.0, latency_s=5.0)
    found = generate(long, 12, anything)
    assert found.first_step_s == pytest.approx(36 + 6 + 20 + 3 * (26 - 9), abs=20)
    assert found.step_s == pytest.approx(12 * 3 + 2 * 3 + 4 * 5)  # nothing but the way itself
    assert found.live[0] > 3


def test_nothing_is_changed_where_1f1b_is_as_good_as_can_be() -> None:
    found = generate(pace(3.0, 3.0, 3.0), 6, anything)
    assert found.live == (3, 2, 1)
    assert found.step_s == found.first_step_s == pytest.approx(6 * 3 + 2 * 3)


def test_no_more_are_live_than_there_is_room_for() -> None:
    long = pace(3.0, 3.0, 3.0, latency_s=5.0)
    roomy = generate(long, 12, anything)
    tight = generate(long, 12, lambda live, _: live[0] <= 4)
    none = generate(long, 12, lambda live, _: False)
    assert roomy.step_s < tight.step_s < none.step_s == none.first_step_s
    assert tight.live[0] == 4
    assert none.live == (3, 2, 1)


def test_two_stages_a_device_fill_the_pipeline_in_half_the_time() -> None:
    """Of 4 devices that take 3 s each, 3 wait for 3 s at the ends; or for 1.5 s."""
    one, two = pace(*[3.0] * 4), pace(*[1.5] * 8, devices=4)
    assert generate(one, 8, anything).step_s == pytest.approx(8 * 3 + 3 * 3)
    assert generate(two, 8, anything).step_s == pytest.approx(8 * 3 + 3 * 1.5)


@given(
    st.lists(st.floats(0.1, 10.0), min_size=1, max_size=6),
    st.integers(1, 10),
    st.sampled_from([0.0, 0.1, 3.0]),
    st.integers(1, 12),
)
def test_no_generated_step_is_longer_than_1f1bs(
    seconds: list[float], m: int, latency_s: float, at_most: int
) -> None:
    given_ = pace(*seconds, latency_s=latency_s)
    search_assumptions = in_flight_counts("1f1b", len(seconds), m)
    longest = run_schedule(given_, orders(search_assumptions, m, given_.devices)).step_s
    found = generate(given_, m, lambda live, _: sum(live) <= at_most)
    assert found.first_step_s == longest
    assert found.step_s <= longest
    assert found.live == search_assumptions or sum(found.live) <= at_most
    assert found.step_s == run_schedule(given_, orders(found.live, m, given_.devices)).step_s


@cases(60)
@given(graphs(), clusters(), assumptions(), st.sampled_from(SCHEDULES))
def test_a_plan_is_valid_fits_and_is_no_better_than_its_bound(
    g: Graph, c: Cluster, a: Assumptions, schedule: Schedule
) -> None:
    a = replace(a, schedule=schedule)
    try:
        plan = solve(g, c, a, enforce_peaks=False).plan
    except (InfeasibleError, NoPlanError):
        return
    assert validate(g, c, plan) == ()
    assert referee_faults(g, c, plan) == []
    if a.training and a.communication == "relay" and schedule != "interleaved":
        assert plan.simulated_s <= (plan.alternatives.simulated_1f1b_s or 0.0)
        unlimited = replace(c, devices=tuple(replace(d, memory_bytes=None) for d in c.devices))
        limits = [float("inf") if d.memory_bytes is None else d.memory_bytes for d in c.devices]
        limit_of = dict(zip([d.name for d in c.devices], limits, strict=True))
        for placement, cost in all_plans(g, unlimited, a):
            least = evaluate(g, c, placement, a, (1,) * len(placement)).memory_bytes
            names = [name for name, _ in placement]
            if all(limit_of[d] >= need for d, need in zip(names, least, strict=True)):
                assert cost.objective_value >= plan.lower_bound * (1 - 1e-6), placement


def uneven() -> tuple[Graph, Cluster]:
    """A chain of twelve on three devices that are not alike, with slow links."""
    nodes = [node("n0", op="input", forward_s={}, output_bytes=1.0)]
    nodes += [
        node(
            f"n{k}",
            (f"n{k - 1}",),
            forward_s={"cpu": 1.0},
            backward_s={"cpu": 2.0},
            output_bytes=10.0,
            gradient_bytes=10.0,
            saved_bytes=100.0,
            parameter_bytes=5.0,
        )
        for k in range(1, 13)
    ]
    return graph(nodes), replace(
        cpus(1.0, 2.0, 4.0), default_link=Wire(bandwidth_bytes_per_s=4.0, latency_s=0.5)
    )


LONG = Assumptions(microbatches=12, overlap="full", objective="step")


def peaks_by_device(g: Graph, c: Cluster, plan: Plan) -> dict[str, float]:
    placement = [(s.device, s.nodes) for s in plan.stages]
    peaks = peak_bytes(g, c, placement, plan.assumptions, plan.live)
    return by_device([name for name, _ in placement], peaks)


def test_a_generated_plan_has_the_stages_of_the_best_one_and_says_how_many_are_live() -> None:
    g, c = uneven()
    search_assumptions = solve(g, c, LONG).plan
    plan = solve(g, c, replace(LONG, schedule="generated")).plan
    assert [(s.device, s.nodes) for s in plan.stages] == [
        (s.device, s.nodes) for s in search_assumptions.stages
    ]
    assert plan.lower_bound == search_assumptions.lower_bound  # no memory binds
    placement = [(s.device, s.nodes) for s in plan.stages]
    before = simulate(g, c, placement, LONG).step_s
    assert plan.alternatives.simulated_1f1b_s == before
    assert plan.simulated_s == simulate(g, c, placement, LONG, plan.live).step_s < before
    cost = evaluate(g, c, placement, plan.assumptions, plan.live)
    assert tuple(s.memory_bytes for s in plan.stages) == cost.memory_bytes
    assert "in flight, a simulated step takes" in plan.solver.says[-1]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("room", [1.15, 1.6])
def test_peaks_stay_within_the_limits(schedule: Schedule, room: float) -> None:
    g, c = uneven()
    search_assumptions = solve(g, c, LONG).plan
    most = max(peaks_by_device(g, c, search_assumptions).values())
    limited = replace(c, devices=tuple(replace(d, memory_bytes=room * most) for d in c.devices))
    plan = solve(g, limited, replace(LONG, schedule=schedule)).plan
    assert validate(g, limited, plan) == ()
    assert 1.1 * max(peaks_by_device(g, limited, plan).values()) <= room * most * (1 + 1e-9)


@pytest.mark.slow
def test_where_memory_is_short_the_stages_change_with_the_schedule() -> None:
    """Under 1f1b only two devices have the memory; the first one keeps more live than it needs."""
    g, c = uneven()
    most = max(peaks_by_device(g, c, solve(g, c, LONG).plan).values())
    limited = replace(c, devices=tuple(replace(d, memory_bytes=0.7 * most) for d in c.devices))
    search_assumptions = solve(g, limited, LONG).plan
    plan = solve(g, limited, replace(LONG, schedule="generated")).plan
    assert (len(search_assumptions.stages), len(plan.stages)) == (2, 3)
    assert plan.alternatives.simulated_1f1b_s == 348.0
    assert plan.simulated_s < 0.9 * 348.0


def test_an_interleaved_plan_visits_its_devices_in_turn_and_tells_what_1f1b_takes() -> None:
    g, c = uneven()
    fast = replace(c, default_link=None)
    plan = solve(g, fast, replace(LONG, microbatches=4, schedule="interleaved")).plan
    search_assumptions = solve(g, fast, replace(LONG, microbatches=4)).plan
    names = [s.device for s in search_assumptions.stages]
    assert [s.device for s in plan.stages] == names * 2
    assert validate(g, fast, plan) == ()
    assert plan.simulated_s < (plan.alternatives.simulated_1f1b_s or 0.0)
    times = by_device([s.device for s in plan.stages], [s.time_s for s in plan.stages])
    assert plan.bottleneck_s == max(times.values())


def test_faults_of_live_counts_and_devices_are_found() -> None:
    g, c = uneven()
    plan = solve(g, c, replace(LONG, schedule="generated")).plan
    assert len(plan.stages) >= 2

    def faults(plan: Plan, *live: int) -> str:
        counts = zip(plan.stages, live, strict=False)
        stages = (*(replace(s, live=n) for s, n in counts), *plan.stages[len(live) :])
        return "\n".join(validate(g, c, replace(plan, stages=stages)))

    assert "stage 1: found 9 micro-batches in flight, expected 1 to 8" in faults(plan, 8, 9)
    assert "stage 0: found 0 micro-batches in flight, expected at least 1" in faults(plan, 0)
    assert "stage 0: found 13 micro-batches in flight, expected at most 12" in faults(plan, 13)
    assert "memory_bytes: the plan says" in faults(plan, 12)
    assert "simulated_s: the plan says" in "\n".join(
        validate(g, c, replace(plan, simulated_s=2 * plan.simulated_s))
    )
    search_assumptions = solve(g, c, LONG).plan
    twice = replace(search_assumptions.stages[1], device=search_assumptions.stages[0].device)
    beside = replace(
        search_assumptions,
        stages=(search_assumptions.stages[0], twice, *search_assumptions.stages[2:]),
        assumptions=replace(search_assumptions.assumptions, schedule="interleaved"),
    )
    assert "already holds its neighbour, stage 0" in "\n".join(validate(g, c, beside))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_that_nothing_fits_under_1f1b_is_no_proof_for_other_schedules(schedule: Schedule) -> None:
    """Two stages of 4 bytes, of which the first keeps two micro-batches live under 1f1b."""
    nodes = [node("a", saved_bytes=4.0), node("b", ("a",), saved_bytes=4.0)]
    given_ = Assumptions(schedule=schedule)
    with pytest.raises(NoPlanError, match=f"schedule {schedule}, which begins from one for 1f1b"):
        solve(graph(nodes), cpus(1.0, 1.0, memory=5.0), given_)
    with pytest.raises(InfeasibleError, match="largest device has 3 B"):
        solve(graph(nodes), cpus(1.0, 1.0, memory=3.0), given_)
