"""What stages take that recompute, without choosing their segments: for searches over many cuts.

At each of some prices the best segments of the whole graph say what their nodes give back, and in
how many seconds. A stage that has to give back some of that takes the same part of the seconds:

    levels    bytes given back     seconds       a stage that lacks 30 bytes takes
    low       20                   1             -
    high      60                   9             30 / 60 of 9

Mind that what the largest segment keeps while its backward runs is lacking as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from skyfx.solver.core.graph import Graph
from skyfx.solver.costs.recomputation import maker_of, recomputed_nodes
from skyfx.solver.problem.instance import Floats
from skyfx.solver.refinement.segment_runs import SegmentRuns

STEP = 3
"""Of the prices every third is a level."""

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


@dataclass(frozen=True, slots=True)
class RecomputeEstimate:
    """Levels of recomputation of a graph.

    Attributes:
        position: of each node.
        kept: what nodes keep.
        seconds: of running its node again, `(levels, nodes)`.
        entering: bytes that segments keep of what nothing else keeps, `(levels, nodes)`.
        back_bytes: of what is kept, as far as it is given back, `(levels, kept)`.
        again_bytes: of the largest segment, `(levels,)`.
    """

    position: dict[str, int]
    kept: _Kept
    seconds: Floats
    entering: Floats
    back_bytes: Floats
    again_bytes: Floats

    @classmethod
    def of(cls, graph: Graph, runs: SegmentRuns) -> Self:
        """The levels of a graph with these runs."""
        total = sum(node.saved_bytes for node in graph.nodes)
        nodes, kept = {node.id: node for node in graph.nodes}, _Kept.of(graph, runs.position)
        size, levels = len(nodes), []
        for price in runs.prices[::STEP]:
            for part in PARTS:
                again, inside = np.zeros((2, size)), np.full(size, -1)
                most = 0.0
                for number, segment in enumerate(runs.best(price, part * total)):
                    begin = runs.position[segment[0]]
                    seconds, _, largest = runs.known(segment)
                    again[0, begin : begin + len(segment)] = seconds / len(segment)
                    enters = recomputed_nodes(nodes, segment)[segment[0]].kept
                    again[1, begin] = sum(x for k, x in enters.items() if k not in kept.number)
                    inside[begin : begin + len(segment)] = number
                    most = max(most, largest)
                levels.append((again, cls._given_back(kept, inside), most))
        return cls(
            runs.position,
            kept,
            np.array([again[0] for again, _, _ in levels]).reshape(-1, size),
            np.array([again[1] for again, _, _ in levels]).reshape(-1, size),
            np.array([back for _, back, _ in levels]).reshape(-1, len(kept.sizes)),
            np.array([most for _, _, most in levels]),
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

    def of_stage(self, names: Sequence[str], lacking: float, live: int) -> tuple[float, float]:
        """Seconds more without slowdown, and bytes that are still lacking then.

        Args:
            names: the ids of the stage's nodes.
            lacking: bytes at its peak.
            live: micro-batches in flight.
        """
        if lacking <= 0 or not len(self.again_bytes):
            return 0.0, max(0.0, lacking)
        own = np.zeros(len(self.position), dtype=bool)
        own[[self.position[name] for name in names]] = True
        within = own[self.kept.ends[0]] & own[self.kept.ends[1]]
        back = live * (self.back_bytes @ within - self.entering @ own)
        seconds, lacks = self.seconds @ own, lacking + self.again_bytes
        enough = back >= lacks
        if not enough.any():
            return float(seconds.max()), float((lacks - back).min())
        return float((lacks / np.where(enough, back, 1.0) * seconds)[enough].min()), 0.0
