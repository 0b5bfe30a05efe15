"""The peak of a stage: what lasts, and what comes and goes while backward runs."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyfx.solver import Assumptions, Cluster, Graph, evaluate, solve
from skyfx.solver.analysis.validation import validate
from skyfx.solver.costs.peak_memory import peak_bytes
from skyfx.solver.errors import InfeasibleError, NoPlanError
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

ALONE = Assumptions(microbatches=1, optimizer_state_ratio=2.0)
VALUE = {"output_bytes": 100.0, "gradient_bytes": 100.0, "backward_s": {"cpu": 1.0}}


def peak(*nodes: object) -> float:
    g = graph(list(nodes))  # type: ignore[arg-type]
    (found,) = peak_bytes(g, cpus(1.0), [("d0", [n.id for n in g.nodes])], ALONE)
    return found


def test_a_chain_has_two_gradients_at_a_time() -> None:
    found = peak(
        node("a", saved_bytes=50.0, **VALUE),
        node("b", ("a",), saved_bytes=50.0, parameter_bytes=10.0, **VALUE),
    )
    # Parameters, gradients, states; both saved; of b the gradients of output, input, parameter;
    # of the loss what it keeps and two gradients.
    assert found == 4 * 10 + 100 + (100 + 100 + 10) + 3 * 100


def test_a_sum_hands_its_gradient_on() -> None:
    rest = {"op": "aten.add.Tensor", **VALUE}
    parts = [node("a", **VALUE), node("b", ("a",), **VALUE)]
    assert peak(*parts, node("c", ("a", "b"), **rest)) == 100 + 300
    assert peak(*parts, node("c", ("a", "b"), **VALUE)) == 300 + 300


def test_what_an_operator_takes_for_itself_is_there_at_its_own_backward_alone() -> None:
    without = (node("a", **VALUE), node("b", ("a",), **VALUE))
    own = (node("a", **VALUE), node("b", ("a",), workspace_bytes=70.0, **VALUE))
    first = (node("a", workspace_bytes=70.0, **VALUE), node("b", ("a",), **VALUE))
    assert peak(*own) == peak(*without) + 70
    assert peak(*first) == peak(*without)


def test_what_passes_through_is_kept_with_the_rest_of_its_message() -> None:
    """Received twice ahead, kept for the one live micro-batch, and once in what is sent."""

    def middle(*read_last: str) -> float:
        g = graph(
            [
                node("a", **VALUE),
                node("x", output_bytes=100.0),
                node("b", ("a",), **VALUE),
                node("c", read_last, **VALUE),
            ]
        )
        placement = [("d0", ["a", "x"]), ("d1", ["b"]), ("d2", ["c"])]
        return peak_bytes(g, cpus(1.0, 1.0, 1.0), placement, ALONE)[1]

    assert middle("b", "x") == middle("b") + (2 + 1 + 1) * 100


def test_a_plan_is_made_again_where_a_peak_does_not_fit() -> None:
    """Of two equal halves, the second with the loss; both fit by what lasts alone."""
    nodes = [node("a", saved_bytes=50.0, **VALUE)]
    nodes += [node(n, (m,), saved_bytes=50.0, **VALUE) for m, n in ("ab", "bc", "cd")]
    g = graph(nodes)
    assumptions = replace(ALONE, overlap="full")
    found = solve(g, cpus(1.0, 1.0), assumptions).plan
    peaks = peak_bytes(g, cpus(1.0, 1.0), [(s.device, s.nodes) for s in found.stages], assumptions)
    assert [len(s.nodes) for s in found.stages] == [2, 2]
    limited = cpus(1.0, 1.0, memory=max(peaks) - 40.0)
    assert max(s.memory_bytes for s in found.stages) < max(peaks) - 40.0
    within = solve(g, limited, assumptions).plan
    after = peak_bytes(g, limited, [(s.device, s.nodes) for s in within.stages], assumptions)
    assert max(after) <= max(peaks) - 40.0
    with pytest.raises(NoPlanError, match="at its peak"):
        solve(g, cpus(1.0, 1.0, memory=310.0), assumptions)


@cases(40)
@given(graphs(), clusters(), assumptions(), st.floats(0.3, 1.0))
def test_a_plan_within_limits_fits_and_its_bound_holds(
    g: Graph, c: Cluster, a: Assumptions, part: float
) -> None:
    a = replace(a, communication="relay")
    fits: list[float] = []
    try:
        free = solve(g, c, a, enforce_peaks=False).plan
    except InfeasibleError:
        return
    limit = part * 1.1 * max(stage.peak_bytes for stage in free.stages)
    limited = replace(c, devices=tuple(replace(d, memory_bytes=limit) for d in c.devices))
    for placement, cost in all_plans(g, limited, a):
        if 1.1 * max(peak_bytes(g, limited, placement, a)) <= limit:
            fits.append(cost.objective_value)
    try:
        found = solve(g, limited, a).plan
    except (InfeasibleError, NoPlanError):
        return  # by annealing none is found at times though there is one
    placement = [(stage.device, stage.nodes) for stage in found.stages]
    assert 1.1 * max(peak_bytes(g, limited, placement, a)) <= limit
    assert validate(g, limited, found) == ()
    assert found.lower_bound <= min(fits) * (1 + 1e-6)
    assert found.objective_value >= min(fits) * (1 - 1e-6)


@given(graphs(), clusters(), assumptions())
def test_the_peak_is_never_below_what_lasts(g: Graph, c: object, a: Assumptions) -> None:
    for placement, _ in list(all_plans(g, c, a))[:20]:  # type: ignore[arg-type]
        lasting = evaluate(g, c, placement, a).memory_bytes  # type: ignore[arg-type]
        found = peak_bytes(g, c, placement, a)  # type: ignore[arg-type]
        assert all(x >= y - 1e-6 for x, y in zip(found, lasting, strict=True))
