"""The plans one would make by hand."""

from hypothesis import given
from hypothesis import strategies as st

from skyfx.solver import Assumptions, Cluster, Device, Graph
from skyfx.solver.methods.heuristics.baselines import best_single_device, dynamic, even
from skyfx.solver.problem.problem import Problem
from tests.support.planning_instances import (
    assumptions,
    cluster,
    clusters,
    cpus,
    graph,
    graphs,
    node,
)


def chain(*seconds: float, **fields: float) -> Graph:
    return graph(
        [
            node(f"n{i}", (f"n{i - 1}",) if i else (), forward_s={"cpu": s}, **fields)
            for i, s in enumerate(seconds)
        ]
    )


def sizes(stages: list[tuple[int, range]] | None) -> list[tuple[int, int]]:
    return [(d, len(part)) for d, part in stages]


def problem(g: Graph, c: Cluster, **fields: object) -> Problem:
    return Problem(g, c, Assumptions(**fields))


def test_even_gives_each_device_as_many_nodes() -> None:
    assert sizes(even(problem(chain(*[1.0] * 6), cpus(1.0, 9.0, 1.0)))) == [(0, 2), (1, 2), (2, 2)]


def test_even_leaves_out_devices_where_there_are_fewer_nodes() -> None:
    stages = even(problem(chain(1.0, 1.0), cpus(1.0, 1.0, 1.0, 1.0)))
    assert sum(size for _, size in sizes(stages)) == 2


def test_even_counts_nodes_and_not_units() -> None:
    # n0 and n1 are one unit:  (n0 n1) | n2 n3
    nodes = list(chain(1.0, 1.0, 1.0, 1.0).nodes)
    glued = [node(n.id, n.inputs, colocate="x" if i < 2 else None) for i, n in enumerate(nodes)]
    assert sizes(even(problem(graph(glued), cpus(1.0, 1.0)))) == [(0, 1), (1, 2)]


def test_dynamic_moves_boundaries_in_both_directions() -> None:
    g = chain(*[1.0] * 12)
    assert sizes(dynamic(problem(g, cpus(1.0, 3.0)))) == [(0, 9), (1, 3)]
    assert sizes(dynamic(problem(g, cpus(3.0, 1.0)))) == [(0, 3), (1, 9)]


def test_dynamic_repairs_memory_where_even_does_not_fit() -> None:
    small = Device(name="small", type="cpu", memory_bytes=10.0)
    large = Device(name="large", type="cpu", memory_bytes=100.0)
    case = problem(
        chain(*[1.0] * 8, parameter_bytes=1.0), cluster(small, large), optimizer_state_ratio=2.0
    )
    assert even(case) is None  # four nodes of 1 byte, four copies each: 16 of 10 bytes
    assert sizes(dynamic(case)) == [(0, 2), (1, 6)]


def test_the_best_single_device_is_the_fastest_that_fits() -> None:
    quick = Device(name="quick", type="cpu", memory_bytes=1.0)
    slow = Device(name="slow", type="cpu", slowdown=2.0)
    slower = Device(name="slower", type="cpu", slowdown=3.0)
    case = problem(chain(1.0, 1.0, parameter_bytes=1.0), cluster(quick, slower, slow))
    assert sizes(best_single_device(case)) == [(2, 2)]


def test_no_baseline_where_nothing_fits() -> None:
    case = problem(chain(1.0, 1.0, parameter_bytes=5.0), cpus(1.0, 1.0, memory=1.0))
    assert even(case) is None
    assert dynamic(case) is None
    assert best_single_device(case) is None


@given(graphs(), clusters(max_devices=4), assumptions(), st.sampled_from([even, dynamic]))
def test_a_baseline_holds_every_unit_once_in_the_order_of_devices(
    g: Graph, c: Cluster, a: Assumptions, baseline: object
) -> None:
    case = Problem(g, c, a)
    stages = baseline(case)
    if stages is not None:
        assert [i for _, part in stages for i in part] == list(range(case.num_units))
        assert [d for d, _ in stages] == sorted({d for d, _ in stages})
