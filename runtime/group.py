"""The processes of one job, and what they tell each other before and after the steps."""

import atexit
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor

from skyfx.runtime.allocator import keep_freed
from skyfx.solver.errors import PlanError

__all__: list[str] = ["Group"]

T = TypeVar("T")

TIMEOUT = timedelta(minutes=5)
"""After which a peer that has gone silent counts as lost; torch's own is half an hour."""


@dataclass(frozen=True, slots=True)
class Group:
    """A gloo process group, which moves tensors between CPUs; this process is its `rank`."""

    processes: dist.ProcessGroup
    rank: int
    size: int

    @staticmethod
    def is_launched() -> bool:
        """Whether a launcher such as torchrun started this process, or a group is there already."""
        return dist.is_initialized() or {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()

    @classmethod
    def joined(cls, timeout: timedelta = TIMEOUT) -> "Group":
        """The group of all processes of the job, which has to be called for in all of them.

        A process that no launcher has started is a job of its own.
        """
        keep_freed()
        if not dist.is_initialized():
            if cls.is_launched():
                dist.init_process_group("gloo", timeout=timeout)
            else:
                store = dist.HashStore()  # type: ignore[attr-defined]
                dist.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=timeout)
            atexit.register(_left)
        processes = dist.group.WORLD
        assert processes is not None
        if dist.get_backend(processes) != "gloo":  # the user's own, for GPUs
            processes = dist.new_group(backend="gloo", timeout=timeout)
        return cls(processes, dist.get_rank(processes), dist.get_world_size(processes))

    def another(self, timeout: timedelta) -> "Group":
        """The same processes, whose messages do not mix with ours; all have to call it."""
        ranks = dist.get_process_group_ranks(self.processes)
        processes = dist.new_group(ranks, backend="gloo", timeout=timeout)
        return Group(processes, self.rank, self.size)

    def gather(self, mine: bytes) -> list[bytes]:
        """What every process says, by rank; all have to call it."""
        lengths = [torch.zeros(1, dtype=torch.long) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(mine)]), group=self.processes)
        longest = max(int(length) for length in lengths)
        texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(texts, _as_tensor(mine.ljust(longest)), group=self.processes)
        return [bytes(x.numpy())[: int(n)] for x, n in zip(texts, lengths, strict=True)]

    def told(self, mine: T, kind: type[T]) -> list[T]:
        """What every process says, by rank, as JSON of this type; all have to call it."""
        return [msgspec.json.decode(x, type=kind) for x in self.gather(msgspec.json.encode(mine))]

    def merged(self, mine: dict[str, T], kind: type[dict[str, T]]) -> dict[str, T]:
        """What all processes say by name, in one; all have to call it."""
        return {name: value for said in self.told(mine, kind) for name, value in said.items()}

    def first(self, make: Callable[[], bytes]) -> bytes:
        """What the first process makes, in all of them; a failure of its own too.

        Raises:
            PlanError: it failed there; the first process raises its own error.
        """
        said, failure = b"", None
        if self.rank == 0:
            try:
                said = b"+" + make()
            except BaseException as error:
                failure = error
                said = f"-{error}".encode()
        length = torch.tensor([len(said)])
        dist.broadcast(length, group=self.processes, group_src=0)
        text = _as_tensor(said) if said else torch.zeros(int(length), dtype=torch.uint8)
        dist.broadcast(text, group=self.processes, group_src=0)
        if failure is not None:
            raise failure
        found = bytes(text.numpy())
        if found.startswith(b"-"):
            raise PlanError(found[1:].decode())
        return found[1:]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        dist.all_reduce(values, group=self.processes)
        return values

    def from_rank(self, rank: int, message: Tensor) -> Tensor:
        """The message of this rank, in place of each other's."""
        dist.broadcast(message, group=self.processes, group_src=rank)
        return message


def _as_tensor(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def _left() -> None:
    """Leave the group; its threads, if they outlive the interpreter, abort the process."""
    if dist.is_initialized():
        dist.destroy_process_group()
