"""What a call takes, by torch's own benchmark timer."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.benchmark import Timer

__all__: list[str] = ["Timing", "backward_of", "timed", "timed_long"]

MIN_RUN_S = 0.02
"""Least time of each measurement; torch's timer repeats a call until it is reached."""

LONG_RUN_S, LONG_RUNS = 0.06, 3


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of a call: the median, and the interquartile range relative to it."""

    median_s: float
    spread: float


def timed(call: Callable[[], Any], num_threads: int) -> Timing:
    """Time a call; the timer warms up, synchronises and repeats."""
    timer = Timer("call()", globals={"call": call}, num_threads=num_threads)
    found = timer.blocked_autorange(min_run_time=MIN_RUN_S)
    return Timing(float(found.median), float(found.iqr / found.median) if found.median else 0.0)


def timed_long(call: Callable[[], Any], num_threads: int) -> Timing:
    """Time a call as a stage sees it: runs of at least 60 ms, averaged.

    A container that gets part of a core runs at full speed for some milliseconds and then not at
    all; only what takes longer than that shows its speed.
    """
    timer = Timer("call()", globals={"call": call}, num_threads=num_threads)
    once_s = timer.timeit(1).mean
    number = max(1, math.ceil(LONG_RUN_S / max(once_s, 1e-9)))
    means = sorted(timer.timeit(number).mean for _ in range(LONG_RUNS))
    middle = means[LONG_RUNS // 2]
    return Timing(middle, (means[-1] - means[0]) / middle if middle else 0.0)


def backward_of(outputs: Any, tensors: Sequence[Tensor]) -> Callable[[], None] | None:
    """A call that runs backward from the outputs to the tensors, and can be repeated.

    A parameter's gradient is added to an earlier one, as every micro-batch but the first does; no
    `.grad` is touched. None where no gradient flows.
    """
    found = [x for x in pytree.tree_leaves(outputs) if isinstance(x, Tensor) and x.requires_grad]
    if not found or not tensors:
        return None
    gradients = [torch.ones_like(x) for x in found]
    sums = [torch.zeros_like(x) if isinstance(x, nn.Parameter) else None for x in tensors]

    def backward() -> None:
        computed = torch.autograd.grad(
            found, tensors, gradients, retain_graph=True, allow_unused=True
        )
        for sum_, gradient in zip(sums, computed, strict=True):
            if sum_ is not None and gradient is not None:
                sum_.add_(gradient)

    return backward
