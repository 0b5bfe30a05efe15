"""What a call takes, by torch's own benchmark timer."""

import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Measurement, Timer, timer
from torch.utils.benchmark.utils.common import TaskSpec, set_torch_threads

from skyfx.runtime import pytree

__all__: list[str] = ["Timing", "backward_of", "entry_s", "gradients_of", "timed"]

MIN_RUN_S, MIN_RUNS = 0.02, 5
"""Least time of each measurement, and least times; torch's timer repeats a call until then."""

LONG_S, LONG_RUNS = 0.02, 3
"""A call that takes as long as this is steady, and repeated less often."""

Gradients = Callable[[], Sequence[Tensor | None]]
"""Computes the gradients of some tensors, None where none flows."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of a call: the median, and the interquartile range relative to it."""

    median_s: float
    spread: float


def timed(call: Callable[[], Any], num_threads: int) -> Timing:
    """Time a call after it has been made once; for an accelerator, the timer synchronises."""
    plain = timeit.Timer(call, timer=timer)
    with set_torch_threads(num_threads):
        if plain.timeit(1) >= LONG_S:
            times = plain.repeat(LONG_RUNS, 1)
            found = Measurement(1, times, TaskSpec("", "", num_threads=num_threads))
            return _timing(found)
    repeated = Timer("call()", globals={"call": call}, num_threads=num_threads)
    once_s = repeated.timeit(1).mean  # after two calls more, in which malloc's heap grows
    least_s = (MIN_RUNS - 0.5) * once_s  # so that runs a little faster are not followed by another
    return _timing(repeated.blocked_autorange(min_run_time=max(MIN_RUN_S, least_s)))


def _timing(found: Measurement) -> Timing:
    return Timing(float(found.median), float(found.iqr / found.median) if found.median else 0.0)


@cache
def entry_s(device: torch.device, num_threads: int) -> float:
    """What a call of autograd's engine takes itself, whatever there is to compute.

    A stage calls it once for all its operators, a measurement for each.
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
    """Likewise, from such a call, one that adds a parameter's gradient to an earlier one.

    That is what every micro-batch but the first does; no `.grad` is touched.
    """
    sums = [torch.zeros_like(x) if isinstance(x, nn.Parameter) else None for x in tensors]

    def backward() -> None:
        for sum_, gradient in zip(sums, gradients(), strict=True):
            if sum_ is not None and gradient is not None:
                sum_.add_(gradient)

    return backward
