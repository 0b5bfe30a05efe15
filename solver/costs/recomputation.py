"""Recomputation: segments of a stage that keep only what enters them, and run again in backward.

    forward     x --[ a  b  c ]--> y     x is kept
    backward    x --[ a  b  c ]          once more: what a, b and c keep is there from now on,
                   <-a <-b <-c           each until its own backward

A graph with chosen segments is a graph again. Its backward takes longer, its nodes keep less, and
a segment is never cut. So all that knows graphs knows recomputation.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

from skyfx.solver.core.cluster import Device
from skyfx.solver.core.graph import Graph, Node

Segment = Sequence[str]
"""The ids of its nodes, in the graph's order: neighbours among the nodes of their stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecomputedNode(Node):
    """A node that runs again in backward.

    Attributes:
        segment: the id of the first node of its segment.
        again_bytes: what it keeps from the second run until its own backward.
    """

    segment: str
    again_bytes: float


def can_recompute(graph: Graph) -> bool:
    """Whether the graph says which nodes may run again, and what each keeps."""
    return any(node.repeatable and node.kept for node in graph.nodes)


def with_recomputation(graph: Graph, segments: Iterable[Segment]) -> Graph:
    """The graph in which these segments are recomputed."""
    nodes = {node.id: node for node in graph.nodes}
    again = dict[str, Node]()
    for segment in segments:
        again.update(recomputed_nodes(nodes, segment))
    if not again:
        return graph
    return replace(graph, nodes=tuple(_counted(again.get(x.id, x) for x in graph.nodes)))


def recomputed_nodes(nodes: Mapping[str, Node], segment: Segment) -> dict[str, RecomputedNode]:
    """The nodes of a segment as they are when it is recomputed, by id."""
    inside, entering, made = set(segment), dict[str, float](), set[str]()
    again = dict.fromkeys(segment, 0.0)
    for name in segment:
        for key, size in nodes[name].kept.items():
            if key and maker_of(key) not in inside:
                entering[key] = size
            elif key not in made:
                again[name] += size
                made |= {key} if key else set()
        for read in nodes[name].inputs:
            if read not in inside and (key := storage_of(nodes[read])):
                entering.setdefault(key, nodes[maker_of(key)].output_bytes)
    found = dict[str, RecomputedNode]()
    for name in segment:
        node = nodes[name]
        backward = {
            kind: node.forward_s.get(kind, 0.0) + node.backward_s.get(kind, 0.0)
            for kind in node.forward_s | node.backward_s
        }
        changes = {
            "backward_s": backward,
            "backward_flops": node.flops + node.backward_flops,
            "colocate": segment[0],  # no colocation label leads out of it
            "kept": entering if name == segment[0] else {},
        }
        known = {field.name: getattr(node, field.name) for field in fields(Node)}
        found[name] = RecomputedNode(**known | changes, segment=segment[0], again_bytes=again[name])
    return found


def recomputed_in(graph: Graph, ids: Iterable[str]) -> list[RecomputedNode]:
    """The nodes of a stage that run again, in order."""
    own = set(ids)
    return [x for x in graph.nodes if isinstance(x, RecomputedNode) and x.id in own]


def segments_of(nodes: Iterable[RecomputedNode]) -> tuple[tuple[str, ...], ...]:
    """The segments of nodes that run again."""
    found = dict[str, list[str]]()
    for node in nodes:
        found.setdefault(node.segment, []).append(node.id)
    return tuple(map(tuple, found.values()))


def recompute_s(device: Device, nodes: Iterable[RecomputedNode]) -> float:
    """Seconds for which the device runs nodes again, for one micro-batch."""
    return device.slowdown * sum(node.forward_s.get(device.type, 0.0) for node in nodes)


def storage_of(node: Node) -> str:
    """What names the memory of a node's value in `kept`; empty for a parameter's."""
    return node.id if node.storage is None else node.storage


def maker_of(key: str) -> str:
    """The node that made what a key of `kept` names: `lstm`, and its second tensor `lstm#1`."""
    return key.partition("#")[0]


def without_kept(graph: Graph) -> Graph:
    """The graph in which nodes keep what no choice of segments takes from them: no more than that.

    Nothing where they may run again; else what they made themselves. The rest may be counted at a
    node before them.
    """
    own = (
        {
            key: size
            for key, size in node.kept.items()
            if not node.repeatable and (not key or maker_of(key) == node.id)
        }
        for node in graph.nodes
    )
    nodes = (replace(node, kept=kept) for node, kept in zip(graph.nodes, own, strict=True))
    return replace(graph, nodes=tuple(_counted(nodes)))


def segment_faults(
    graph: Graph, stage: Sequence[str], segments: Sequence[Segment]
) -> Iterator[str]:
    """Why the segments of a stage cannot be recomputed; nothing where they can."""
    nodes = {node.id: node for node in graph.nodes}
    members, own = {node.id: node.colocate for node in graph.nodes}, set(stage)
    position = {name: i for i, name in enumerate(x.id for x in graph.nodes if x.id in own)}
    seen = set[str]()
    for segment in segments:
        if not segment:
            yield "a segment has no nodes"
            continue
        if lost := [name for name in segment if name not in position]:
            yield f"{lost[0]!r} is to be recomputed in another stage than its own"
            continue
        first = position[segment[0]]
        if [position[name] for name in segment] != [*range(first, first + len(segment))]:
            yield f"the segment that begins with {segment[0]!r} is not of neighbours in order"
        if once := [name for name in segment if not nodes[name].repeatable]:
            yield f"{once[0]!r} cannot be recomputed: it may do more than return a value"
        if twice := seen & set(segment):
            yield f"{min(twice)!r} is in two segments"
        seen |= set(segment)
        labels = {members[name] for name in segment} - {None}
        apart = [x for x, label in members.items() if label in labels and x not in segment]
        if apart:
            yield f"{apart[0]!r} has to be in the segment that begins with {segment[0]!r}"


def _counted(nodes: Iterable[Node]) -> Iterator[Node]:
    """The nodes with `saved_bytes` as `kept` says: each storage at the first that keeps it."""
    seen = set[str]()
    for node in nodes:
        new = node.kept.keys() - seen
        seen |= new - {""}
        saved = sum(node.kept[key] for key in sorted(new))
        yield node if saved == node.saved_bytes else replace(node, saved_bytes=saved)
