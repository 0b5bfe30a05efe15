"""What an optimizer keeps: bytes of its state per byte of the parameters that it trains."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from skyfx.passes.planner_graph import num_bytes

OptimizerFactory = Callable[[Any], torch.optim.Optimizer]
"""Makes an optimizer of a list of parameters: its class, or a function."""

SIZES = (64, 128)
"""Rows and columns of the matrices that are trained for a step: what does not grow is no part of
the ratio, and optimizers in 8 bits keep the state of less than 4096 numbers in another format."""


RATIO_OF_ADAM = 2.0


def state_ratio(optimizer: OptimizerFactory | None, ratio: float | None, model: nn.Module) -> float:
    """The ratio that is given, or that of the optimizer, or else Adam's.

    An optimizer's is seen in one step on small matrices of each dtype that trains in the model;
    each dtype counts by its bytes.

    Raises:
        ValueError: both are given, or the optimizer cannot make a step by itself.
    """
    if optimizer is None:
        return RATIO_OF_ADAM if ratio is None else ratio
    if ratio is not None:
        raise ValueError("optimizer and optimizer_state_ratio: found both, expected one of them")
    trained = defaultdict[torch.dtype, int](int)
    for each in model.parameters():
        if each.requires_grad:
            trained[each.dtype] += num_bytes(each)
    total = sum(trained.values())
    ratios = {dtype: _ratio(optimizer, dtype) for dtype in trained}
    return sum(ratios[dtype] * size / total for dtype, size in trained.items()) if total else 0.0


def _ratio(optimizer: OptimizerFactory, dtype: torch.dtype) -> float:
    small, large = (_kept_bytes(optimizer, dtype, size) for size in SIZES)
    grown = (SIZES[1] ** 2 - SIZES[0] ** 2) * dtype.itemsize
    return max(0, large - small) / grown


def _kept_bytes(optimizer: OptimizerFactory, dtype: torch.dtype, size: int) -> int:
    """Of the state for one square matrix."""
    matrix = nn.Parameter(torch.ones(size, size, dtype=dtype))
    matrix.grad = torch.ones_like(matrix)
    try:
        made = optimizer([matrix])
        made.step()
        return sum(num_bytes(state) for state in made.state.values())
    except Exception as error:
        name = getattr(optimizer, "__name__", type(optimizer).__name__)
        raise ValueError(
            f"optimizer: {name} cannot make a step for one parameter of {dtype} "
            f"({type(error).__name__}: {error}); give its class, or a function of a list of "
            "parameters, or optimizer_state_ratio"
        ) from error
