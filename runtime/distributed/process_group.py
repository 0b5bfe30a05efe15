"""The processes of one job, and what they tell each other before and after the steps."""

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor

from skyfx.runtime.distributed.heartbeat import SILENT_S, Heartbeat
from skyfx.runtime.distributed.rendezvous import rendezvous
from skyfx.runtime.memory.malloc import keep_freed
from skyfx.solver.errors import PlanError, StageError, WorkerLostError

__all__: list[str] = ["ProcessGroup", "as_bytes"]

T = TypeVar("T")

TIMEOUT = timedelta(hours=1)
"""After which torch gives a message up. A lost peer is found by its pulse, in seconds."""

CLOSING = 2**30
"""The tag of messages that never come."""


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """A gloo process group, which moves tensors between CPUs; this process is its `rank`.

    `pulse` tells who is still there; a process that is alone has none.
    """

    processes: dist.ProcessGroup
    rank: int
    size: int
    pulse: Heartbeat | None

    @staticmethod
    def is_launched() -> bool:
        """Whether a launcher such as torchrun started this process, or a group is there already."""
        return dist.is_initialized() or {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()

    @classmethod
    def joined(cls) -> "ProcessGroup":
        """The group of all processes of the job, which has to be called for in all of them.

        A process that no launcher has started is a job of its own.

        Raises:
            WorkerLostError: some of them have not come.
        """
        keep_freed()
        if not dist.is_initialized():
            store, rank, size = (
                rendezvous() if cls.is_launched() else (dist.HashStore(), 0, 1)  # type: ignore[attr-defined]
            )
            store.set_timeout(TIMEOUT)
            dist.init_process_group(
                "gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT
            )
            atexit.register(_left)
        world = dist.group.WORLD
        assert world is not None
        if world not in _joined:
            _joined.clear()
            _joined[world] = cls._of(world)
        return _joined[world]

    @classmethod
    def _of(cls, world: dist.ProcessGroup) -> "ProcessGroup":
        is_gloo = dist.get_backend(world) == "gloo"  # else it is the user's own, for GPUs
        processes = world if is_gloo else dist.new_group(backend="gloo", timeout=TIMEOUT)
        rank, size = dist.get_rank(processes), dist.get_world_size(processes)
        if size == 1:
            return cls(processes, rank, size, None)
        own = processes.get_group_store().clone()  # type: ignore[union-attr]
        store = dist.PrefixStore("skyfx", own)  # type: ignore[attr-defined]
        pulse = Heartbeat(store, rank, size)
        group = cls(processes, rank, size, pulse)
        group._close_with_pulse()
        dist.barrier(group=processes)  # all have said that they are there
        pulse.start()
        return group

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within it, a connection that breaks becomes an error that says who is lost.

        Raises:
            WorkerLostError: another process is gone or silent.
            StageError: one has failed.
        """
        try:
            if self.pulse is not None and (known := self.pulse.lost()):
                raise known
            yield
        except RuntimeError as error:  # of torch.distributed
            if self.pulse is None:
                raise
            # A broken connection is seen at once, who broke it only when he has been silent.
            lost = self.pulse.lost(wait_s=2 * SILENT_S)
            raise lost or WorkerLostError(
                f"a connection between processes broke, though all of them answer: {error}"
            ) from error

    def failed(self, error: StageError) -> None:
        """Tell the other processes that a stage of this one has failed, if it was the first."""
        if self.pulse is not None and self.pulse.lost() is None:
            self.pulse.fail(str(error))

    def another(self) -> "ProcessGroup":
        """The same processes, whose messages do not mix with ours; all have to call it."""
        self.sum(torch.zeros(1))  # all are there: to connect, torch waits for whoever is not
        ranks = dist.get_process_group_ranks(self.processes)
        processes = dist.new_group(ranks, backend="gloo", timeout=TIMEOUT)
        group = ProcessGroup(processes, self.rank, self.size, self.pulse)
        group._close_with_pulse()
        return group

    def gather(self, mine: bytes) -> list[bytes]:
        """What every process says, by rank; all have to call it."""
        lengths = [torch.zeros(1, dtype=torch.long) for _ in range(self.size)]
        with self.watched():
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
        length = self.from_rank(0, torch.tensor([len(said)]))
        text = _as_tensor(said) if said else torch.zeros(int(length), dtype=torch.uint8)
        self.from_rank(0, text)
        if failure is not None:
            raise failure
        found = bytes(text.numpy())
        if found.startswith(b"-"):
            raise PlanError(found[1:].decode())
        return found[1:]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        with self.watched():
            dist.all_reduce(values, group=self.processes)
        return values

    def from_rank(self, rank: int, message: Tensor) -> Tensor:
        """The message of this rank, in place of each other's."""
        with self.watched():
            dist.broadcast(message, group=self.processes, group_src=rank)
        return message

    def send(self, message: Tensor, rank: int) -> None:
        """Send a message to one process, which has to receive it; an empty one is none."""
        if message.numel():
            with self.watched():
                dist.send(message, group=self.processes, group_dst=rank)

    def receive(self, message: Tensor, rank: int) -> None:
        """Receive a message from one process; an empty one is none."""
        if message.numel():
            with self.watched():
                dist.recv(message, group=self.processes, group_src=rank)

    def _close_with_pulse(self) -> None:
        if self.pulse is not None:
            self.pulse.closing.append(lambda: _close(self.processes, self.rank, self.size))


def as_bytes(tensor: Tensor) -> Tensor:
    """The tensor's own memory if it is contiguous and on the CPU, else a copy; for any dtype."""
    return tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)


def _as_tensor(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


_joined: dict[dist.ProcessGroup, ProcessGroup] = {}
"""The group of torch's own, while that lasts: one pulse a process."""


def _close(processes: dist.ProcessGroup, rank: int, size: int) -> None:
    """Close our connections, so that all who wait for a message go.

    gloo does so where a wait for one runs out of time; to abort a group does nothing there.
    """
    for peer in range(size):
        if peer != rank:
            with suppress(RuntimeError):
                never = dist.irecv(torch.zeros(1), group=processes, group_src=peer, tag=CLOSING)
                never.wait(timedelta(milliseconds=50))  # type: ignore[union-attr]


def _left() -> None:
    """Leave the group; its threads, if they outlive the interpreter, abort the process."""
    for group in _joined.values():
        if group.pulse is not None:
            group.pulse.leave()
    if dist.is_initialized():
        dist.destroy_process_group()
