"""Generated planning problems, each the same for a seed: graphs and clusters of given sizes."""

import random
from collections.abc import Iterable

from skyfx.solver import Cluster, Device, Graph, Link, Node
from skyfx.solver.core.cluster import Wire

__all__: list[str] = ["four_types_chain", "layered", "sky_computing", "unlike_chain"]

HIDDEN_BYTES = 8 * 128 * 1024 * 4
"""The hidden states of BERT-large: micro-batch 8, 128 tokens, width 1024, single precision."""

CLASSES = ("matmul", "attention", "norm", "pointwise")

# One operator of a layer: its class, seconds on a device of speed 1, activations saved and sent (in
# hidden states), parameter bytes.
LAYER: tuple[tuple[str, float, float, float], ...] = (
    *(("matmul", 2.2e-3, 1.0, 4.2e6),) * 3,
    *(("pointwise", 6e-5, 0.0, 0.0),) * 8,
    ("attention", 1.1e-3, 1.0, 0.0),
    *(("pointwise", 6e-5, 0.0, 0.0),) * 4,
    ("matmul", 2.2e-3, 1.0, 4.2e6),
    *(("pointwise", 9e-5, 0.5, 0.0),) * 4,
    ("norm", 3e-4, 1.0, 8e3),
    *(("pointwise", 6e-5, 0.0, 0.0),) * 3,
    ("matmul", 8.6e-3, 4.0, 16.8e6),
    *(("pointwise", 3e-4, 4.0, 0.0),) * 3,
    ("matmul", 8.6e-3, 1.0, 16.8e6),
    *(("pointwise", 9e-5, 0.5, 0.0),) * 6,
    ("norm", 3e-4, 1.0, 8e3),
)


def sky_computing(slowdowns: Iterable[float], *, thirds: bool) -> tuple[Graph, Cluster]:
    """Sky Computing's headline: BERT-large with 160 layers on workers that differ in speed alone.

    Times are FLOPs for one sequence of 128 tokens, in tera; a layer is cut in thirds (attention and
    the two halves of the feed-forward part) or into its twelve heavy operators.
    """
    hidden, tokens = 1024, 128
    project, mix, point = tokens * 2 * hidden**2, 2 * tokens**2 * hidden, 10 * tokens * hidden
    if thirds:
        layer = [4 * project + 2 * mix, 4 * project, 4 * project]
    else:
        attention = [project, project, project, mix, 5 * 16 * tokens**2, mix, project, point]
        layer = [*attention, 4 * project, 4 * point, 4 * project, point]
    times = [1e6, *layer * 160, 2 * hidden**2, 6 * hidden]
    nodes = tuple(
        Node(
            id=f"n{i}",
            op="op",
            module=None,
            inputs=(f"n{i - 1}",) if i else (),
            forward_s={"cpu": time / 1e12},
            backward_s={},
            output_bytes=HIDDEN_BYTES / 8,
            gradient_bytes=0.0,
            parameter_bytes=0.0,
            saved_bytes=0.0,
            colocate=None,
        )
        for i, time in enumerate(times)
    )
    graph = Graph(name="sky", microbatch_size=1, nodes=nodes, outputs=(nodes[-1].id,))
    devices = [
        Device(name=f"w{d}", type="cpu", slowdown=float(slow)) for d, slow in enumerate(slowdowns)
    ]
    return graph, Cluster(devices=tuple(devices))


def _operator(name: str, x: int, forward_s: dict[str, float], before: list[Node]) -> Node:
    """Operator x of a layer, which reads the last one before it."""
    group, _, saved, parameters = LAYER[x]
    size = HIDDEN_BYTES * (4.0 if saved == 4.0 else 1.0)
    return Node(
        id=name,
        op=group,
        module=None,
        inputs=(before[-1].id,) if before else (),
        forward_s=forward_s,
        backward_s={kind: 2 * s for kind, s in forward_s.items()},
        output_bytes=size,
        gradient_bytes=size,
        parameter_bytes=parameters,
        saved_bytes=HIDDEN_BYTES * saved,
        colocate=None,
    )


def unlike_chain(seed: int, layers: int = 160, num_devices: int = 64) -> tuple[Graph, Cluster]:
    """Operators of a BERT-like model in a line, on devices of which each is a type of its own.

    Memory is uneven and 1.6 times the need in total; each direction of each link has a bandwidth
    and a latency of its own.
    """
    rng = random.Random(seed)
    types = [f"t{d}" for d in range(num_devices)]
    speed = {kind: rng.uniform(1.0, 8.0) for kind in types}
    factor = {kind: {c: rng.uniform(0.7, 1.4) for c in CLASSES} for kind in types}
    nodes: list[Node] = []
    for layer in range(layers):
        for x, (group, seconds, _, _) in enumerate(LAYER):
            forward = {t: seconds * factor[t][group] / speed[t] for t in types}
            nodes.append(_operator(f"layer.{layer}.{x}", x, forward, nodes))
    graph = Graph(
        name=f"chain {seed}", microbatch_size=8, nodes=tuple(nodes), outputs=(nodes[-1].id,)
    )
    need = sum(4 * n.parameter_bytes + 8 * n.saved_bytes for n in nodes)
    share = [speed[t] * rng.uniform(0.7, 1.3) for t in types]
    memory = [1.6 * need * x / sum(share) for x in share]
    devices = [
        Device(name=f"d{d}", type=types[d], memory_bytes=memory[d]) for d in range(len(types))
    ]
    return graph, Cluster(devices=tuple(devices), links=_links(rng, devices, 1.25e9, 12.5e9))


def four_types_chain(seed: int, num_nodes: int, num_devices: int) -> tuple[Graph, Cluster]:
    """Operators of a BERT-like model in a line, on devices of four types and one kind of link."""
    rng = random.Random(seed)
    kinds = ("a", "b", "c", "d")
    factor = {(kind, c): rng.uniform(0.7, 1.4) for kind in kinds for c in CLASSES}
    nodes: list[Node] = []
    for i in range(num_nodes):
        group, seconds, _, _ = LAYER[i % len(LAYER)]
        forward = {kind: seconds * factor[kind, group] * 2**x for x, kind in enumerate(kinds)}
        nodes.append(_operator(f"n{i}", i % len(LAYER), forward, nodes))
    graph = Graph(
        name=f"chain {seed}", microbatch_size=8, nodes=tuple(nodes), outputs=(nodes[-1].id,)
    )
    return graph, _unlike_types(rng, graph, num_devices, kinds)


def layered(seed: int, num_nodes: int, num_devices: int, width: int = 4) -> tuple[Graph, Cluster]:
    """A general graph in layers: each node reads one to three of the last few layers."""
    rng = random.Random(seed)
    kinds = ("a", "b", "c", "d")
    nodes: list[Node] = []
    for i in range(num_nodes):
        near = nodes[max(0, i - 3 * width) : max(0, i - i % width)]
        seconds = rng.uniform(1e-5, 1e-3)
        forward = {kind: seconds * (1 + x) * rng.uniform(0.9, 1.1) for x, kind in enumerate(kinds)}
        size = rng.uniform(1e4, 1e6)
        nodes.append(
            Node(
                id=f"n{i}",
                op="op",
                module=None,
                inputs=tuple({rng.choice(near).id: None for _ in range(rng.randint(1, 3))})
                if near
                else (),
                forward_s=forward,
                backward_s={kind: 2 * s for kind, s in forward.items()},
                output_bytes=size,
                gradient_bytes=size,
                parameter_bytes=rng.choice([0.0, 1e5, 1e6]),
                saved_bytes=size,
                colocate=None,
            )
        )
    read = {name for node in nodes for name in node.inputs}
    outputs = tuple(node.id for node in nodes if node.id not in read)
    graph = Graph(name=f"layered {seed}", microbatch_size=1, nodes=tuple(nodes), outputs=outputs)
    return graph, _unlike_types(rng, graph, num_devices, kinds)


def _unlike_types(
    rng: random.Random, graph: Graph, num_devices: int, kinds: tuple[str, ...]
) -> Cluster:
    """Devices of several types with twice the memory that is needed, and one kind of link."""
    need = sum(4 * n.parameter_bytes + 8 * n.saved_bytes for n in graph.nodes)
    devices = tuple(
        Device(
            name=f"d{d}",
            type=kinds[d % len(kinds)],
            memory_bytes=2 * need / num_devices * rng.uniform(0.7, 1.3),
        )
        for d in range(num_devices)
    )
    return Cluster(devices=devices, default_link=Wire(bandwidth_bytes_per_s=12e9, latency_s=1e-5))


def _links(
    rng: random.Random, devices: list[Device], slowest: float, fastest: float
) -> tuple[Link, ...]:
    return tuple(
        Link(
            source=a.name,
            target=b.name,
            bandwidth_bytes_per_s=rng.uniform(slowest, fastest),
            latency_s=rng.uniform(1e-5, 1e-4),
        )
        for a in devices
        for b in devices
        if a is not b
    )
