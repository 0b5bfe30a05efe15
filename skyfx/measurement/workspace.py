"""Memory that a call takes for itself and gives back before it ends.

A convolution copies what it reads into another layout, attention keeps sums: nobody sees those
bytes in what goes in and comes out, but they are in use at the peak.
"""

from collections.abc import Callable
from typing import Any

import torch

from skyfx.tracing.torch_internals import allocations_of


def workspace_bytes(call: Callable[[], Any], device: torch.device) -> float:
    """The most bytes that `call` has in use on `device`, beyond what it returns."""
    if device.type == "meta":
        return 0.0
    if device.type != "cpu":
        torch.accelerator.reset_peak_memory_stats(device)
        returned = call()
        most = torch.accelerator.max_memory_allocated(device)
        left = torch.accelerator.memory_allocated(device)
        del returned
        return float(most - left)
    returned, sizes = allocations_of(call)
    del returned
    in_use = most = 0
    for size in sizes:
        in_use += size
        most = max(most, in_use)
    return float(most - in_use)
