"""Enforced memory limits of devices: a stage that takes more fails, and says so.

On a GPU, torch's allocator gets a share of the memory. On CPUs (of Linux with glibc 2.33 or newer),
each action of a stage ends with a look at what the call has taken (`call_memory`): what is above
the limits fails in that stage, and the next call goes on. No allocation is refused.

A hard limit is another matter: the kernel gives the process no more than it holds besides the model
and its CPUs may use together (`RLIMIT_DATA`). Then later allocations of the program, such as its
data, count as well, and so do the reserved stacks of threads; whoever asks last is refused, be it
Python itself.
"""

import resource
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from skyfx.runtime.memory.call_memory import CallMemory, keep_again, learn_heap
from skyfx.runtime.memory.malloc import heap_usage
from skyfx.runtime.pytree import parts_of

STACKS_BYTES = 2**27
"""Reserved by the threads of stages, OpenMP, autograd and transport, and hardly touched."""


CPU = torch.device("cpu")


class MemoryLimits:
    """Limits that hold until they are lifted."""

    def __init__(
        self,
        cpu_bytes: float | None,
        gpu_bytes: Mapping[torch.device, float],
        model: Iterable[Tensor],
        *,
        state_ratio: float = 0.0,
        hard: bool = False,
    ) -> None:
        """Enforce limits, in addition to those of other pipelines of this process.

        Args:
            cpu_bytes: the CPUs' memory that the pipeline may use in this process, if limited.
            gpu_bytes: the memory of each GPU that it may use.
            model: its tensors; those that are on a device already count to the limit.
            state_ratio: bytes of optimizer state per byte of what trains, as planned.
            hard: whether the kernel refuses allocations beyond the CPUs' memory.
        """
        self._gpus = [device for device in gpu_bytes if device.type == "cuda"]
        self._tensors, self._state_ratio = list(model), state_ratio
        tensors, self._hard_bytes = self._tensors, 0
        self._cpu_bytes: int | None = None
        for device in self._gpus:
            total = torch.cuda.get_device_properties(device).total_memory
            besides = torch.cuda.memory_allocated(device) - _held_bytes(tensors, device)
            share = min(1.0, (gpu_bytes[device] + besides) / total)
            torch.cuda.set_per_process_memory_fraction(share, device)
        if cpu_bytes is not None and sys.platform == "linux":
            self._cpu_bytes = int(cpu_bytes)
            learn_heap()
            if hard:
                self._hard_bytes = self._cpu_bytes
                _Data.allow(self._hard_bytes, _held_bytes(tensors, CPU))

    def call(self) -> CallMemory:
        """The account of a call of the pipeline."""
        return CallMemory(self._cpu_bytes, self._held)

    def lift(self) -> None:
        """Set the limits of before again; further calls do nothing."""
        for device in self._gpus:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
        self._gpus = []
        if self._hard_bytes:
            _Data.allowed.remove(self._hard_bytes)
            _Data.set()
            self._hard_bytes = 0
        if self._cpu_bytes is not None:
            keep_again()
            self._cpu_bytes = None

    def _held(self) -> int:
        """What the model has on the CPUs, with its gradients and the planned optimizer state."""
        trained = [x for x in self._tensors if x.requires_grad]
        gradients = [x.grad for x in trained if x.grad is not None]
        state = self._state_ratio * _held_bytes(trained, CPU) if self._state_ratio else 0.0
        return _held_bytes([*self._tensors, *gradients], CPU) + int(state)


class _Data:
    """The limit on data of this process, which all of its pipelines share."""

    allowed: ClassVar[list[int]] = []
    besides_bytes: ClassVar[int] = 0
    before: ClassVar[tuple[int, int]] = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)

    @classmethod
    def allow(cls, size_bytes: int, held_bytes: int) -> None:
        if not cls.allowed:
            cls.before = resource.getrlimit(resource.RLIMIT_DATA)
            # Free parts of the heap serve what the pipeline is still to allocate, and no more.
            free = min(_free_bytes(), max(0, size_bytes - held_bytes))
            cls.besides_bytes = STACKS_BYTES + _data_bytes() - free - held_bytes
        cls.allowed.append(size_bytes)
        cls.set()

    @classmethod
    def set(cls) -> None:
        soft, hard = cls.before
        if cls.allowed:
            wanted = cls.besides_bytes + sum(cls.allowed)
            soft = wanted if soft == resource.RLIM_INFINITY else min(wanted, soft)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def allowed_bytes() -> float:
    """What this process may still allocate under its limit on data; infinite without one."""
    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if soft == resource.RLIM_INFINITY or sys.platform != "linux":
        return float("inf")
    return float(max(0, soft - _data_bytes() + _free_bytes()))


def _free_bytes() -> int:
    """Bytes that malloc has from the kernel and has not given out; 0 where it does not say."""
    heap = heap_usage()
    return 0 if heap is None else heap.free_bytes


def _data_bytes() -> int:
    """Bytes that the kernel counts as data of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no line VmData, which has the size of this process's data")


def _held_bytes(tensors: Iterable[Tensor], device: torch.device) -> int:
    """Bytes of their storages on a device, each counted once."""
    there = [x for x in tensors if x.device == device]
    parts = [part for x in there for part in parts_of(x)]
    storages = [part.untyped_storage() for part in parts]
    return sum({one.data_ptr(): one.nbytes() for one in storages}.values())
