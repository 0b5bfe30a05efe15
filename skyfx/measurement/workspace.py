"""Memory that a call takes for itself and gives back before it ends.

A convolution copies what it reads into another layout, attention keeps sums: nobody sees those
bytes in what goes in and comes out, but they are in use at the peak.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import profiler_legacy

__all__: list[str] = ["workspace_bytes"]


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
    # Of torch's profilers the one that tells of each allocation in its turn, and prints nothing.
    engine: Any = torch.autograd
    profiles: Any = profiler_legacy.profile
    engine._enable_profiler_legacy(profiles(profile_memory=True).config())
    try:
        returned = call()
    finally:
        records = engine._disable_profiler_legacy()
    del returned
    in_use = most = 0
    for record in (record for of_thread in records for record in of_thread):
        if record.kind() == "memory_alloc":
            in_use += record.cpu_memory_usage()
            most = max(most, in_use)
    return float(most - in_use)
