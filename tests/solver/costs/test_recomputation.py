"""A graph with recomputed segments: its seconds, what it keeps, its peak, and what is refused."""

from collections.abc import Sequence

from skyfx.solver import Assumptions, Graph, evaluate
from skyfx.solver.costs.peak_memory import peak_bytes
from skyfx.solver.costs.recomputation import (
    can_recompute,
    segment_faults,
    with_recomputation,
    without_kept,
)
from tests.support.planning_instances import cpus, graph, node

VALUE = {"output_bytes": 10.0, "gradient_bytes": 10.0, "backward_s": {"cpu": 2.0}}
AGAIN = {**VALUE, "repeatable": True}
ALONE = Assumptions(schedule="gpipe", microbatches=4, optimizer_state_ratio=0.0)


def small() -> Graph:
    """`b` keeps what it reads and 5 bytes more, `c` what `b` makes, `d` what it makes itself."""
    return graph(
        [
            node("a", **VALUE),
            node("b", ("a",), kept={"a": 10.0, "": 5.0}, saved_bytes=15.0, **AGAIN),
            node("c", ("b",), kept={"b": 10.0}, saved_bytes=10.0, **AGAIN),
            node("d", ("c",), kept={"d": 10.0}, saved_bytes=10.0, **AGAIN),
        ]
    )


def kept(g: Graph) -> dict[str, float]:
    return {n.id: n.saved_bytes for n in g.nodes}


def one_stage(g: Graph) -> tuple[float, float, float]:
    """Seconds, what lasts, and the peak, of all on one device with four micro-batches live."""
    placement = [("d0", [n.id for n in g.nodes])]
    cost = evaluate(g, cpus(1.0), placement, ALONE)
    (peak,) = peak_bytes(g, cpus(1.0), placement, ALONE)
    return cost.compute_s[0], cost.memory_bytes[0], peak


def test_a_segment_keeps_what_enters_it_and_runs_twice() -> None:
    again = with_recomputation(small(), [["b", "c"]])
    assert kept(again) == {"a": 0.0, "b": 10.0, "c": 0.0, "d": 10.0}
    usual, found = one_stage(small()), one_stage(again)
    assert found[0] == usual[0] + 2.0
    assert found[1] == usual[1] - 4 * 15
    # In the segment's backward two gradients are there as at the peak before, the 15 bytes that it
    # keeps have come, and the 10 that `d` kept are gone.
    assert found[2] == usual[2] - 4 * 15 + 15 - 10


def test_what_enters_without_being_kept_elsewhere_is_kept_then() -> None:
    again = with_recomputation(small(), [["c"]])
    assert kept(again) == {"a": 0.0, "b": 15.0, "c": 10.0, "d": 10.0}
    again = with_recomputation(small(), [["d"]])
    assert kept(again) == {"a": 0.0, "b": 15.0, "c": 10.0, "d": 10.0}  # `c`'s value, not its own


def test_a_parameter_that_enters_costs_nothing_and_a_view_is_what_it_shares() -> None:
    g = graph(
        [
            node("w", storage="", repeatable=True, **VALUE),
            node("x", **VALUE),
            node("view", ("x",), storage="x", **AGAIN),
            node("y", ("view", "w"), kept={"x": 10.0, "": 5.0}, saved_bytes=15.0, **AGAIN),
        ]
    )
    assert kept(with_recomputation(g, [["y"]])) == {"w": 0.0, "x": 0.0, "view": 0.0, "y": 10.0}


def test_the_largest_segment_counts_in_its_own_backward() -> None:
    """With one micro-batch live it brings nothing."""
    once = Assumptions(microbatches=1, optimizer_state_ratio=0.0)
    names = ["a", "b", "c", "d"]

    def peak(segments: Sequence[Sequence[str]]) -> float:
        again = with_recomputation(small(), segments)
        return peak_bytes(again, cpus(1.0), [("d0", names)], once)[0]

    assert peak([["b", "c", "d"]]) == peak([])
    assert peak([["b", "c"]]) < peak([])


def test_no_choice_keeps_less_than_the_graph_of_the_bound() -> None:
    least = sum(n.saved_bytes for n in without_kept(small()).nodes)
    assert least == 0.0
    for segments in ([], [["b"]], [["b", "c"], ["d"]], [["b", "c", "d"]]):
        assert sum(kept(with_recomputation(small(), segments)).values()) >= least


def test_segments_that_cannot_be_recomputed_are_told() -> None:
    g, stage = small(), ["a", "b", "c", "d"]

    def told(*segments: list[str]) -> str:
        return "; ".join(segment_faults(g, stage, segments))

    assert told(["b", "c"], ["d"]) == ""
    assert "'a' cannot be recomputed" in told(["a", "b"])
    assert "not of neighbours in order" in told(["b", "d"])
    assert "not of neighbours in order" in told(["c", "b"])
    assert "'c' is in two segments" in told(["b", "c"], ["c", "d"])
    assert "has no nodes" in told([])
    assert "in another stage" in "; ".join(segment_faults(g, ["a", "b"], [["c"]]))


def test_a_graph_that_does_not_say_what_is_kept_cannot_recompute() -> None:
    assert can_recompute(small())
    assert not can_recompute(graph([node("a", saved_bytes=10.0, **AGAIN)]))
    assert not can_recompute(graph([node("a", kept={"": 1.0}, saved_bytes=1.0, **VALUE)]))
