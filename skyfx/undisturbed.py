"""Running a model to look at it, and leaving it as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__: list[str] = ["undisturbed"]


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Buffers and torch's random generators as they were, once it is done."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
