"""In which order stages may hold the readers of a value, so that its gradients add up as before.

Autograd adds the gradients of a value up from its last reader to its first. Over stages, those of
later stages come first, as one sum:

    h --> query, key, value, add        unsplit:  add + value, + key, + query
    stage 1: query, key                 stages:   add + value, + key, + query     the same digits
    stage 1: query, value               stages:   add + key, + value, + query     others

So a reader may be in the stage of the reader before it or in a later one, in no earlier one.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace

from torch import fx

from skyfx.solver.core.graph import Graph
from skyfx.tracing.capture import Capture


def with_readers_in_order(
    graph: Graph, captured: Capture, flows: Callable[[fx.Node], bool]
) -> Graph:
    """The planner's graph of a capture with the `after` of each node.

    Args:
        graph: has the nodes of the capture, in the order in which the model runs.
        captured: the model.
        flows: whether a gradient flows back through what a node makes.
    """
    position = {node: i for i, node in enumerate(captured.module.graph.nodes)}
    after: dict[str, dict[str, None]] = {name: {} for name in captured.ids.values()}
    for value in filter(flows, captured.module.graph.nodes):
        readers = sorted(filter(flows, value.users), key=position.__getitem__)
        for one, other in itertools.pairwise(captured.ids[reader] for reader in readers):
            after[other][one] = None
    nodes = (
        replace(node, after=tuple(x for x in after[node.id] if x not in node.inputs))
        for node in graph.nodes
    )
    return replace(graph, nodes=tuple(nodes))
