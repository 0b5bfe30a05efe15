"""Seconds of a call: the median of repeated blocks of calls, until it is known well enough."""

import math
import time
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import timer
from torch.utils.benchmark.utils.common import set_torch_threads

from skyfx.runtime import pytree

BLOCK_S, CLOCK_SHARE = 0.0005, 1e-3
"""A block of calls takes at least BLOCK_S, and reading the clock (on an accelerator, waiting for
it) at most CLOCK_SHARE of that."""

MOST_S, MIN_RUNS = 0.01, 5
"""Blocks are repeated at least MIN_RUNS times, then until the median is settled or MOST_S is up."""

LONG_S, LONG_RUNS = 0.02, 3
"""A call that takes LONG_S is steady, and LONG_RUNS of it are enough."""

SETTLED = 0.02
"""A median is settled when its standard error, estimated from the quartiles, is 2 % of it. A stage
has many operators, and their errors do not add up but by their squares."""

Gradients = Callable[[], Sequence[Tensor | None]]
"""Computes the gradients of some tensors, None where none flows."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of a call: the median, and the interquartile range relative to it."""

    median_s: float
    spread: float


def timed(call: Callable[[], Any], num_threads: int) -> Timing:
    """Time a call after it has been made once; for an accelerator, the timer synchronises."""
    timed_calls = timeit.Timer(call, timer=timer)
    with set_torch_threads(num_threads):
        runs, number = LONG_RUNS, 1
        if timed_calls.timeit(1) < LONG_S:
            timed_calls.timeit(2)  # malloc's heap still grows in these
            block_s = max(BLOCK_S, timed_calls.timeit(0) / CLOCK_SHARE)
            while (took_s := timed_calls.timeit(number)) < block_s:
                number = math.ceil(number * min(10.0, 1.1 * block_s / max(took_s, 1e-9)))
            runs = MIN_RUNS
        (found,) = repeat(lambda: (timed_calls.timeit(number) / number,), runs, MOST_S)
    return found


def repeat(block: Callable[[], Sequence[float]], min_runs: int, most_s: float) -> list[Timing]:
    """Repeat a block until all medians of what it returns are settled.

    Args:
        block: runs once, and returns one or several times, each in seconds.
        min_runs: how often it runs at least.
        most_s: seconds after which it is not repeated again.

    Returns:
        The timing of each.
    """
    began_s, samples = time.perf_counter(), list[Sequence[float]]()
    while True:
        samples.append(block())
        found = [_timing(column) for column in zip(*samples, strict=True)]
        settled = all(one.spread <= SETTLED * math.sqrt(len(samples)) for one in found)
        if len(samples) >= min_runs and (settled or time.perf_counter() - began_s >= most_s):
            return found


def _timing(seconds: Sequence[float]) -> Timing:
    middle = median(seconds)
    if len(seconds) < 2 or not middle:
        return Timing(middle, 0.0)
    low, _, high = quantiles(seconds, n=4, method="inclusive")
    return Timing(middle, (high - low) / middle)


@cache
def entry_s(device: torch.device, num_threads: int) -> float:
    """What a call of autograd's engine takes itself, however little there is to compute.

    A stage calls it once for all its operators, a measurement once for each.
    """
    leaf = torch.ones(1, device=device, requires_grad=True)
    gradient = torch.ones_like(leaf)
    call = partial(torch.autograd.grad, [leaf], [leaf], [gradient], retain_graph=True)
    return timed(call, num_threads).median_s


def gradients_of(outputs: Any, tensors: Sequence[Tensor]) -> Gradients | None:
    """A call that computes the gradients of these tensors, and can be repeated.

    None where no gradient flows.
    """
    found = [x for x in pytree.tree_leaves(outputs) if isinstance(x, Tensor) and x.requires_grad]
    if not found or not tensors:
        return None
    ones = [torch.ones_like(x) for x in found]
    return partial(torch.autograd.grad, found, tensors, ones, retain_graph=True, allow_unused=True)


def backward_of(gradients: Gradients, tensors: Sequence[Tensor]) -> Callable[[], None]:
    """A call that also adds each parameter's gradient to an earlier one.

    Every micro-batch but the first does that. No `.grad` is touched.
    """
    sums = [torch.zeros_like(x) if isinstance(x, nn.Parameter) else None for x in tensors]

    def backward() -> None:
        for sum_, gradient in zip(sums, gradients(), strict=True):
            if sum_ is not None and gradient is not None:
                sum_.add_(gradient)

    return backward
