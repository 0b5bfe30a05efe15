"""What parts of a graph take that recompute, without choosing their segments.

At each of some prices the best segments of the whole graph say what their nodes give back, and in
how many seconds. A stage that lacks some of that is taken to lie between two of these levels:

    levels    bytes given back     seconds       a stage that lacks 30 bytes takes
    low       20                   1             3: a quarter of the way from low to high
    high      60                   9

It is about the least that it may take: a search that believes it looks where it may be wrong, and
learns. What the largest segment keeps while its backward runs is lacking as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from skyfx.solver.core.graph import Graph
from skyfx.solver.costs.recomputation import maker_of, recomputed_nodes
from skyfx.solver.problem.instance import Floats
from skyfx.solver.problem.interval_tables import prefix_sums
from skyfx.solver.refinement.segment_runs import SegmentRuns

STEP = 2
"""Of the prices every second is a level."""

PARTS = (1, 1 / 2, 1 / 8, 1 / 32, 1 / 128)
"""Of all saved bytes, what a segment may keep while its backward runs."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """What the nodes of a graph keep, by storage: its maker and its first keeper, `(2, kept)`."""

    ends: NDArray[np.int64]
    keepers: Sequence[frozenset[int]]
    sizes: Floats
    number: dict[str, int]

    @classmethod
    def of(cls, graph: Graph, position: dict[str, int]) -> Self:
        keepers, sizes = dict[str, list[int]](), dict[str, float]()
        for i, node in enumerate(graph.nodes):
            for key, size in node.kept.items():
                keepers.setdefault(key or f"{node.id}#", []).append(i)
                sizes[key or f"{node.id}#"] = size
        ends = [[position[maker_of(key)], own[0]] for key, own in keepers.items()]
        return cls(
            np.array(ends, dtype=np.int64).reshape(-1, 2).T,
            [frozenset(own) for own in keepers.values()],
            np.array([*sizes.values()]),
            {key: i for i, key in enumerate(keepers)},
        )

    def placed(self, place: NDArray[np.int64]) -> Self:
        """The same with the nodes at other places."""
        return replace(self, ends=place[self.ends])


@dataclass(frozen=True, slots=True)
class RecomputeLevels:
    """Levels of recomputation of a graph whose nodes stand in some order.

    Attributes:
        kept: what nodes keep.
        seconds: of running the nodes before each cut again, `(levels, nodes + 1)`.
        entering: bytes that their segments keep of what nothing else keeps, `(levels, nodes + 1)`.
        back_bytes: of what is kept, as far as it is given back, `(levels, kept)`.
        again_bytes: what the segment of a node keeps while its backward runs, `(levels, nodes)`.
    """

    kept: _Kept
    seconds: Floats
    entering: Floats
    back_bytes: Floats
    again_bytes: Floats

    @classmethod
    def of(cls, graph: Graph, runs: SegmentRuns, order: Sequence[int]) -> Self:
        """The levels of a graph with these runs; `order` are the indices of its nodes."""
        total = sum(node.saved_bytes for node in graph.nodes)
        nodes, kept = {node.id: node for node in graph.nodes}, _Kept.of(graph, runs.position)
        size, levels = len(nodes), []
        for price in runs.prices[::STEP]:
            for part in PARTS:
                again, inside = np.zeros((3, size)), np.full(size, -1)
                for number, segment in enumerate(runs.best(price, part * total)):
                    begin = runs.position[segment[0]]
                    seconds, _, largest = runs.known(segment)
                    again[0, begin : begin + len(segment)] = seconds / len(segment)
                    enters = recomputed_nodes(nodes, segment)[segment[0]].kept
                    again[1, begin] = sum(x for k, x in enters.items() if k not in kept.number)
                    inside[begin : begin + len(segment)] = number
                    again[2, begin : begin + len(segment)] = largest
                levels.append((again, cls._given_back(kept, inside)))
        once_more = np.array([again for again, _ in levels]).reshape(len(levels), 3, size)
        return cls(
            kept.placed(np.argsort(order)),
            prefix_sums(once_more[:, 0, order]),
            prefix_sums(once_more[:, 1, order]),
            np.array([back for _, back in levels]).reshape(len(levels), len(kept.sizes)),
            once_more[:, 2, order],
        )

    @staticmethod
    def _given_back(kept: _Kept, inside: NDArray[np.int64]) -> Floats:
        """Of each storage, its bytes where one segment makes it and has all that keep it."""
        makers = inside[kept.ends[0]]
        whole = [
            segment >= 0 and all(inside[i] == segment for i in own)
            for segment, own in zip(makers.tolist(), kept.keepers, strict=True)
        ]
        return np.where(whole, kept.sizes, 0.0)

    def of_part(self, begin: int, end: int, lacking: float, live: int) -> tuple[float, float]:
        """Seconds more without slowdown, and bytes that are still lacking then.

        Args:
            begin: where a stage begins in the order of the nodes.
            end: where it ends.
            lacking: bytes at its peak.
            live: micro-batches in flight.
        """
        if lacking <= 0 or not len(self.again_bytes):
            return 0.0, max(0.0, lacking)
        within = (self.kept.ends[0] >= begin) & (self.kept.ends[1] < end)
        entering = self.entering[:, end] - self.entering[:, begin]
        again = self.again_bytes[:, begin:end].max(axis=1)
        gained = live * (self.back_bytes @ within - entering) - again
        seconds = self.seconds[:, end] - self.seconds[:, begin]
        enough = gained >= lacking
        if not enough.any():
            return float(seconds.max()), float(lacking - gained.max())
        # Between a level that gives too little back, or nothing, and one that gives enough.
        less, less_s = np.append(0.0, gained[~enough]), np.append(0.0, seconds[~enough])
        part = (lacking - less[:, None]) / (gained[enough] - less[:, None])
        between = less_s[:, None] + part * (seconds[enough] - less_s[:, None])
        return float(max(0.0, between.min())), 0.0
