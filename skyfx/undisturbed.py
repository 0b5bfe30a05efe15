"""Running a model to look at it, and leaving it as it was."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch
from torch import nn

__all__: list[str] = ["undisturbed"]


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Buffers and random generators as they were, once it is done."""
    python, arrays = random.getstate(), numpy.random.get_state(legacy=False)
    before = [
        (owner, name, buffer, buffer.clone())
        for owner in module.modules()
        for name, buffer in owner.named_buffers(recurse=False)
    ]
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(arrays)
        with torch.no_grad():
            for owner, name, buffer, value in before:
                setattr(owner, name, buffer)
                buffer.copy_(value)
