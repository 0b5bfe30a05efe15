"""From what operators take alone to what they take in their neighbourhood.

Next to each other they share caches, allocator and dispatch. So some stretches of the graph are
timed as a stage would run them, short ones and long ones, and two numbers are fitted to them:

    a stretch takes   factor * (what its operators take alone) + overhead * (how many they are)

Each stretch is also predicted from the fit to all others, which is how good the prediction is.
"""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from skyfx.captures import Capture
from skyfx.leaves import leaf_of
from skyfx.names import is_operator
from skyfx.outline import num_bytes
from skyfx.pricing import Prices, has_values, tensors_read
from skyfx.runtime.stage import Place
from skyfx.samples import sample
from skyfx.solver.graph import Fit
from skyfx.subgraph import subgraph
from skyfx.timing import backward_of, timed_long

__all__: list[str] = ["Timed", "fit", "timed_regions"]

REGIONS = 12
SHORTEST_S, LONGEST_S = 1e-3, 0.1
"""Forward seconds of the stretches, as far as the graph has them."""

MOST_BYTES = 2**28
"""Parameters that a stretch may have where they have to be made up."""

ROUNDS, TINY = 30, 1e-4

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timed:
    """One stretch in one direction: seconds, those of its operators alone, and their number."""

    seconds: float
    alone_s: float
    nodes: int


def timed_regions(
    captured: Capture, prices: Prices, place: Place, told: Callable[[int, int], None]
) -> Iterator[tuple[Timed, Timed | None]]:
    """Time stretches of the graph, forward and, in training, backward."""
    made_up = not has_values(captured)
    read = dict(tensors_read(captured))
    parts = list(_stretches(captured, prices, read if made_up else {}))
    for i, part in enumerate(parts):
        told(i, len(parts))
        try:
            yield _timed(captured, prices, place, part, made_up=made_up)
        except (RuntimeError, IndexError, ValueError) as error:
            # Such as one that writes in place to what lies outside of it, or reads other values.
            logger.info("a stretch from %s cannot be run alone: %s", captured.ids[part[0]], error)


def fit(regions: Sequence[Timed]) -> Fit | None:
    """Fit the two numbers; None where too few stretches were timed to tell."""
    if len(regions) < 3:
        return None
    rows = np.array([[r.alone_s, r.nodes] for r in regions])
    seconds = np.array([r.seconds for r in regions])
    errors = []
    for k in range(len(regions)):
        others = np.arange(len(regions)) != k
        predicted = rows[k] @ _solved(rows[others], seconds[others])
        errors.append(abs(predicted / seconds[k] - 1))
    factor, overhead_s = _solved(rows, seconds)
    return Fit(
        factor=float(factor),
        overhead_s=float(overhead_s),
        regions=len(regions),
        error=float(np.median(errors)),
        error_p90=float(np.percentile(errors, 90)),
    )


def _solved(rows: NDArray[Any], seconds: NDArray[Any]) -> NDArray[Any]:
    """Factor and overhead, not below zero, of the least sum of relative errors.

    Of the errors themselves and not of their squares: a stretch during which the machine was busy
    with something else is then not followed. By least squares, weighted anew in each round.
    """
    relative, weights = rows / seconds[:, None], np.ones(len(rows))
    found = np.array([1.0, 0.0])
    for _ in range(ROUNDS):
        found = _least_squares(relative * weights[:, None], weights)
        weights = 1 / np.sqrt(np.maximum(np.abs(relative @ found - 1), TINY))
    return found


def _least_squares(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """The x, not below zero, of the least |a x - b|; two columns."""
    both = np.asarray(np.linalg.lstsq(a, b, rcond=None)[0])
    if (both >= 0).all():
        return both
    first, second = (np.maximum(a[:, i] @ b / (a[:, i] @ a[:, i]), 0.0) for i in (0, 1))
    alone = [np.array([first, 0.0]), np.array([0.0, second])]
    return min(alone, key=lambda x: float(np.linalg.norm(a @ x - b)))


def _stretches(
    captured: Capture, prices: Prices, made_up: dict[fx.Node, Any]
) -> Iterator[list[fx.Node]]:
    """Stretches of operators, from short to long, their beginnings all over the graph."""
    nodes = [node for node in captured.ids if is_operator(node)]
    time_s = np.array([prices.costs[node.name].forward_s for node in nodes])
    longest = min(LONGEST_S, float(time_s.sum()))
    lengths = np.geomspace(min(SHORTEST_S, longest / 4), longest, REGIONS)
    # The golden section spreads the beginnings evenly, however many there are.
    for k, length in enumerate(lengths):
        start = int((k * 0.6180339887498949 % 1) * max(1, len(nodes) - 4))
        start = min(start, int(np.searchsorted(-np.cumsum(time_s[::-1])[::-1], -length)))
        end = start + 1 + int(np.searchsorted(np.cumsum(time_s[start:]), length))
        part = list(itertools.takewhile(lambda node: not leaf_of(node), nodes[start:end]))
        if (
            part
            and sum(num_bytes(made_up.get(x)) for n in part for x in n.all_input_nodes) < MOST_BYTES
        ):
            yield part


def _timed(
    captured: Capture, prices: Prices, place: Place, part: list[fx.Node], *, made_up: bool
) -> tuple[Timed, Timed | None]:
    inside = set(part)
    read = dict.fromkeys(x for node in part for x in node.all_input_nodes if x not in inside)
    tensors = {x: captured.attribute(x) for x in read if x.op == "get_attr"}
    received = [x for x in read if x not in tensors]
    if not all(isinstance(x.meta.get("val"), Tensor) for x in received):
        raise ValueError("it takes several tensors as one value")
    sent = [n for n in part if any(user not in inside for user in n.users)] or part[-1:]
    if made_up:
        tensors = {
            x: sample(value, place.device) if isinstance(value, Tensor) else value
            for x, value in tensors.items()
        }
    module = subgraph(captured, part, received, sent, place.device, tensors=tensors)
    inputs = [
        sample(x.meta["val"], place.device).requires_grad_(prices.flows[x.name][0])
        for x in received
    ]
    with torch.set_grad_enabled(captured.training):
        took = timed_long(lambda: module(*inputs), place.num_threads)
    costs = [prices.costs[node.name] for node in part]
    forward = Timed(took.median_s, sum(c.forward_s for c in costs), len(part))
    back = [c.backward_s for c in costs if c.backward_s is not None]
    if not back:
        return forward, None
    with torch.enable_grad():
        wanted = [x for x in (*inputs, *module.parameters()) if x.requires_grad]
        backward = backward_of(module(*inputs), wanted)
    if backward is None:
        return forward, None
    took = timed_long(backward, place.num_threads)
    return forward, Timed(took.median_s, sum(back), len(back))
