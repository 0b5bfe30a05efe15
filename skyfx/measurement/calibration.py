"""Calibration segments: runs of neighbouring operators, timed together as a stage would run them.

Operators next to each other share caches, allocator and dispatch, so their times alone do not add
up to the time of a stage. Short and long segments of the graph are timed, and `calibration_fit`
derives from them what an operator takes among its neighbours.
"""

import itertools
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from skyfx.devices.host_resources import free_bytes, has_quota
from skyfx.measurement.calibration_fit import Segment
from skyfx.measurement.operator_costs import OperatorCosts, has_values, tensors_read
from skyfx.measurement.timing import LONG_RUNS, MIN_RUNS, repeat
from skyfx.partitioning.stage_builder import stage
from skyfx.passes.planner_graph import num_bytes
from skyfx.passes.synthetic_inputs import sample
from skyfx.runtime.device import LocalDevice
from skyfx.runtime.execution.stage import Stage
from skyfx.runtime.rng import generator_lending
from skyfx.runtime.transport.local import Gradients
from skyfx.tracing.capture import Capture
from skyfx.tracing.leaves.leaf_calls import leaf_of
from skyfx.tracing.node_names import is_operator
from skyfx.tracing.tensor_binding import in_place_of

SEGMENTS = 12
LONGEST_S, RANGE = 0.1, 8
"""Forward seconds of the longest segment, if the graph has them; it is RANGE times as long as the
shortest."""

MOST_BYTES, SHARE = 2**28, 8
"""Bytes of parameters that are made up for a segment: at most MOST_BYTES, and one SHARE-th of the
device's free memory."""

BLOCK_S, QUOTA_S, MOST_S = 0.01, 0.1, 0.08
"""Seconds of a block of micro-batches, QUOTA_S under a quota of CPU time; of all blocks at most
MOST_S, if their median is not settled before. A container with a quota runs at full speed for some
milliseconds of each 0.1 s and then not at all: only a block of that length shows its speed."""

IN_FLIGHT, TINY_S = 3, 1e-6
"""Micro-batches whose saved tensors a segment keeps when a backward begins."""

logger = logging.getLogger(__name__)


def timed_segments(
    captured: Capture, prices: OperatorCosts, place: LocalDevice, told: Callable[[int, int], None]
) -> Iterator[tuple[Segment, Segment | None]]:
    """Time segments of the graph, forward and, in training, backward."""
    made_up = {} if has_values(captured) else tensors_read(captured)
    most_bytes = min(MOST_BYTES, free_bytes(place.device) / SHARE)
    parts = list(_parts(captured, prices, made_up, most_bytes))
    known: dict[tuple[fx.Node, ...], tuple[Segment, Segment | None]] = {}
    for i, part in enumerate(parts):
        told(i, len(parts))
        key = tuple(part)  # a small graph gives the same segment several times
        try:
            if key not in known:
                known[key] = _timed(captured, prices, place, part)
            yield known[key]
        except (RuntimeError, IndexError, ValueError) as error:
            # For example: it writes in place to a tensor from outside, or reads other values.
            logger.info("a segment from %s cannot be run alone: %s", captured.ids[part[0]], error)


def _parts(
    captured: Capture, prices: OperatorCosts, made_up: dict[fx.Node, Any], most_bytes: float
) -> Iterator[list[fx.Node]]:
    """Runs of operators, from short to long, their beginnings spread over the graph."""
    nodes = [node for node in captured.ids if is_operator(node)]
    time_s = np.array([prices.costs[node.name].forward_s for node in nodes])
    if not time_s.any():
        return  # no operators
    longest = min(LONGEST_S, float(time_s.sum()))
    lengths = np.geomspace(longest / RANGE, longest, SEGMENTS)
    # The golden section spreads the beginnings evenly, however many there are.
    for k, length in enumerate(lengths):
        start = int((k * 0.6180339887498949 % 1) * max(1, len(nodes) - 4))
        start = min(start, int(np.searchsorted(-np.cumsum(time_s[::-1])[::-1], -length)))
        end = start + 1 + int(np.searchsorted(np.cumsum(time_s[start:]), length))
        part = list(itertools.takewhile(lambda node: not leaf_of(node), nodes[start:end]))
        made_bytes = sum(num_bytes(made_up.get(x)) for n in part for x in n.all_input_nodes)
        if part and made_bytes < most_bytes:
            yield part


def _timed(
    captured: Capture, prices: OperatorCosts, place: LocalDevice, part: list[fx.Node]
) -> tuple[Segment, Segment | None]:
    """Run a segment as a stage, one micro-batch after the other."""
    inside = set(part)
    read = dict.fromkeys(x for node in part for x in node.all_input_nodes if x not in inside)
    made_on = None if has_values(captured) else place.device
    attributes = [x for x in read if x.op == "get_attr"]
    tensors = {x: _detached_parameter(captured.attribute(x), made_on) for x in attributes}
    received = [x for x in read if x not in tensors]
    sent = [n for n in part if any(user not in inside for user in n.users)] or part[-1:]
    if not all(isinstance(x.meta.get("val"), Tensor) for x in (*received, *sent)):
        raise ValueError("it takes or gives several tensors as one value")
    alone = stage(captured, part, replace(place, slowdown=1.0), received, sent, tensors)
    made = ((sample(x.meta["val"], place.device), prices.flows[x.name][0]) for x in received)
    values = [value.requires_grad_(needs) for value, needs in made]
    forward_s, backward_s = _seconds(alone, values, training=captured.training)
    costs = [prices.costs[node.name] for node in part]
    back = [c.backward_s for c in costs if c.backward_s is not None]
    forward = Segment(forward_s, sum(c.forward_s for c in costs), len(part))
    return forward, Segment(backward_s, sum(back), len(back)) if back and backward_s else None


def _detached_parameter(value: Any, made_on: torch.device | None) -> Any:
    """A parameter whose gradient is not the model's."""
    if made_on is not None and isinstance(value, Tensor):
        value = sample(value, made_on)
    return in_place_of(value, value.detach()) if isinstance(value, nn.Parameter) else value


def _seconds(alone: Stage, values: Sequence[Tensor], *, training: bool) -> tuple[float, float]:
    """Seconds of a stage for a micro-batch, forward and backward.

    As in a pipeline, the forwards of other micro-batches run between a forward and its backward,
    and their numbers are in the caches then. The stream is waited for after each, as it is where
    the next values come from the CPU.
    """
    in_flight: deque[tuple[int, Gradients]] = deque()
    numbers = itertools.count()

    def turn() -> tuple[float, float]:
        m, began_s = next(numbers), alone.busy_s
        with generator_lending.use_source(generator_lending.SeededStream(0, m)):
            sent = alone.forward(m, values, training=training)
        forward_s = alone.busy_s - began_s
        if training:
            in_flight.append((m, [torch.ones_like(x) if x.requires_grad else None for x in sent]))
            if len(in_flight) == IN_FLIGHT:
                alone.backward(*in_flight.popleft())
        return forward_s, alone.busy_s - began_s - forward_s

    def run(turns: int) -> tuple[float, float]:
        forward_s, backward_s = zip(*(turn() for _ in range(turns)), strict=True)
        return sum(forward_s) / turns, sum(backward_s) / turns

    block_s = QUOTA_S if has_quota() else BLOCK_S
    turn_s = max(sum(run(IN_FLIGHT)), TINY_S)
    min_runs = MIN_RUNS if max(turn_s, block_s) < MOST_S / MIN_RUNS else LONG_RUNS
    forward, backward = repeat(lambda: run(math.ceil(block_s / turn_s)), min_runs, MOST_S)
    return forward.median_s, backward.median_s
