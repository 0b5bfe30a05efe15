"""How far two runs of the same operators may differ by rounding.

Half of the digits of a number have to agree. Each operator rounds, a sum of n products by about the
square root of n units in the last digit, and the next operators carry that on. So the other half
may be lost: float32 has 23 binary digits, and two results are the same if they differ by no more
than 2^-11.5, which is 3e-4, in parts of the largest number.

A GPU computes products of float32 with fewer digits where torch's settings allow that, as they do
for convolutions by default: 10 in TF32, 7 in bfloat16.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from skyfx.tracing.capture import Capture

UNITS = {"tf32": 2.0**-10, "bf16": 2.0**-7}
"""The last digit of products of float32 on a GPU, in parts of a number, by torch's setting."""


def tolerance(captured: Capture, on_cpu: Sequence[bool] = ()) -> float:
    """In parts of a tensor's largest number; that of the least precise type in the graph.

    Args:
        captured: the model.
        on_cpu: whether each stage is on a CPU, `(num_stages,)`; plain torch is.
    """
    values = (x.meta.get("val") for x in captured.module.graph.nodes)
    types = {x.dtype for x in values if isinstance(x, Tensor)}
    found = rounding(types)
    if torch.float32 in types and not all(on_cpu):
        settings: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
        units = [UNITS[x.fp32_precision] for x in settings if x.fp32_precision in UNITS]
        found = max(found, math.sqrt(max(units, default=0.0)))
    return found


def rounding(types: Collection[torch.dtype]) -> float:
    """In parts of a tensor's largest number, where all is computed in these types."""
    units = [torch.finfo(kind).eps for kind in types if kind.is_floating_point or kind.is_complex]
    return math.sqrt(max(units, default=0.0))
