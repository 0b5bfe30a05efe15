"""Small random planning problems, and the answer by trying everything."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from hypothesis import strategies as st

from skyfx.solver import (
    Assumptions,
    Cluster,
    Cost,
    Device,
    Graph,
    Link,
    Node,
    Plan,
    Stage,
    evaluate,
)
from skyfx.solver.core.cluster import Wire
from skyfx.solver.core.plan import Alternatives, Reference, SolverInfo, relative_gap

TYPES = ("fast", "slow")
SECONDS = st.integers(0, 20).map(float)
BYTES = st.integers(0, 10).map(float)


def node(name: str, inputs: tuple[str, ...] = (), **fields: Any) -> Node:
    """A node of one second on `cpu`, with what the test says instead."""
    defaults: dict[str, Any] = {
        "op": "op",
        "module": None,
        "forward_s": {"cpu": 1.0},
        "backward_s": {},
        "output_bytes": 1.0,
        "gradient_bytes": 0.0,
        "parameter_bytes": 0.0,
        "saved_bytes": 0.0,
        "colocate": None,
    }
    return Node(id=name, inputs=inputs, **(defaults | fields))


def graph(nodes: list[Node], outputs: tuple[str, ...] | None = None) -> Graph:
    last = (nodes[-1].id,)
    return Graph(name="test", microbatch_size=1, nodes=tuple(nodes), outputs=outputs or last)


def cluster(*devices: Device, links: tuple[Link, ...] = (), default: Wire | None = None) -> Cluster:
    return Cluster(devices=devices, links=links, default_link=default)


def cpus(*slowdowns: float, memory: float | None = None) -> Cluster:
    """CPU devices `d0, d1, ...` with these slowdowns and free communication."""
    return cluster(
        *(
            Device(name=f"d{k}", type="cpu", slowdown=s, memory_bytes=memory)
            for k, s in enumerate(slowdowns)
        )
    )


@st.composite
def times(draw: st.DrawFn) -> dict[str, float]:
    kinds = draw(st.sampled_from([(), TYPES, TYPES, TYPES, ("fast",), ("slow",)]))
    return {kind: draw(SECONDS) for kind in kinds}


@st.composite
def graphs(draw: st.DrawFn, max_nodes: int = 6) -> Graph:
    nodes: list[Node] = []
    freezes = draw(st.booleans())
    for i in range(draw(st.integers(1, max_nodes))):
        ids = [n.id for n in nodes]
        is_input = draw(st.integers(0, 4)) == 0
        readable = [] if is_input or not ids else draw(st.lists(st.sampled_from(ids), max_size=3))
        earlier = [] if is_input else [n.id for n in nodes if not n.is_input]
        forward = {} if is_input else draw(times())
        nodes.append(
            node(
                f"n{i}",
                tuple(dict.fromkeys(readable)),
                op="input" if is_input else "op",
                forward_s=forward,
                backward_s={kind: draw(SECONDS) for kind in forward} if draw(st.booleans()) else {},
                output_bytes=draw(BYTES),
                gradient_bytes=draw(BYTES),
                parameter_bytes=(parameters := draw(BYTES)),
                trainable_bytes=draw(st.sampled_from([0.0, parameters])) if freezes else None,
                saved_bytes=draw(BYTES),
                workspace_bytes=draw(BYTES),
                flops=draw(BYTES),
                backward_flops=draw(BYTES),
                colocate=draw(st.sampled_from([None, None, None, "a", "b"])),
                after=tuple(draw(st.sets(st.sampled_from(earlier), max_size=1)) if earlier else ()),
            )
        )
    outputs = draw(st.lists(st.sampled_from([n.id for n in nodes]), unique=True, max_size=2))
    return graph(nodes, tuple(outputs) or (nodes[-1].id,))


@st.composite
def chains(draw: st.DrawFn, max_nodes: int = 6) -> Graph:
    """Graphs with a single topological order: each node reads the one before it, and maybe more."""
    g = draw(graphs(max_nodes))
    nodes = [
        node
        if i == 0
        else replace(node, op="op", inputs=tuple(dict.fromkeys((*node.inputs, g.nodes[i - 1].id))))
        for i, node in enumerate(g.nodes)
    ]
    return replace(g, nodes=tuple(nodes))


@st.composite
def wires(draw: st.DrawFn) -> Wire:
    return Wire(
        bandwidth_bytes_per_s=draw(st.sampled_from([0.5, 1.0, 4.0, 100.0])),
        latency_s=draw(st.sampled_from([0.0, 0.0, 1.0, 3.0])),
    )


@st.composite
def clusters(draw: st.DrawFn, max_devices: int = 3) -> Cluster:
    devices = [
        Device(
            name=f"d{d}",
            type=draw(st.sampled_from(TYPES)),
            memory_bytes=draw(st.sampled_from([None, None, 20.0, 60.0, 150.0])),
            slowdown=draw(st.sampled_from([1.0, 1.0, 2.0, 3.5])),
        )
        for d in range(draw(st.integers(1, max_devices)))
    ]
    names = [*(d.name for d in devices), "host"]
    links = []
    for source, target in itertools.permutations(names, 2):
        if draw(st.integers(0, 3)) == 0:
            wire = draw(wires())
            links.append(
                Link(
                    source=source,
                    target=target,
                    bandwidth_bytes_per_s=wire.bandwidth_bytes_per_s,
                    latency_s=wire.latency_s,
                )
            )
    return cluster(*devices, links=tuple(links), default=draw(st.none() | wires()))


def assumptions() -> st.SearchStrategy[Assumptions]:
    return st.builds(
        Assumptions,
        mode=st.sampled_from(["training", "inference"]),
        objective=st.sampled_from(["throughput", "step", "latency"]),
        schedule=st.sampled_from(["1f1b", "gpipe"]),
        microbatches=st.integers(1, 4),
        optimizer_state_ratio=st.sampled_from([0.0, 2.0]),
        overlap=st.sampled_from(["none", "full"]),
        communication=st.sampled_from(["relay", "host"]),
    )


def all_plans(
    g: Graph, c: Cluster, a: Assumptions
) -> Iterator[tuple[list[tuple[str, list[str]]], Cost]]:
    """Every valid plan, by the rules as written: stages may be empty, devices left out."""
    devices = {d.name: d for d in c.devices}
    for size in range(1, len(devices) + 1):
        for names in itertools.permutations(devices, size):
            for stage_of in _assignments(g, [devices[name].type for name in names], a.training):
                placement = [
                    (name, [v for v, at in stage_of.items() if at == k])
                    for k, name in enumerate(names)
                ]
                cost = evaluate(g, c, placement, a)
                limits = [devices[name].memory_bytes for name in names]
                if all(
                    limit is None or m <= limit
                    for limit, m in zip(limits, cost.memory_bytes, strict=True)
                ):
                    yield placement, cost


def _assignments(g: Graph, types: list[str], training: bool) -> Iterator[dict[str, int]]:
    """Every assignment of nodes to stages that keeps edges, labels and types, node by node."""

    def extend(
        i: int, stage_of: dict[str, int], labels: dict[str, int]
    ) -> Iterator[dict[str, int]]:
        if i == len(g.nodes):
            yield dict(stage_of)
            return
        n = g.nodes[i]
        first = max((stage_of[u] for u in (*n.inputs, *(n.after if training else ()))), default=0)
        for k in range(first, len(types)):
            together = n.colocate is None or labels.get(n.colocate, k) == k
            if together and n.runs_on(types[k], training=training):
                more = labels if n.colocate is None else labels | {n.colocate: k}
                yield from extend(i + 1, stage_of | {n.id: k}, more)

    yield from extend(0, {}, {})


def plan_of(
    g: Graph,
    c: Cluster,
    a: Assumptions,
    placement: Sequence[tuple[str, Sequence[str]]],
    live: Sequence[int] = (),
) -> Plan:
    """The plan of a placement, with true figures and a bound of half its value."""
    cost = evaluate(g, c, placement, a, live)
    return Plan(
        graph=Reference(name=g.name, sha256="0" * 64, structure=g.structure()),
        cluster=Reference(name="test.cluster.toml", sha256="1" * 64),
        assumptions=a,
        stages=tuple(
            Stage(
                device=name,
                nodes=tuple(ids),
                compute_s=cost.compute_s[k],
                receive_s=cost.receive_s[k],
                send_s=cost.send_s[k],
                time_s=cost.time_s[k],
                memory_bytes=cost.memory_bytes[k],
                flops=cost.flops[k],
                live=live[k] if live else 0,
            )
            for k, (name, ids) in enumerate(placement)
        ),
        bottleneck_s=cost.bottleneck_s,
        step_s=cost.step_s,
        objective_value=cost.objective_value,
        lower_bound=cost.objective_value / 2,
        gap=relative_gap(cost.objective_value, cost.objective_value / 2),
        solver=SolverInfo(
            name="test", version="1", status="feasible", wall_s=0.5, strategy="even", binding="half"
        ),
        alternatives=Alternatives(even=None, dynamic=2.5, best_single_device=3.0),
    )


def hard_problem(num_nodes: int = 90, num_devices: int = 8) -> tuple[Graph, Cluster]:
    """A tangled graph on devices that are all different: at its full size no search ends soon."""
    random = Random(1)
    nodes = []
    for i in range(num_nodes):
        near = range(max(0, i - 12), i)
        inputs = tuple(sorted({f"n{random.choice(near)}" for _ in range(2)})) if near else ()
        nodes.append(
            node(
                f"n{i}",
                inputs,
                forward_s={"cpu": random.uniform(1, 9)},
                output_bytes=float(random.randint(1, 9)),
            )
        )
    devices = [Device(name=f"d{d}", type="cpu", slowdown=1 + d / 10) for d in range(num_devices)]
    return graph(nodes), cluster(*devices, default=Wire(bandwidth_bytes_per_s=5, latency_s=0.1))
