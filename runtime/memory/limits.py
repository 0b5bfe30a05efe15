"""What devices may use of their memory, enforced: an allocation beyond it fails, in its stage.

On a GPU torch's allocator is given its share. On CPUs the kernel refuses: to a process that has a
limit on its data (`RLIMIT_DATA`, on Linux) it gives no more pages than that. The limit is what the
process holds besides the model, and what its CPUs may use together. What the program allocates
later, such as data, is counted as well, and each thread's stack as far as it is reserved.
"""

import resource
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from skyfx.runtime.memory.malloc import free_bytes_of_heap

__all__: list[str] = ["MemoryLimits"]

STACKS_BYTES = 2**27
"""Reserved, and hardly touched, by the threads of stages, OpenMP, autograd and transport."""


class MemoryLimits:
    """Limits that hold from now on until they are lifted."""

    def __init__(
        self,
        cpu_bytes: float | None,
        gpu_bytes: Mapping[torch.device, float],
        model: Iterable[Tensor],
    ) -> None:
        """Have them enforced; those of a process that has others already are added to them.

        Args:
            cpu_bytes: what the pipeline may use of the CPUs' memory in this process, if limited.
            gpu_bytes: what it may use of each GPU's.
            model: its tensors, of which those that are here already count to that.
        """
        self._gpus = [device for device in gpu_bytes if device.type == "cuda"]
        self._cpu_bytes = 0
        tensors = list(model)
        for device in self._gpus:
            total = torch.cuda.get_device_properties(device).total_memory
            besides = torch.cuda.memory_allocated(device) - _held_bytes(tensors, device)
            share = min(1.0, (gpu_bytes[device] + besides) / total)
            torch.cuda.set_per_process_memory_fraction(share, device)
        if cpu_bytes is not None and sys.platform == "linux":
            self._cpu_bytes = int(cpu_bytes)
            _Data.allow(self._cpu_bytes, _held_bytes(tensors, torch.device("cpu")))

    def lift(self) -> None:
        """Let the process have what it had before; once is enough."""
        for device in self._gpus:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
        self._gpus = []
        if self._cpu_bytes:
            _Data.give_back(self._cpu_bytes)
            self._cpu_bytes = 0


class _Data:
    """The process's own limit, which all of its pipelines share."""

    allowed: ClassVar[list[int]] = []
    besides_bytes: ClassVar[int] = 0
    before: ClassVar[tuple[int, int]] = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)

    @classmethod
    def allow(cls, size_bytes: int, held_bytes: int) -> None:
        if not cls.allowed:
            cls.before = resource.getrlimit(resource.RLIMIT_DATA)
            cls.besides_bytes = _data_bytes() - free_bytes_of_heap() - held_bytes
            cls.besides_bytes += STACKS_BYTES
        cls.allowed.append(size_bytes)
        cls._set()

    @classmethod
    def give_back(cls, size_bytes: int) -> None:
        cls.allowed.remove(size_bytes)
        cls._set()

    @classmethod
    def _set(cls) -> None:
        soft, hard = cls.before
        if cls.allowed:
            wanted = cls.besides_bytes + sum(cls.allowed)
            soft = wanted if soft == resource.RLIM_INFINITY else min(wanted, soft)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_bytes() -> int:
    """What the kernel counts as this process's data."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status does not say how much data this process has")


def _held_bytes(tensors: Iterable[Tensor], device: torch.device) -> int:
    """Bytes of their memory on a device, each once."""
    storages = [x.untyped_storage() for x in tensors if x.device == device]
    return sum({one.data_ptr(): one.nbytes() for one in storages}.values())
