"""From what operators take alone to what they take in their neighbourhood.

Next to each other they share caches, allocator and dispatch. So some stretches of the graph are
run as stages, short ones and long ones, and three numbers are fitted to what they take:

    factor * (what their operators take alone) + overhead * (how many they are) + (what a call does)

The planner knows no costs of a call: operators bear it in proportion, as they would in the longest
stretch, which is the most like a stage. Each stretch is also predicted from the fit to all others,
which is how good the prediction is.
"""

import itertools
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from skyfx.devices.host_resources import free_bytes
from skyfx.measurement.operator_costs import OperatorCosts, has_values, tensors_read
from skyfx.partitioning.stage_builder import stage
from skyfx.passes.planner_graph import num_bytes
from skyfx.passes.synthetic_inputs import sample
from skyfx.runtime.device import LocalDevice
from skyfx.runtime.execution.stage import Stage
from skyfx.runtime.rng import generator_lending
from skyfx.runtime.transport.local import Gradients
from skyfx.solver.core.graph import LinearFit
from skyfx.tracing.capture import Capture
from skyfx.tracing.leaf_calls import leaf_of
from skyfx.tracing.node_names import is_operator

__all__: list[str] = ["Timed", "fit", "timed_regions"]

REGIONS = 12
LONGEST_S, RANGE = 0.1, 8
"""Forward seconds of the longest stretch, as far as the graph has them; how much shorter the
shortest is."""

MOST_BYTES, SHARE = 2**28, 8
"""Parameters that a stretch may have where they have to be made up, and of the device's memory."""

LONG_RUN_S, LONG_RUNS, TINY_S = 0.1, 3, 1e-6

LIVE = 3
"""Micro-batches of which a stretch keeps something when a backward begins."""

DISPATCH_S = 5e-5
"""The most that dispatch and cold caches can add to an operator, where the factor is 1. Stretches
of few and large operators would else have it pay for what they are slower for another reason."""

ROUNDS, TINY = 30, 1e-4

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timed:
    """One stretch in one direction: seconds, those of its operators alone, and their number."""

    seconds: float
    alone_s: float
    nodes: int


def timed_regions(
    captured: Capture, prices: OperatorCosts, place: LocalDevice, told: Callable[[int, int], None]
) -> Iterator[tuple[Timed, Timed | None]]:
    """Time stretches of the graph, forward and, in training, backward."""
    made_up = not has_values(captured)
    read = dict(tensors_read(captured))
    most_bytes = min(MOST_BYTES, free_bytes(place.device) / SHARE)
    parts = list(_stretches(captured, prices, read if made_up else {}, most_bytes))
    for i, part in enumerate(parts):
        told(i, len(parts))
        try:
            yield _timed(captured, prices, place, part, made_up=made_up)
        except (RuntimeError, IndexError, ValueError) as error:
            # Such as one that writes in place to what lies outside of it, or reads other values.
            logger.info("a stretch from %s cannot be run alone: %s", captured.ids[part[0]], error)


def fit(regions: Sequence[Timed]) -> LinearFit | None:
    """Fit the three numbers; None where too few stretches were timed to tell."""
    regions = [region for region in regions if region.seconds > 0]
    if len(regions) < 4:
        return None
    # In these columns "not below zero" means as well: no more overhead than DISPATCH_S allows.
    rows = np.array([[r.alone_s, r.alone_s + DISPATCH_S * r.nodes, 1.0] for r in regions])
    seconds = np.array([r.seconds for r in regions])
    errors = []
    for k in range(len(regions)):
        others = np.arange(len(regions)) != k
        predicted = rows[k] @ _solved(rows[others], seconds[others])
        errors.append(abs(predicted / seconds[k] - 1))
    bare, with_dispatch, call_s = _solved(rows, seconds)
    borne = call_s / max(region.alone_s for region in regions)
    return LinearFit(
        factor=float(bare + with_dispatch + borne),
        overhead_s=float(DISPATCH_S * with_dispatch),
        regions=len(regions),
        error=float(np.median(errors)),
        error_p90=float(np.percentile(errors, 90)),
    )


def _solved(rows: NDArray[Any], seconds: NDArray[Any]) -> NDArray[Any]:
    """The three numbers, not below zero, of the least sum of relative errors.

    Of the errors themselves and not of their squares: a stretch during which the machine was busy
    with something else is then not followed. By least squares, weighted anew in each round.
    """
    relative, weights = rows / seconds[:, None], np.ones(len(rows))
    found = np.array([1.0, 0.0, 0.0])
    for _ in range(ROUNDS):
        found = _least_squares(relative * weights[:, None], weights)
        weights = 1 / np.sqrt(np.maximum(np.abs(relative @ found - 1), TINY))
    return found


def _least_squares(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """The x, not below zero, of the least |a x - b|: with any of its few numbers left out."""
    columns = range(a.shape[1])
    tried = [np.zeros(a.shape[1])]
    for size in range(1, a.shape[1] + 1):
        for some in map(list, itertools.combinations(columns, size)):
            x = np.zeros(a.shape[1])
            x[some] = np.linalg.lstsq(a[:, some], b, rcond=None)[0]
            tried += [x] * bool((x >= 0).all())
    return min(tried, key=lambda x: float(np.linalg.norm(a @ x - b)))


def _stretches(
    captured: Capture, prices: OperatorCosts, made_up: dict[fx.Node, Any], most_bytes: float
) -> Iterator[list[fx.Node]]:
    """Stretches of operators, from short to long, their beginnings all over the graph."""
    nodes = [node for node in captured.ids if is_operator(node)]
    time_s = np.array([prices.costs[node.name].forward_s for node in nodes])
    longest = min(LONGEST_S, float(time_s.sum()))
    lengths = np.geomspace(longest / RANGE, longest, REGIONS)
    # The golden section spreads the beginnings evenly, however many there are.
    for k, length in enumerate(lengths):
        start = int((k * 0.6180339887498949 % 1) * max(1, len(nodes) - 4))
        start = min(start, int(np.searchsorted(-np.cumsum(time_s[::-1])[::-1], -length)))
        end = start + 1 + int(np.searchsorted(np.cumsum(time_s[start:]), length))
        part = list(itertools.takewhile(lambda node: not leaf_of(node), nodes[start:end]))
        if (
            part
            and sum(num_bytes(made_up.get(x)) for n in part for x in n.all_input_nodes) < most_bytes
        ):
            yield part


def _timed(
    captured: Capture,
    prices: OperatorCosts,
    place: LocalDevice,
    part: list[fx.Node],
    *,
    made_up: bool,
) -> tuple[Timed, Timed | None]:
    """Run a stretch as a stage, one micro-batch after the other."""
    inside = set(part)
    read = dict.fromkeys(x for node in part for x in node.all_input_nodes if x not in inside)
    tensors = {
        x: _of_its_own(captured.attribute(x), place.device if made_up else None)
        for x in read
        if x.op == "get_attr"
    }
    received = [x for x in read if x not in tensors]
    sent = [n for n in part if any(user not in inside for user in n.users)] or part[-1:]
    if not all(isinstance(x.meta.get("val"), Tensor) for x in (*received, *sent)):
        raise ValueError("it takes or gives several tensors as one value")
    alone = stage(captured, part, replace(place, slowdown=1.0), received, sent, tensors)
    values = [
        sample(x.meta["val"], place.device).requires_grad_(prices.flows[x.name][0])
        for x in received
    ]
    forward_s, backward_s = _seconds(alone, values, training=captured.training)
    costs = [prices.costs[node.name] for node in part]
    back = [c.backward_s for c in costs if c.backward_s is not None]
    forward = Timed(forward_s, sum(c.forward_s for c in costs), len(part))
    return forward, Timed(backward_s, sum(back), len(back)) if back and backward_s else None


def _of_its_own(value: Any, made_on: torch.device | None) -> Any:
    """A parameter whose gradient is not the model's."""
    if made_on is not None and isinstance(value, Tensor):
        value = sample(value, made_on)
    return (
        nn.Parameter(value.detach(), value.requires_grad)
        if isinstance(value, nn.Parameter)
        else value
    )


def _seconds(alone: Stage, values: Sequence[Tensor], *, training: bool) -> tuple[float, float]:
    """What a stage takes for a micro-batch, forward and backward, in turns as it would.

    Between a forward and its backward come others, whose numbers are in the caches then. After each
    the stream is waited for, as it is where the next values come from the CPU. Runs take a tenth of
    a second at least: a container that gets part of a core runs at full speed for some milliseconds
    and then not at all; only what takes longer than that shows its speed.
    """
    live: deque[tuple[int, Gradients]] = deque()
    numbers = itertools.count()

    def turn() -> tuple[float, float]:
        m, began_s = next(numbers), alone.busy_s
        with generator_lending.use_source(generator_lending.SeededStream(0, m)):
            sent = alone.forward(m, values, training=training)
        forward_s = alone.busy_s - began_s
        if training:
            live.append((m, [torch.ones_like(x) if x.requires_grad else None for x in sent]))
            if len(live) == LIVE:
                alone.backward(*live.popleft())
        return forward_s, alone.busy_s - began_s - forward_s

    def run(turns: int) -> tuple[float, float]:
        forward_s, backward_s = zip(*(turn() for _ in range(turns)), strict=True)
        return sum(forward_s) / turns, sum(backward_s) / turns

    times = math.ceil(LONG_RUN_S / max(sum(run(LIVE)), TINY_S))
    forward, backward = zip(*(run(times) for _ in range(LONG_RUNS)), strict=True)
    return median(forward), median(backward)
