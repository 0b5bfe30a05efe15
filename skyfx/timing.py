"""What a call takes, by torch's own benchmark timer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.benchmark import Timer

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
    """Time a call; the timer warms up, synchronises and repeats."""
    timer = Timer("call()", globals={"call": call}, num_threads=num_threads)
    once_s = timer.timeit(1).mean  # after two calls, in which malloc's heap grows
    runs = MIN_RUNS if once_s < LONG_S else LONG_RUNS
    least_s = (runs - 0.5) * once_s  # so that runs a little faster are not followed by another
    found = timer.blocked_autorange(min_run_time=max(MIN_RUN_S, least_s))
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
