"""Floating point operations of a call, by torch's own counter.

It has formulas for products of matrices, convolutions and attention; what else there is counts 0.
Its formula for attention is used for the CPU's kernel as well, which it does not know by itself.
"""

import logging
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

T = TypeVar("T")

logger = logging.getLogger(__name__)


def _attention(formula: Callable[..., Any], num_shapes: int) -> Callable[..., int]:
    """A formula of so many shapes, which the counter gives in the place of tensors."""
    return lambda *args, **_: int(formula(*args[:num_shapes]))


ON_CPU: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention(sdpa_flop_count, 3),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention(
        sdpa_backward_flop_count, 4
    ),
}
"""Formulas for kernels that torch's counter has none for."""


def counted(call: Callable[[], T]) -> tuple[T, int]:
    """What a call returns, and its operations; 0 where they cannot be counted."""
    try:
        with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
            returned = call()
        return returned, int(counter.get_total_flops())
    except Exception as error:  # a formula may refuse shapes, and a region the counter
        logger.info("operations are not counted: %s", error)
        if "torch._dynamo" in sys.modules:  # else code that compiles itself would fail again
            torch.compiler.reset()
        return call(), 0
