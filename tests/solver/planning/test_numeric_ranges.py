"""Nanoseconds beside hours and bytes beside terabytes: nothing is called optimal that is not."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyfx.solver import Assumptions, Cluster, Graph, solve, validate
from skyfx.solver.errors import InfeasibleError
from tests.support.independent_validator import referee_faults
from tests.support.planning_instances import all_plans, assumptions, clusters, graphs
from tests.support.tiers import cases

SCALE = st.integers(-9, 3).map(lambda exponent: 10.0**exponent)


@st.composite
def wide(draw: st.DrawFn) -> tuple[Graph, Cluster]:
    """A problem in which each node and each link has its own order of magnitude."""
    g, c = draw(graphs(5)), draw(clusters())
    nodes = []
    for node in g.nodes:
        slow, large = draw(SCALE), draw(SCALE) * 1e9
        nodes.append(
            replace(
                node,
                forward_s={kind: s * slow for kind, s in node.forward_s.items()},
                backward_s={kind: s * slow for kind, s in node.backward_s.items()},
                output_bytes=node.output_bytes * large,
                gradient_bytes=node.gradient_bytes * large,
                parameter_bytes=node.parameter_bytes * large,
                saved_bytes=node.saved_bytes * large,
            )
        )
    links = tuple(
        replace(
            link,
            bandwidth_bytes_per_s=link.bandwidth_bytes_per_s * draw(SCALE) * 1e9,
            latency_s=link.latency_s * draw(SCALE),
        )
        for link in c.links
    )
    devices = tuple(
        replace(d, memory_bytes=d.memory_bytes and d.memory_bytes * draw(SCALE) * 1e9)
        for d in c.devices
    )
    return replace(g, nodes=tuple(nodes)), replace(c, links=links, devices=devices)


@cases(300)
@given(wide(), assumptions())
def test_what_is_called_optimal_is(problem: tuple[Graph, Cluster], a: Assumptions) -> None:
    g, c = problem
    best = min((cost.objective_value for _, cost in all_plans(g, c, a)), default=None)
    if best is None:
        with pytest.raises(InfeasibleError):
            solve(g, c, a, enforce_peaks=False)
        return
    plan = solve(g, c, a, enforce_peaks=False).plan
    assert plan.lower_bound <= best * (1 + 1e-6)
    assert plan.objective_value >= best * (1 - 1e-6)
    if plan.solver.status == "optimal":
        assert plan.objective_value <= best * (1 + 2e-6)
    assert validate(g, c, plan) == ()
    assert referee_faults(g, c, plan) == []


@cases(100)
@given(graphs(), clusters(), assumptions(), st.integers(-9, 9), st.integers(-9, 9))
def test_other_units_change_nothing(
    g: Graph, c: Cluster, a: Assumptions, time: int, size: int
) -> None:
    """Seconds times `10^time` and bytes times `10^size` give the same optimum times `10^time`."""
    t, b = 10.0**time, 10.0**size
    nodes = tuple(
        replace(
            node,
            forward_s={kind: s * t for kind, s in node.forward_s.items()},
            backward_s={kind: s * t for kind, s in node.backward_s.items()},
            output_bytes=node.output_bytes * b,
            gradient_bytes=node.gradient_bytes * b,
            parameter_bytes=node.parameter_bytes * b,
            trainable_bytes=None if node.trainable_bytes is None else node.trainable_bytes * b,
            saved_bytes=node.saved_bytes * b,
        )
        for node in g.nodes
    )
    links = tuple(
        replace(
            link,
            bandwidth_bytes_per_s=link.bandwidth_bytes_per_s * b / t,
            latency_s=link.latency_s * t,
        )
        for link in c.links
    )
    default = c.default_link and replace(
        c.default_link,
        bandwidth_bytes_per_s=c.default_link.bandwidth_bytes_per_s * b / t,
        latency_s=c.default_link.latency_s * t,
    )
    room = b * (1 + 1e-12)  # what fits to the last byte still does where bytes are rounded
    devices = tuple(
        replace(d, memory_bytes=d.memory_bytes and d.memory_bytes * room) for d in c.devices
    )
    scaled = Cluster(devices=devices, links=links, default_link=default)
    try:
        value = solve(g, c, a, enforce_peaks=False).plan.objective_value
    except InfeasibleError:
        return
    plan = solve(replace(g, nodes=nodes), scaled, a, enforce_peaks=False).plan
    assert plan.objective_value == pytest.approx(value * t, rel=1e-6)
