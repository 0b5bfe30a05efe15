"""Following a schedule action by action."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from skyfx.solver import Assumptions, Cluster, Device, Graph, Link, Node, evaluate
from skyfx.solver.core.schedule import Kind
from skyfx.solver.costs.simulator import simulate

FORWARD, BACKWARD, SIZE = 1.0, 2.0, 100.0


def chain(*seconds: float) -> Graph:
    """One node a stage; a backward takes twice as long as its forward."""
    names = [f"n{k}" for k in range(len(seconds))]
    nodes = [
        Node(
            id=name,
            op="op",
            module=None,
            inputs=tuple(names[k - 1 : k]) if k else (),
            forward_s={"cpu": seconds[k]},
            backward_s={"cpu": 2 * seconds[k]},
            output_bytes=SIZE,
            gradient_bytes=SIZE,
            parameter_bytes=0,
            saved_bytes=0,
            colocate=None,
        )
        for k, name in enumerate(names)
    ]
    return Graph(name="chain", microbatch_size=1, nodes=tuple(nodes), outputs=(names[-1],))


def cluster(num: int, bandwidth: float = 1e12) -> Cluster:
    names = [f"d{k}" for k in range(num)]
    links = [
        Link(source=a, target=b, bandwidth_bytes_per_s=bandwidth, latency_s=0.0)
        for a in names
        for b in names
        if a != b
    ]
    return Cluster(devices=tuple(Device(name=n, type="cpu") for n in names), links=tuple(links))


def picture(num_stages: int, schedule: str, m: int) -> list[str]:
    """What each stage does in each second; forwards take one, backwards two."""
    given_ = Assumptions(microbatches=m, schedule=schedule, overlap="full")
    placement = [(f"d{k}", [f"n{k}"]) for k in range(num_stages)]
    found = simulate(chain(*[FORWARD] * num_stages), cluster(num_stages), placement, given_)
    rows = [["."] * round(found.step_s) for _ in range(num_stages)]
    for done in found.done:
        letter = "abc"[done.action.microbatch]
        letter = letter if done.action.kind is Kind.FORWARD else letter.upper()
        for second in range(round(done.began_s), round(done.ended_s)):
            rows[done.action.stage][second] = letter
    return ["".join(row) for row in rows]


def test_1f1b_looks_like_its_picture() -> None:
    assert picture(2, "1f1b", 3) == [
        "ab..AAcBB.CC",
        ".aAAbBBcCC..",
    ]


def test_gpipe_looks_like_its_picture() -> None:
    assert picture(2, "gpipe", 3) == [
        "abc...AABBCC",
        ".abcAABBCC..",
    ]


def test_a_transfer_takes_its_time_and_overlaps_what_is_computed() -> None:
    placement = [("d0", ["n0"]), ("d1", ["n1"])]
    graph, slow = chain(1.0, 1.0), cluster(2, SIZE / 5)
    alone = Assumptions(microbatches=1, overlap="full")
    assert simulate(graph, slow, placement, alone).step_s == 1 + 5 + 3 + 5 + 2
    # With many micro-batches each direction of the link is busy all the time.
    many = simulate(graph, slow, placement, replace(alone, microbatches=50, schedule="gpipe"))
    assert 50 * 5 < many.step_s < 50 * 5 * 2 + 20


@given(
    st.lists(st.floats(0.1, 10.0), min_size=1, max_size=5),
    st.sampled_from(["1f1b", "gpipe"]),
    st.integers(1, 6),
    st.sampled_from(["none", "full"]),
    st.floats(0.1, 1e4),
)
def test_no_step_is_shorter_than_its_busiest_device(
    seconds: list[float], schedule: str, m: int, overlap: str, bandwidth: float
) -> None:
    graph, devices = chain(*seconds), cluster(len(seconds), bandwidth)
    placement = [(f"d{k}", [f"n{k}"]) for k in range(len(seconds))]
    assumptions = Assumptions(microbatches=m, schedule=schedule, overlap=overlap)  # type: ignore[arg-type]
    found = simulate(graph, devices, placement, assumptions)
    cost = evaluate(graph, devices, placement, assumptions)
    assert found.step_s >= m * max(cost.compute_s) * (1 - 1e-9)
    assert found.step_s >= cost.latency_s * (1 - 1e-9)
    assert len(found.done) == 2 * m * len(seconds)
    if m == 1:
        assert abs(found.step_s / cost.latency_s - 1) < 1e-9 or overlap == "none"
