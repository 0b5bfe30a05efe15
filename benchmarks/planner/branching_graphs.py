"""Generated graphs with many branches, and clusters for them, each the same for a seed."""

import random
from dataclasses import replace

from skyfx.solver import Cluster, Device, Graph, Link, Node

__all__: list[str] = ["inception", "nas", "on_eight", "on_host"]


class _Branching:
    """A graph in the making: operators with times on accelerators and on a slow CPU."""

    def __init__(self, seed: int) -> None:
        self.rng, self.nodes = random.Random(seed), list[Node]()

    def op(self, reads: list[str], low: float = 0.05, high: float = 1.0) -> str:
        """Add an operator that reads these; its time on an accelerator is between low and high."""
        seconds = self.rng.uniform(low, high)
        self.nodes.append(
            Node(
                id=f"n{len(self.nodes)}",
                op="op",
                module=None,
                inputs=tuple(reads),
                forward_s={"acc": seconds, "cpu": seconds * self.rng.uniform(5, 12)},
                backward_s={},
                output_bytes=self.rng.uniform(0.02, 0.3),
                gradient_bytes=0.0,
                parameter_bytes=1e6,
                saved_bytes=0.0,
                colocate=None,
            )
        )
        return self.nodes[-1].id

    def convolutions(self, x: str, num: int, *, pooled: bool = False) -> str:
        """Some times convolution, normalisation and activation in a line."""
        x = self.op([x], 0.02, 0.15) if pooled else x
        for _ in range(num):
            x = self.op([self.op([self.op([x], 0.2, 1.2)], 0.02, 0.15)], 0.02, 0.15)
        return x

    def graph(self, name: str, output: str) -> Graph:
        """All operators so far."""
        return Graph(name=name, microbatch_size=1, nodes=tuple(self.nodes), outputs=(output,))


def inception(seed: int) -> Graph:
    """Operators in the shape of Inception v3 (Szegedy et al. 2016): blocks of parallel branches."""
    made = _Branching(seed)
    chain, op = made.convolutions, made.op
    x = chain(op([chain(op([]), 3)]), 2)
    x = op([x])
    for lengths in ((1, 2, 3), (1, 3, 0), *((1, 3, 5),) * 4, (2, 4, 0)):
        ends = [chain(x, length) for length in lengths if length]
        reduces = 0 in lengths
        x = op([*ends, op([x]) if reduces else chain(x, 1, pooled=True)])
        if lengths == (1, 2, 3):
            for _ in range(2):
                ends = [chain(x, length) for length in lengths]
                x = op([*ends, chain(x, 1, pooled=True)])
    for _ in range(2):
        b, c = chain(x, 1), chain(x, 2)
        pairs = [op([chain(y, 1), chain(y, 1)]) for y in (b, c)]
        x = op([chain(x, 1), *pairs, chain(x, 1, pooled=True)])
    return made.graph("inception", op([op([x])]))


def nas(seed: int, cells: int) -> Graph:
    """Cells of randomly joined operators, each reading the last two cells, as NASNet's do."""
    made = _Branching(seed)
    op, rng = made.op, made.rng
    a = op([])
    b = op([a])
    for _ in range(cells):
        hidden = [op([a]), op([b])]
        for _ in range(5):
            u, v = rng.choice(hidden), rng.choice(hidden)
            hidden.append(op([op([u]), op([v])]))
        a, b = b, op(hidden[2:])
    return made.graph("nas", b)


def on_host(graph: Graph, num_accelerators: int) -> tuple[Graph, Cluster]:
    """Equal accelerators and a CPU that exchange values through the host's memory."""
    names = [f"acc{d}" for d in range(num_accelerators)]
    links = [
        Link(source=a, target=b, bandwidth_bytes_per_s=1.0, latency_s=0.0)
        for name in names
        for a, b in ((name, "host"), ("host", name))
    ]
    devices = [Device(name=name, type="acc", memory_bytes=1.7e10) for name in names]
    return graph, Cluster(devices=(*devices, Device(name="cpu0", type="cpu")), links=tuple(links))


def on_eight(graph: Graph, eight: Cluster) -> tuple[Graph, Cluster]:
    """The same graph in milliseconds and megabytes on the eight devices of the captured graphs."""
    slower = {"a100": 1.0, "rtx3090": 1.8, "gtx1080": 4.0, "cpu": 30.0}
    rng = random.Random(0)
    nodes = []
    for node in graph.nodes:
        seconds = node.forward_s["acc"] * 1e-3
        forward = {kind: seconds * x * rng.uniform(0.85, 1.15) for kind, x in slower.items()}
        size = node.output_bytes * 4e6
        nodes.append(
            replace(
                node,
                forward_s=forward,
                backward_s={kind: 2 * s for kind, s in forward.items()},
                output_bytes=size,
                gradient_bytes=size,
                saved_bytes=size,
            )
        )
    return replace(graph, nodes=tuple(nodes)), eight
