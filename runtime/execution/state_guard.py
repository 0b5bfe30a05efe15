"""Running a model to look at it, and leaving it as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from skyfx.runtime.rng.generator_lending import others_kept

__all__: list[str] = ["undisturbed"]


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Buffers and random generators as they were, once it is done."""
    before = [
        (owner, name, buffer, buffer.clone())
        for owner in module.modules()
        for name, buffer in owner.named_buffers(recurse=False)
    ]
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), others_kept():
            yield
    finally:
        with torch.no_grad():
            for owner, name, buffer, value in before:
                setattr(owner, name, buffer)
                buffer.copy_(value)
