"""Pins are hard: what they name is where they say, and the plan is the best that keeps them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyfx.solver import Assumptions, Cluster, Graph, solve, validate
from skyfx.solver.core.pins import Pin
from skyfx.solver.errors import InfeasibleError
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


@st.composite
def pinned(draw: st.DrawFn) -> tuple[Graph, Cluster, Assumptions, list[tuple[str, str, bool]]]:
    """A problem with up to three pins, each as (node, device, whether it has to be there)."""
    g, c, a = draw(graphs(5)), draw(clusters()), draw(assumptions())
    one = st.tuples(
        st.sampled_from([n.id for n in g.nodes]),
        st.sampled_from([d.name for d in c.devices]),
        st.booleans(),
    )
    pins = draw(st.lists(one, min_size=1, max_size=3))
    texts = tuple(f"{v}{'' if there else '!'}={d}" for v, d, there in pins)
    return g, c, replace(a, pins=texts), pins


@cases(300)
@given(pinned())
def test_the_plan_is_the_best_of_all_that_keep_the_pins(
    case: tuple[Graph, Cluster, Assumptions, list[tuple[str, str, bool]]],
) -> None:
    g, c, a, pins = case
    values = []
    for placement, cost in all_plans(g, c, a):
        device_of = {v: d for d, ids in placement for v in ids}
        if all((device_of[v] == d) == there for v, d, there in pins):
            values.append(cost.objective_value)
    if not values:
        with pytest.raises(InfeasibleError):
            solve(g, c, a, enforce_peaks=False)
        return
    plan = solve(g, c, a, enforce_peaks=False).plan
    assert plan.objective_value == pytest.approx(min(values), rel=1e-6, abs=1e-9)
    assert plan.lower_bound <= min(values) * (1 + 1e-6) + 1e-9
    assert validate(g, c, plan) == ()
    assert referee_faults(g, c, plan) == []


def in_modules() -> Graph:
    names = [None, "encoder", "encoder.layers.0", "encoder.layers.11", "head"]
    return graph(
        [
            node(f"n{i}", (f"n{i - 1}",) if i else (), module=module)
            for i, module in enumerate(names)
        ]
    )


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("n0", [0]),
        ("encoder", [1, 2, 3]),
        ("encoder.*", [2, 3]),
        ("encoder.layers.?", [2]),
        ("*", [0, 1, 2, 3, 4]),
        ("enc", []),
    ],
)
def test_a_pattern_matches_nodes_and_modules(pattern: str, matched: list[int]) -> None:
    pin = Pin.of(f"{pattern}=d0")
    assert [i for i, n in enumerate(in_modules().nodes) if pin.matches(n)] == matched


@pytest.mark.parametrize("text", ["", "a", "=d0", "a=", "!=d0"])
def test_what_is_no_pin_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected PATTERN=DEVICE or PATTERN!=DEVICE"):
        Assumptions(pins=(text,)).check()


def test_a_name_may_hold_an_equals_sign() -> None:
    assert Pin.of("a=b=d0") == Pin("a=b", "d0", there=True)
    assert Pin.of("a!=d0") == Pin("a", "d0", there=False)


def test_an_unknown_device_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"pin 'head=gpu': no device 'gpu' \(d0, d1\)"):
        solve(in_modules(), cpus(1.0, 1.0), Assumptions(pins=("head=gpu",)))


def test_a_pattern_without_a_match_is_refused_with_what_comes_near() -> None:
    expected = "'encoder.layer' matches no node and no module; did you mean 'encoder.layers'"
    with pytest.raises(ValueError, match=expected):
        solve(in_modules(), cpus(1.0, 1.0), Assumptions(pins=("encoder.layer=d0",)))


def test_pins_that_leave_no_device_are_explained() -> None:
    a = Assumptions(pins=("head=d0", "n*!=d0"))
    with pytest.raises(InfeasibleError, match="no device may run 'n0'") as caught:
        solve(in_modules(), cpus(1.0), a)
    assert "pinned by 'n*!=d0'" in str(caught.value)
    assert "Leave out a pin" in str(caught.value)


def test_a_plan_against_its_pins_is_at_fault() -> None:
    g, c = in_modules(), cpus(1.0, 1.0)
    plan = solve(g, c, Assumptions(pins=("head=d1", "encoder!=d1"))).plan
    assert validate(g, c, plan) == ()
    wrong = replace(plan, assumptions=replace(plan.assumptions, pins=("head=d0",)))
    assert validate(g, c, wrong) == ("stage 1: node 'n4' is on 'd1' against pin 'head=d0'",)
