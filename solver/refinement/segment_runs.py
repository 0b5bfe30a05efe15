"""Runs of neighbours that are worth recomputing, and the best of them at a price per byte.

Recomputing a run costs its forward once more, and gives back what its nodes keep, less what enters
it and nothing else keeps. At a price per byte, dynamic programming over the nodes of a stage finds
the disjoint runs that earn most:

    nodes     a b c d e f g h i j
    low       - - [c d] - - - - -        only what is nearly free
    high      [a b c d] - [f g h i j]    nearly all

What a run keeps while its own backward runs is memory, too, so runs are limited in size.
"""

import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from skyfx.solver.core.graph import Graph, Node
from skyfx.solver.costs.recomputation import Segment, maker_of, storage_of
from skyfx.solver.problem.instance import Floats

LONGEST = 60
"""Nodes of a run."""

NUM_PRICES = 16

PARTS = (1 / 2, 1 / 4, 1 / 8, 1 / 16)
"""Where all is recomputed, a run keeps at most one of these parts of all in its backward."""


@dataclass(frozen=True, slots=True)
class SegmentRuns:
    """All runs of a graph that give something back.

    Attributes:
        names: the ids of the nodes.
        position: of each in them.
        ending: of the runs that end before each node: begin, seconds, bytes that it gives back,
            and bytes that it keeps while its backward runs; `(num_nodes + 1)` arrays `(4, runs)`.
        prices: seconds per byte, from what the cheapest run costs to what is enough for all.
    """

    names: Sequence[str]
    position: dict[str, int]
    ending: Sequence[Floats]
    prices: Sequence[float]

    @classmethod
    def of(cls, graph: Graph, device_types: Collection[str]) -> Self:
        """The runs of a graph, with the seconds that these types of devices take on average."""
        keepers = Counter(key for node in graph.nodes for key in node.kept if key)
        labels = Counter(x for x in (node.colocate for node in graph.nodes) if x is not None)
        by_id = {node.id: node for node in graph.nodes}
        seconds = [_forward_s(node, device_types) for node in graph.nodes]
        found: list[list[tuple[float, ...]]] = [[] for _ in range(len(graph.nodes) + 1)]
        for begin in range(len(graph.nodes)):
            grown = _grown(graph.nodes[begin : begin + LONGEST], by_id, keepers, labels)
            spent = itertools.accumulate(seconds[begin:])
            for end, (is_closed, back, again) in enumerate(grown, begin + 1):
                extra = next(spent)
                if is_closed and back > 0:
                    found[end].append((begin, extra, back, again))
        ending = [np.array(x, dtype=float).reshape(-1, 4).T for x in found]
        position = {name: i for i, name in enumerate(by_id)}
        return cls([*by_id], position, ending, _prices(ending))

    @classmethod
    def none(cls, graph: Graph) -> Self:
        """No runs at all: nothing is recomputed."""
        names = [node.id for node in graph.nodes]
        nothing: Floats = np.zeros((4, 0))
        return cls(names, {x: i for i, x in enumerate(names)}, [nothing] * (len(names) + 1), [])

    def known(self, segment: Segment) -> tuple[float, float, float]:
        """Of a run: seconds, bytes that it gives back, and those that its backward keeps."""
        begin = self.position[segment[0]]
        each = self.ending[begin + len(segment)].T
        extra, back, again = each[each[:, 0] == begin][0, 1:].tolist()
        return extra, back, again

    def within(self, segment: Segment) -> Iterator[Segment]:
        """The shorter runs that begin or end where a run does."""
        first, last = self.position[segment[0]], self.position[segment[-1]] + 1
        for begin in self.ending[last][0].astype(int).tolist():
            if begin > first:
                yield tuple(self.names[begin:last])
        for end in range(first + 1, last):
            if first in self.ending[end][0]:
                yield tuple(self.names[first:end])

    def best(
        self, price: float, most_again: float, stage: Collection[str] | None = None
    ) -> list[Segment]:
        """The disjoint runs of a stage that cost least, where each byte given back earns the price.

        Args:
            price: seconds per byte.
            most_again: bytes that a run may keep while its backward runs.
            stage: ids of its nodes; by default all.
        """
        inside = [stage is None or name in stage for name in self.names]
        first, last = inside.index(True), len(inside) - inside[::-1].index(True)
        cost: Floats = np.zeros(last - first + 1)
        chosen: dict[int, int] = {}
        piece = first  # where the neighbours begin that end here
        for end in range(first + 1, last + 1):
            cost[end - first] = cost[end - first - 1]
            if not inside[end - 1]:
                piece = end
                continue
            begins, extra, back, again = self.ending[end]
            within = np.flatnonzero((begins >= piece) & (again <= most_again))
            if not len(within):
                continue
            begin = begins[within].astype(int)
            total = cost[begin - first] + extra[within] - price * back[within]
            least = int(total.argmin())
            if total[least] < cost[end - first]:
                cost[end - first], chosen[end] = total[least], int(begin[least])
        return self._read_back(chosen, first, last)

    def _read_back(self, chosen: dict[int, int], first: int, last: int) -> list[Segment]:
        found, end = list[Segment](), last
        while end > first:
            begin = chosen.get(end)
            if begin is not None:
                found.append(tuple(self.names[begin:end]))
            end = end - 1 if begin is None else begin
        return found[::-1]


def all_segments(graph: Graph, device_types: Collection[str]) -> Sequence[Segment]:
    """The segments of a graph of which all is recomputed that makes its memory less."""
    runs, total = SegmentRuns.of(graph, device_types), sum(node.saved_bytes for node in graph.nodes)

    def memory(segments: Sequence[Segment]) -> float:
        """With one micro-batch in flight, less what is kept without recomputation."""
        known = [runs.known(segment) for segment in segments]
        return max((x[2] for x in known), default=0.0) - sum(x[1] for x in known)

    choices = [runs.best(price, part * total) for price in runs.prices[-1:] for part in PARTS]
    return min(choices, key=memory, default=[])


def _prices(ending: Sequence[Floats]) -> list[float]:
    ratios = [float(x) for _, extra, back, _ in ending for x in extra / back]
    if not ratios:
        return []
    low, high = max(min(ratios), 1e-18), 2 * max(max(ratios), 1e-18)
    found: list[float] = np.geomspace(low, high, NUM_PRICES).tolist()
    return found


def _forward_s(node: Node, device_types: Collection[str]) -> float:
    known = [node.forward_s[kind] for kind in device_types if kind in node.forward_s]
    return sum(known) / len(known) if known else 0.0


def _grown(
    nodes: Sequence[Node],
    by_id: dict[str, Node],
    keepers: Counter[str],
    labels: Counter[str],
) -> Iterator[tuple[bool, float, float]]:
    """Of each run from the first of these nodes on, while it may run again.

    Whether it has all nodes that stay together, the bytes that it gives back, and those that it
    keeps while its backward runs.
    """
    inside, seen, entered = set[str](), Counter[str](), set[str]()
    missing, with_label = 0, set[str]()
    back = again = 0.0
    for node in nodes:
        if not node.repeatable:
            return
        inside.add(node.id)
        if node.colocate is not None:
            missing += -1 if node.colocate in with_label else labels[node.colocate] - 1
            with_label.add(node.colocate)
        for key, size in node.kept.items():
            seen[key] += 1
            if key and maker_of(key) not in inside:
                continue
            again += size * (not key or seen[key] == 1)
            back += size * (not key or seen[key] == keepers[key])
        for read in node.inputs:
            key = storage_of(by_id[read])
            if key and maker_of(key) not in inside and key not in entered and not keepers[key]:
                entered.add(key)
                back -= by_id[maker_of(key)].output_bytes
        yield missing == 0, back, again
