"""From a graph to units: nodes that no valid plan can separate become one unit. No plan is lost.

Nodes of one colocation label share a stage. As no edge may lead back, everything on a path between
two of them shares it too: tie the nodes of a label into a ring, and the strongly connected
components are exactly the forced merges.
"""

from collections.abc import Sequence

from skyfx.solver.core.graph import Graph


def contract(
    graph: Graph, groups: Sequence[str | None] | None = None, *, training: bool = True
) -> list[list[int]]:
    """Group the nodes that every valid plan keeps together.

    Args:
        graph: the model.
        groups: of each node, the label that it shares with the nodes it must stay with; by default
            `colocate`.
        training: whether gradients flow, so that `after` counts.

    Returns:
        Node indices of each unit, ascending. The units are in a topological order: the graph's own
        where nothing is merged, as models mostly execute so that few values are alive at a time.
    """
    groups = groups or [node.colocate for node in graph.nodes]
    position = {node.id: i for i, node in enumerate(graph.nodes)}
    successors: list[list[int]] = [[] for _ in graph.nodes]
    labels: dict[str, list[int]] = {}
    for i, node in enumerate(graph.nodes):
        for name in node.preceding(training=training):
            successors[position[name]].append(i)
        if (label := groups[i]) is not None:
            labels.setdefault(label, []).append(i)
    for ring in labels.values():
        for i, j in zip(ring, [*ring[1:], ring[0]], strict=True):
            successors[i].append(j)
    return [sorted(component) for component in components(successors)]


def components(successors: Sequence[Sequence[int]]) -> list[list[int]]:
    """Strongly connected components in a topological order (Tarjan 1972, without recursion).

    Tarjan's algorithm finishes a component after all that it leads to, so the reverse of its order
    is topological. Starting from the last vertex keeps an order that is topological already.
    """
    index = [-1] * len(successors)
    low = [0] * len(successors)
    on_stack = [False] * len(successors)
    stack: list[int] = []
    found: list[list[int]] = []
    counter = 0
    for root in reversed(range(len(successors))):
        if index[root] >= 0:
            continue
        work = [(root, 0)]
        while work:
            v, next_edge = work.pop()
            if next_edge == 0:
                index[v] = low[v] = counter
                counter += 1
                stack.append(v)
                on_stack[v] = True
            for edge in range(next_edge, len(successors[v])):
                w = successors[v][edge]
                if index[w] < 0:
                    work += [(v, edge + 1), (w, 0)]
                    break
                if on_stack[w]:
                    low[v] = min(low[v], index[w])
            else:
                if low[v] == index[v]:
                    found.append(_pop_component(stack, on_stack, v))
                if work:
                    parent = work[-1][0]
                    low[parent] = min(low[parent], low[v])
    return found[::-1]


def _pop_component(stack: list[int], on_stack: list[bool], root: int) -> list[int]:
    component: list[int] = []
    while not component or component[-1] != root:
        component.append(stack.pop())
        on_stack[component[-1]] = False
    return component
