"""Units: what no valid plan can separate, in a topological order."""

from dataclasses import replace

import networkx as nx
from hypothesis import given
from hypothesis import strategies as st

from skyfx.solver import Assumptions, Graph
from skyfx.solver.problem.contraction import components, contract
from tests.support.planning_instances import all_plans, cpus, graph, graphs, node
from tests.support.tiers import cases


def ids(g: Graph) -> list[list[str]]:
    return [[g.nodes[j].id for j in unit] for unit in contract(g)]


def test_nodes_without_labels_stay_alone() -> None:
    assert ids(graph([node("a"), node("b", ("a",))])) == [["a"], ["b"]]


def test_a_path_between_two_of_one_label_joins_them() -> None:
    #  a* --> b --> c*        b is on the way from a to c, d is not
    #   \--> d
    g = graph(
        [
            node("a", colocate="*"),
            node("b", ("a",)),
            node("c", ("b",), colocate="*"),
            node("d", ("a",)),
        ]
    )
    assert ids(g) == [["a", "b", "c"], ["d"]]


def test_labels_that_cross_join_each_other() -> None:
    #  a* --> b+ --> c* --> d+
    g = graph(
        [
            node("a", colocate="*"),
            node("b", ("a",), colocate="+"),
            node("c", ("b",), colocate="*"),
            node("d", ("c",), colocate="+"),
        ]
    )
    assert ids(g) == [["a", "b", "c", "d"]]


def test_the_order_is_the_graphs_own_where_nothing_is_merged() -> None:
    #  a --> b0 --> b1 --> z
    #   \--> c0 --> c1 --/
    nodes = [
        node("a"),
        *(node(f"{x}0", ("a",)) for x in "bc"),
        *(node(f"{x}1", (f"{x}0",)) for x in "bc"),
        node("z", ("b1", "c1")),
    ]
    assert ids(graph(nodes)) == [["a"], ["b0"], ["c0"], ["b1"], ["c1"], ["z"]]


@cases(300)
@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=40))
def test_components_are_those_of_networkx_in_a_topological_order(
    edges: list[tuple[int, int]],
) -> None:
    successors = [[b for a, b in edges if a == v] for v in range(12)]
    found = components(successors)
    oracle = nx.DiGraph(edges)
    oracle.add_nodes_from(range(12))
    assert {frozenset(c) for c in found} == {
        frozenset(c) for c in nx.strongly_connected_components(oracle)
    }
    place = {v: i for i, component in enumerate(found) for v in component}
    assert all(place[a] <= place[b] for a, b in edges)


def test_a_long_chain_needs_no_recursion() -> None:
    chain = [[i + 1] for i in range(20_000)] + [[]]
    assert components(chain) == [[i] for i in range(20_001)]


@cases(100)
@given(graphs())
def test_units_are_what_no_valid_plan_separates(g: Graph) -> None:
    free = replace(
        g, nodes=tuple(replace(n, forward_s={}, backward_s={}, parameter_bytes=0) for n in g.nodes)
    )
    together = {(a.id, b.id) for a in g.nodes for b in g.nodes}
    for placement, _ in all_plans(free, cpus(1.0, 1.0), Assumptions()):
        for _, members in placement:
            outside = {n.id for n in g.nodes} - set(members)
            together -= {(a, b) for a in members for b in outside}
    assert {(a, b) for unit in ids(g) for a in unit for b in unit} == together
