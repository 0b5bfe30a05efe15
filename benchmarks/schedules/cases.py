"""Seeded pipelines of unequal stages on slow links, and captured models on seeded clusters."""

import gzip
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import msgspec

from skyfx.solver import Assumptions, Cluster, Device, Graph, Link, Node
from skyfx.solver.costs.cost_model import Placement
from skyfx.solver.costs.peak_memory import peak_bytes

__all__: list[str] = ["Case", "captured", "four", "unequal"]

DATA = Path(__file__).parents[1] / "planner" / "data" / "captured"
MIB = 2.0**20
UNEQUAL = 2.0
"""The slowest stage takes at least so many times as long as the fastest one."""

MBIT = (20.0, 1000.0)
ROOM = (1.1, 2.5)
"""Of a device's peak under 1F1B, what its memory holds; a tenth is what plans keep in reserve."""


@dataclass(frozen=True, slots=True)
class Case:
    """A pipeline whose stages are given: one node on each device."""

    graph: Graph
    cluster: Cluster
    assumptions: Assumptions

    @property
    def placement(self) -> Placement:
        """The stages."""
        pairs = zip(self.cluster.devices, self.graph.nodes, strict=True)
        return [(device.name, [node.id]) for device, node in pairs]

    def limited(self, seed: int) -> "Case":
        """The same on devices with limits, of which some are tight under 1F1B and some roomy."""
        random = Random(seed)
        peaks = peak_bytes(self.graph, self.cluster, self.placement, self.assumptions)
        devices = [
            replace(device, memory_bytes=random.uniform(*ROOM) * peak)
            for device, peak in zip(self.cluster.devices, peaks, strict=True)
        ]
        return replace(self, cluster=replace(self.cluster, devices=tuple(devices)))


def unequal(seed: int) -> Case:
    """4 to 8 stages of 50 to 400 ms, messages of 256 KiB to 4 MiB, 6 to 32 micro-batches."""
    random = Random(seed)
    num, m = random.randint(4, 8), random.choice((6, 8, 12, 16, 24, 32))
    seconds = [1.0]
    while max(seconds) < UNEQUAL * min(seconds):
        seconds = [random.uniform(0.05, 0.4) for _ in range(num)]
    message = random.choice((0.25, 0.5, 1.0, 2.0, 4.0)) * MIB
    nodes = [
        Node(
            id=f"stage {k}",
            op="op",
            module=None,
            inputs=(f"stage {k - 1}",) if k else (),
            forward_s={"cpu": time / 3},
            backward_s={"cpu": 2 * time / 3},
            output_bytes=message,
            gradient_bytes=message,
            parameter_bytes=random.uniform(4, 80) * MIB,
            saved_bytes=random.uniform(5, 40) * message,
            colocate=None,
        )
        for k, time in enumerate(seconds)
    ]
    graph = Graph(
        name=f"unequal {seed}", microbatch_size=1, nodes=tuple(nodes), outputs=(nodes[-1].id,)
    )
    devices = tuple(Device(name=f"d{k}", type="cpu") for k in range(num))
    cluster = Cluster(devices=devices, links=tuple(_links(random, num)))
    return Case(graph, cluster, Assumptions(microbatches=m, overlap="full"))


def _links(random: Random, num: int) -> Iterator[Link]:
    """As fast in both directions, between every two devices."""
    for a in range(num):
        for b in range(a):
            mbit = math.exp(random.uniform(*map(math.log, MBIT)))
            latency = random.uniform(1e-4, 5e-3)
            for source, target in ((a, b), (b, a)):
                yield Link(
                    source=f"d{source}",
                    target=f"d{target}",
                    bandwidth_bytes_per_s=mbit * 1e6 / 8,
                    latency_s=latency,
                )


def captured(name: str) -> Graph:
    """A model as captured and measured, for training."""
    packed = (DATA / f"{name}.training.graph.json.gz").read_bytes()
    return msgspec.json.decode(gzip.decompress(packed), type=Graph)


def four(graph: Graph, links: str) -> Cluster:
    """Four devices that differ by up to four times; `links` are `slow` (as above) or `fast`."""
    random = Random(0)
    kind = sorted(next(node.forward_s for node in graph.nodes if node.forward_s))[0]
    devices = tuple(
        Device(name=f"d{d}", type=kind, slowdown=random.uniform(1.0, 4.0)) for d in range(4)
    )
    made = tuple(_links(random, len(devices)))
    if links == "fast":
        made = tuple(replace(link, bandwidth_bytes_per_s=1.25e9, latency_s=2e-5) for link in made)
    return Cluster(devices=devices, links=made)
