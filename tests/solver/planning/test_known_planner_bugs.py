"""What is known to go wrong in other planners, a test for each fault, named after it.

- PipeEdge looks a host's devices up by the place of their type in a list.
- PipeDream leaves the transfer of activations out unless a flag asks for it.
- Alpa's dynamic program over stages has no communication between them.
- The accelerator partitioner of `torch.fx` splits nothing that fits one device.
"""

import itertools
from collections.abc import Sequence
from typing import get_args

import pytest

from skyfx.solver import Assumptions, Cluster, Device, Graph, Plan, solve
from skyfx.solver.core.cluster import Wire
from skyfx.solver.core.plan import Objective, Overlap, Strategy
from tests.support.planning_instances import cluster, cpus, graph, node

WIRE = Wire(bandwidth_bytes_per_s=10.0, latency_s=0.25)


def chain(seconds: Sequence[float], sizes: Sequence[float]) -> Graph:
    return graph(
        [
            node(
                f"n{i}",
                (f"n{i - 1}",) if i else (),
                forward_s={"cpu": s},
                output_bytes=size,
                gradient_bytes=size,
            )
            for i, (s, size) in enumerate(zip(seconds, sizes, strict=True))
        ]
    )


def on_two(seconds: Sequence[float], sizes: Sequence[float]) -> tuple[Graph, Cluster]:
    return chain(seconds, sizes), cluster(*cpus(1.0, 1.0).devices, default=WIRE)


def lengths(plan: Plan) -> list[int]:
    return [len(stage.nodes) for stage in plan.stages]


def test_the_order_in_which_types_are_listed_does_not_change_the_plan() -> None:
    """PipeEdge: two fast devices and a slow one."""
    devices = [
        Device(name="f1", type="fast"),
        Device(name="f2", type="fast"),
        Device(name="s", type="slow", memory_bytes=2.0),
    ]
    for order in itertools.permutations(devices):
        for kinds in (("fast", "slow"), ("slow", "fast")):
            times = {kind: {"fast": 1.0, "slow": 4.0}[kind] for kind in kinds}
            nodes = [
                node(f"n{i}", (f"n{i - 1}",) if i else (), forward_s=times, parameter_bytes=1.0)
                for i in range(9)
            ]
            given = Assumptions(mode="inference")
            plan = solve(graph(nodes), cluster(*order), given).plan
            assert plan.bottleneck_s == plan.lower_bound == 4.0
            of_type = sorted((stage.device[0], len(stage.nodes)) for stage in plan.stages)
            assert of_type == [("f", 4), ("f", 4), ("s", 1)]


@pytest.mark.parametrize("strategy", get_args(Strategy))
@pytest.mark.parametrize("objective", get_args(Objective))
@pytest.mark.parametrize("overlap", get_args(Overlap))
def test_the_transfer_of_activations_is_always_priced(
    strategy: Strategy, objective: Objective, overlap: Overlap
) -> None:
    """PipeDream: no option leaves out what a boundary costs."""
    g, c = on_two([4.0] * 4, [5.0] * 4)
    given = Assumptions(objective=objective, overlap=overlap, pins=("n0=d0", "n3=d1"))
    plan = solve(g, c, given, strategy=strategy).plan
    assert lengths(plan) == [2, 2]
    moves_s = 2 * (0.25 + 5.0 / 10.0)  # an activation forward, its gradient back
    assert [stage.send_s for stage in plan.stages] == [moves_s, 0.0]
    assert [stage.receive_s for stage in plan.stages] == [0.0, moves_s]
    bottleneck_s = 8.0 if overlap == "full" else 8.0 + moves_s
    assert plan.bottleneck_s == bottleneck_s
    assert plan.step_s == 16.0 + moves_s + 7 * bottleneck_s


def test_communication_is_priced_from_stage_to_stage() -> None:
    """Alpa: of two cuts the one that is better balanced costs more to cross."""
    # n0 | n1 is balanced less well (3 and 5 s) than n1 | n2 (4 and 4 s), whose value is large
    seconds = [3.0, 1.0, 4.0]
    given = Assumptions(mode="inference")
    plan = solve(*on_two(seconds, [1.0, 40.0, 1.0]), given).plan
    assert lengths(plan) == [1, 2]
    assert plan.bottleneck_s == plan.lower_bound == pytest.approx(5.35)  # the other one: 8.25
    small = solve(*on_two(seconds, [1.0, 1.0, 1.0]), given).plan
    assert lengths(small) == [2, 1]
    assert small.bottleneck_s == pytest.approx(4.35)


def test_a_model_that_fits_one_device_is_still_split_where_that_is_faster() -> None:
    """torch.fx's accelerator partitioner: room enough on each, and two are twice as fast."""
    g, c = chain([1.0] * 4, [0.0] * 4), cpus(1.0, 1.0, memory=1e9)
    plan = solve(g, c).plan
    assert plan.alternatives.best_single_device == 4.0
    assert lengths(plan) == [2, 2]
    assert plan.bottleneck_s == 2.0
    slow = cluster(*c.devices, default=Wire(bandwidth_bytes_per_s=1.0, latency_s=9.0))
    assert lengths(solve(g, slow).plan) == [4]
