"""A torch device of this process, under its name in the plan."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class LocalDevice:
    """A torch device under its name in the plan.

    Attributes:
        slowdown: emulated: each action takes this many times as long, by waiting after it.
        num_threads: torch threads of its worker.
        type: the key of measured times on it.
        memory_bytes: the memory that may be used, if limited.
        hard: whether the kernel refuses what is beyond that.
    """

    name: str
    device: torch.device
    slowdown: float = 1.0
    num_threads: int = 1
    type: str = "cpu"
    memory_bytes: float | None = None
    hard: bool = False
