"""What a split costs, in each of the metrics that "training time" may mean.

Bottleneck: the slowest worker, for one micro-batch. Step: all micro-batches of a batch in a
pipeline, by the cost model's formula. Simulated: the same, every action of 1F1B followed.
Sequential: the batch as a whole, one worker after another, as the original's runtime does.
"""

from dataclasses import dataclass, replace

from benchmarks.sky.published_code import BATCH
from skyfx.solver import Assumptions, Cluster, Graph, Node, evaluate
from skyfx.solver.costs.cost_model import Placement
from skyfx.solver.costs.simulator import simulate

__all__: list[str] = ["METRICS", "PIPELINED", "SEQUENTIAL", "Figures", "figures", "whole"]

METRICS = ("bottleneck", "step", "simulated", "sequential")

PIPELINED = Assumptions(microbatches=BATCH, overlap="full", optimizer_state_ratio=0.0)
"""A batch in micro-batches of one sample; SGD, as the original trains, keeps nothing."""

SEQUENTIAL = replace(PIPELINED, microbatches=1, objective="latency")


@dataclass(frozen=True, slots=True)
class Figures:
    """Seconds of a split in each metric.

    Attributes:
        seconds: by metric.
        fits: whether the workers have the memory, in a pipeline.
        fits_whole: likewise for the batch as a whole.
        num_stages: workers that have a part.
    """

    seconds: dict[str, float]
    fits: bool
    fits_whole: bool
    num_stages: int


def figures(
    graph: Graph, cluster: Cluster, placement: Placement, pipelined: Assumptions = PIPELINED
) -> Figures:
    """Of a split of a graph that was measured for one micro-batch."""
    cost = evaluate(graph, cluster, placement, pipelined)
    batch = whole(graph, pipelined.microbatches)
    sequential = evaluate(batch, cluster, placement, SEQUENTIAL)
    limits = {device.name: device.memory_bytes for device in cluster.devices}

    def within(memory_bytes: tuple[float, ...]) -> bool:
        rooms = [limits[name] for name, _ in placement]
        return all(x is None or need <= x for need, x in zip(memory_bytes, rooms, strict=True))

    return Figures(
        seconds={
            "bottleneck": cost.bottleneck_s,
            "step": cost.step_s,
            "simulated": simulate(graph, cluster, placement, pipelined).step_s,
            "sequential": sequential.latency_s,
        },
        fits=within(cost.memory_bytes),
        fits_whole=within(sequential.memory_bytes),
        num_stages=len(placement),
    )


def whole(graph: Graph, num_microbatches: int) -> Graph:
    """The graph of a batch that is not divided: so many times as long, and as large."""

    def grown(node: Node) -> Node:
        return replace(
            node,
            forward_s={kind: num_microbatches * s for kind, s in node.forward_s.items()},
            backward_s={kind: num_microbatches * s for kind, s in node.backward_s.items()},
            output_bytes=num_microbatches * node.output_bytes,
            gradient_bytes=num_microbatches * node.gradient_bytes,
            saved_bytes=num_microbatches * node.saved_bytes,
            workspace_bytes=num_microbatches * node.workspace_bytes,
        )

    return replace(
        graph,
        microbatch_size=num_microbatches * graph.microbatch_size,
        nodes=tuple(map(grown, graph.nodes)),
    )
