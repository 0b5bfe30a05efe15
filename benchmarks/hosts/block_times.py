"""What somebody who cuts by hand measures of the blocks, one after another on one device."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.hosts.manual_splits import Weights
from benchmarks.hosts.models import Subject

__all__: list[str] = ["MICROBATCHES", "States", "states_of", "weighed"]

MICROBATCHES = 8
RUNS = 5

States = Sequence[tuple[Tensor, ...]]
"""What goes into each block, and what comes out of the last, `(num_blocks + 1,)`."""


@dataclass(frozen=True, slots=True)
class _Block:
    """What was measured of one."""

    size_bytes: float
    parameters: float
    time_s: float


def states_of(subject: Subject) -> States:
    """Of the first micro-batch; values that need a gradient say so."""
    state: tuple[Tensor, ...] = (subject.batch.chunk(MICROBATCHES)[0],)
    states = [state]
    for block in subject.blocks_of(subject.model):
        state = _tuple(block(*state))
        states.append(tuple(x.detach().requires_grad_(x.requires_grad) for x in state))
    return states


def weighed(subject: Subject, states: States) -> Weights:
    """Measure the blocks on this device, for one micro-batch."""
    found = [
        _measured(block, state)
        for block, state in zip(subject.blocks_of(subject.model), states, strict=False)
    ]
    subject.model.zero_grad()
    return Weights(
        size_bytes=[one.size_bytes for one in found],
        parameters=[one.parameters for one in found],
        time_s=[one.time_s for one in found],
    )


def _measured(block: nn.Module, state: tuple[Tensor, ...]) -> _Block:
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    times = []
    for _ in range(RUNS):
        kept.clear()
        began = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            outputs = _tuple(block(*(x.detach().requires_grad_(x.requires_grad) for x in state)))
        flowing = [x for x in outputs if x.requires_grad]
        torch.autograd.backward(flowing, [torch.ones_like(x) for x in flowing])
        times.append(time.perf_counter() - began)
    parameters = list(block.parameters())
    own = {p.untyped_storage().data_ptr() for p in parameters}
    saved = sum(size for place, size in kept.items() if place not in own)
    return _Block(
        size_bytes=2 * sum(p.nbytes for p in parameters) + saved,
        parameters=sum(p.numel() for p in parameters),
        time_s=median(times),
    )


def _tuple(found: Any) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)
