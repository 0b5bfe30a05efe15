"""A torch device of this process, under the name that the plan gives it."""

from dataclasses import dataclass

import torch

__all__: list[str] = ["LocalDevice"]


@dataclass(frozen=True, slots=True)
class LocalDevice:
    """Where a stage runs: a torch device under the name that the plan gives it.

    `slowdown` is emulated by waiting, after each action, as many times longer as it took. `type` is
    what times on it are keyed by, `memory_bytes` what may be used of it, if that is limited.
    """

    name: str
    device: torch.device
    slowdown: float = 1.0
    num_threads: int = 1
    type: str = "cpu"
    memory_bytes: float | None = None
