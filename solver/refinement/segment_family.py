"""Segments that are worth recomputing, by the price that is paid for a byte.

Recomputing a run of neighbours costs its forward once more, and gives back what its nodes keep,
less what enters it and nothing else keeps. At a price per byte, dynamic programming over the nodes
finds the disjoint runs that earn most:

    nodes     a b c d e f g h i j
    low       - - [c d] - - - - -        only what is nearly free
    high      [a b c d] - [f g h i j]    nearly all

What a run keeps while its own backward runs is memory, too, so runs are limited in size.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from skyfx.solver.core.graph import Graph, Node
from skyfx.solver.costs.recomputation import Segment, maker_of, storage_of
from skyfx.solver.problem.instance import Floats

LONGEST = 60
"""Nodes of a run."""

NUM_PRICES = 8

PARTS = (1, 4, 16)
"""Runs keep at most such a part of all saved bytes while their backward runs."""

Family = Sequence[Sequence[Segment]]
"""Disjoint segments, from few to many."""


@dataclass(frozen=True, slots=True)
class _Runs:
    """All runs that give back something, by their ends."""

    begin: list[list[int]]
    seconds: list[list[float]]
    back_bytes: list[list[float]]
    again_bytes: list[list[float]]


def segment_family(graph: Graph, device_types: Sequence[str]) -> Family:
    """The segments at rising prices, each choice once.

    Args:
        graph: says what its nodes keep, and which may run again.
        device_types: whose times count, on average.
    """
    runs, total = _all_runs(graph, device_types), sum(node.saved_bytes for node in graph.nodes)
    ratios = [
        seconds / back
        for each in zip(runs.seconds, runs.back_bytes, strict=True)
        for seconds, back in zip(*each, strict=True)
    ]
    if not ratios:
        return []
    low, high = max(min(ratios), 1e-18), 2 * max(max(ratios), 1e-18)
    found: dict[tuple[tuple[int, int], ...], None] = {}
    for part, price in itertools.product(PARTS, np.geomspace(low, high, NUM_PRICES).tolist()):
        found[_best_runs(runs, price, total / part)] = None
    names = [node.id for node in graph.nodes]
    chosen = sorted((x for x in found if x), key=lambda x: sum(end - begin for begin, end in x))
    return [[names[begin:end] for begin, end in one] for one in chosen]


def _all_runs(graph: Graph, device_types: Sequence[str]) -> _Runs:
    size = len(graph.nodes)
    ends = range(size + 1)
    runs = _Runs([[] for _ in ends], [[] for _ in ends], [[] for _ in ends], [[] for _ in ends])
    keepers = Counter(key for node in graph.nodes for key in node.kept if key)
    labels = Counter(x for x in (node.colocate for node in graph.nodes) if x is not None)
    by_id = {node.id: node for node in graph.nodes}
    seconds = [_forward_s(node, device_types) for node in graph.nodes]
    for begin in range(size):
        grown = _grown(graph.nodes[begin : begin + LONGEST], by_id, keepers, labels)
        spent = itertools.accumulate(seconds[begin:])
        for end, (is_closed, back, again), extra in zip(
            itertools.count(begin + 1), grown, spent, strict=False
        ):
            if is_closed and back > 0:
                runs.begin[end].append(begin)
                runs.seconds[end].append(extra)
                runs.back_bytes[end].append(back)
                runs.again_bytes[end].append(again)
    return runs


def _forward_s(node: Node, device_types: Sequence[str]) -> float:
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


def _best_runs(runs: _Runs, price: float, most_again: float) -> tuple[tuple[int, int], ...]:
    """The disjoint runs that cost least, where each byte given back earns the price."""
    size = len(runs.begin)
    cost: Floats = np.zeros(size)
    chosen: list[int | None] = [None] * size
    for end in range(1, size):
        cost[end] = cost[end - 1]
        if not runs.begin[end]:
            continue
        begins = np.array(runs.begin[end])
        own = np.array(runs.seconds[end]) - price * np.array(runs.back_bytes[end])
        own[np.array(runs.again_bytes[end]) > most_again] = np.inf
        total = cost[begins] + own
        best = int(total.argmin())
        if total[best] < cost[end]:
            cost[end], chosen[end] = total[best], int(begins[best])
    found, end = [], size - 1
    while end > 0:
        begin = chosen[end]
        if begin is None:
            end -= 1
        else:
            found.append((begin, end))
            end = begin
    return tuple(reversed(found))
