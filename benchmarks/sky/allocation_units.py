"""A captured BERT in the parts that the original allocates.

    embeddings | attention | intermediate | output | attention | ... | output | pooler | classifier
                `---------- a layer ---------'

The operators of a part have a label in common, so that no plan separates them.
"""

import re
from dataclasses import replace

from benchmarks.sky.published_code import even_counts
from skyfx.solver import Cluster, Graph, Node
from skyfx.solver.costs.cost_model import Placement

__all__: list[str] = ["even", "parts", "thirds"]

LAYER = re.compile(r"\.layer\.(\d+)\.(attention|intermediate|output)\b")


def thirds(graph: Graph) -> Graph:
    """The same graph, the operators of each part on one stage."""
    nodes = (
        replace(node, colocate=part) for node, part in zip(graph.nodes, parts(graph), strict=True)
    )
    return replace(graph, nodes=tuple(nodes))


def parts(graph: Graph) -> list[str]:
    """The part of each node, `(num_nodes,)`."""
    return [_part(node) for node in graph.nodes]


def even(graph: Graph, cluster: Cluster) -> Placement:
    """As the original allocates: as many parts for each worker, in the order of the ranks."""
    members: dict[str, list[str]] = {}
    for node, part in zip(graph.nodes, parts(graph), strict=True):
        members.setdefault(part, []).append(node.id)
    groups = list(members.values())
    counts = even_counts(len(groups), len(cluster.devices))
    return [
        (device.name, [name for part in span for name in groups[part]])
        for device, span in zip(cluster.devices, counts, strict=True)
        if span
    ]


def _part(node: Node) -> str:
    module = node.module or ""
    if found := LAYER.search(module):
        return f"layer {found[1]}, {found[2]}"
    for name in ("pooler", "classifier"):
        if name in module:
            return name
    return "classifier" if module == "dropout" else "embeddings"
