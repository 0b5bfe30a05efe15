"""The processes of one job, and the messages between them before and after the steps."""

import atexit
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor

from skyfx.runtime.distributed.heartbeat import SILENT_S, Heartbeat
from skyfx.runtime.distributed.rendezvous import rendezvous
from skyfx.runtime.memory.malloc import keep_freed
from skyfx.solver import errors
from skyfx.solver.errors import StageError, WorkerLostError

T = TypeVar("T")

TIMEOUT = timedelta(hours=1)
"""After this time torch gives up on a message. The heartbeat finds a lost peer within seconds."""

CLOSING = 2**30
"""A tag that no message has."""


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """A gloo process group, which moves tensors between CPUs.

    Every process has to call a collective: all methods but `send`, `receive` and `report_failure`.

    Attributes:
        processes: torch's own group; None for a process that is alone and outside torch's groups.
        rank: the number of this process.
        size: the number of processes.
        heartbeat: knows which processes are alive; None in a group of one.
        counts: how often each call was made since the last pipeline was handed over.
    """

    processes: dist.ProcessGroup | None
    rank: int
    size: int
    heartbeat: Heartbeat | None
    counts: Counter[str] = field(default_factory=Counter, compare=False)

    @staticmethod
    def is_launched() -> bool:
        """Whether a launcher such as torchrun started this process, or torch has a group."""
        return dist.is_initialized() or {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()

    @classmethod
    def alone(cls) -> "ProcessGroup":
        """A group of this process only; it sends nothing."""
        return cls(None, 0, 1, None)

    @classmethod
    def join(cls) -> "ProcessGroup":
        """The group of all processes of the job.

        A process that no launcher has started is a job of its own.

        Raises:
            WorkerLostError: some of them have not come.
        """
        keep_freed()
        if not dist.is_initialized():
            store, rank, size = rendezvous() if cls.is_launched() else (dist.HashStore(), 0, 1)  # type: ignore[attr-defined]
            store.set_timeout(TIMEOUT)
            dist.init_process_group(
                "gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT
            )
            atexit.register(_leave)
        world = dist.group.WORLD
        assert world is not None
        if world not in _groups:
            _groups.clear()
            _groups[world] = cls._of(world)
        return _groups[world]

    @classmethod
    def _of(cls, world: dist.ProcessGroup) -> "ProcessGroup":
        rank, size = dist.get_rank(world), dist.get_world_size(world)
        if size == 1:
            return cls(world, rank, size, None)
        # Our own: the program's collectives, such as a barrier, must not meet ours.
        processes = dist.new_group(backend="gloo", timeout=TIMEOUT)
        own = processes.get_group_store().clone()
        store = dist.PrefixStore("skyfx", own)  # type: ignore[attr-defined]
        heartbeat = Heartbeat(store, rank, size)
        group = cls(processes, rank, size, heartbeat)
        group._close_with_heartbeat()
        if dist.get_backend(world) == "gloo":  # else it is for GPUs
            heartbeat.closing.append(lambda: _close_connections(world, rank, size))
        dist.barrier(group=processes)  # the first beat of each process is in the store
        heartbeat.start()
        return group

    @contextmanager
    def raising_lost_peers(self) -> Iterator[None]:
        """Turn a broken connection into an error that names the process that is lost.

        Raises:
            WorkerLostError: another process is gone or silent.
            StageError: a stage of another process has failed.
        """
        try:
            if self.heartbeat is not None and (known := self.heartbeat.lost()):
                raise known
            yield
        except RuntimeError as error:  # of torch.distributed
            if self.heartbeat is None:
                raise
            # A broken connection is seen at once; which process broke it, only after its silence.
            if (lost := self.heartbeat.lost(wait_s=2 * SILENT_S)) is not None:
                raise lost from None
            raise WorkerLostError(
                f"a connection between processes broke, although all of them answer: {error}. "
                "Start the job again from the last checkpoint"
            ) from error

    def report_failure(self, error: StageError) -> None:
        """Tell the other processes that a stage of this one has failed, if it was the first."""
        if self.heartbeat is not None and self.heartbeat.lost() is None:
            self.heartbeat.fail(str(error))

    def duplicate(self) -> "ProcessGroup":
        """A group of the same processes, whose messages do not mix with those of this one."""
        if self.size == 1:
            return self
        self.sum(torch.zeros(1))  # to connect, torch waits for all: they are here after this
        ranks = dist.get_process_group_ranks(self.processes)
        processes = dist.new_group(ranks, backend="gloo", timeout=TIMEOUT)
        group = ProcessGroup(processes, self.rank, self.size, self.heartbeat)
        group._close_with_heartbeat()
        return group

    def run_together(self, action: Callable[[], Any]) -> list[Any]:
        """Run an action in every process: it succeeds in all, or all raise.

        A process whose own action fails raises that error. The others raise an error of the same
        class, which names the lowest rank that failed; where the class is neither skyfx's own nor
        a common one of Python's, they raise its nearest base class of these, or `SkyfxError`.

        Args:
            action: returns a value that JSON can represent.

        Returns:
            The values, by rank.
        """
        failure: BaseException | None = None
        try:
            text = json.dumps({"value": action()})
        except BaseException as error:  # also Ctrl-C: the others wait for this process
            failure, text = error, json.dumps({"failure": describe(error)})
        outcomes = [json.loads(each) for each in self.all_gather(text.encode())]
        if failure is not None:
            raise failure
        for rank, outcome in enumerate(outcomes):
            if "failure" in outcome:
                raise restore(rank, *outcome["failure"])
        return [outcome["value"] for outcome in outcomes]

    def barrier_after(self, action: Callable[[], T]) -> T:
        """Run an action in every process as `run_together`; returns this process's own result."""
        results: list[T] = []
        self.run_together(lambda: results.append(action()))
        return results[0]

    def broadcast_from_first(self, action: Callable[[], Any]) -> Any:
        """Run an action in the first process as `run_together`; all return its value."""
        return self.run_together(lambda: action() if self.rank == 0 else None)[0]

    def all_gather(self, mine: bytes) -> list[bytes]:
        """The bytes of every process, by rank."""
        if self.size == 1:
            return [mine]
        lengths = [length for (length,) in self.gather_numbers([len(mine)])]
        longest = max(lengths)
        with self.raising_lost_peers():
            texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
            sent = torch.frombuffer(bytearray(mine.ljust(longest)), dtype=torch.uint8)
            dist.all_gather(texts, sent, group=self.processes)
        return [bytes(x.numpy())[:n] for x, n in zip(texts, lengths, strict=True)]

    def gather_numbers(self, mine: Sequence[int]) -> list[list[int]]:
        """As many numbers of every process, by rank, in one message."""
        rows = [torch.zeros(len(mine), dtype=torch.long) for _ in range(self.size)]
        with self.raising_lost_peers():
            dist.all_gather(rows, torch.tensor(mine, dtype=torch.long), group=self.processes)
        return [row.tolist() for row in rows]

    def all_gather_json(self, mine: T, kind: type[T]) -> list[T]:
        """The values of every process, by rank, sent as JSON of this type."""
        sent = self.all_gather(msgspec.json.encode(mine))
        return [msgspec.json.decode(text, type=kind) for text in sent]

    def all_gather_dict(self, mine: dict[str, T], kind: type[dict[str, T]]) -> dict[str, T]:
        """The entries of every process, in one dict."""
        parts = self.all_gather_json(mine, kind)
        return {name: value for part in parts for name, value in part.items()}

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        with self.raising_lost_peers():
            dist.all_reduce(values, group=self.processes)
        return values

    def broadcast(self, rank: int, message: Tensor) -> Tensor:
        """The message of this rank, written over the messages of all others."""
        with self.raising_lost_peers():
            dist.broadcast(message, group=self.processes, group_src=rank)
        return message

    def send(self, message: Tensor, rank: int) -> None:
        """Send a message to one process, which calls `receive`; an empty one is not sent."""
        if message.numel():
            with self.raising_lost_peers():
                dist.send(message, group=self.processes, group_dst=rank)

    def receive(self, message: Tensor, rank: int) -> None:
        """Receive a message from one process; an empty one is not sent."""
        if message.numel():
            with self.raising_lost_peers():
                dist.recv(message, group=self.processes, group_src=rank)

    def _close_with_heartbeat(self) -> None:
        """Close the connections when the heartbeat finds a loss."""
        if self.heartbeat is not None:
            self.heartbeat.closing.append(
                lambda: _close_connections(self.processes, self.rank, self.size)
            )


def as_bytes(tensor: Tensor) -> Tensor:
    """The tensor's own memory if it is contiguous and on the CPU, else a copy; for any dtype."""
    return tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)


# An error is sent as the name of its class and its text. Only these classes are ever made from a
# name; nothing is unpickled or evaluated.
_BUILTINS = (MemoryError, NotImplementedError, OSError, RuntimeError, TypeError, ValueError)

_CLASSES: dict[str, type[Exception]] = {
    **{name: getattr(errors, name) for name in errors.__all__},
    **{kind.__name__: kind for kind in _BUILTINS},
}


def describe(error: BaseException) -> tuple[str, str]:
    """The name of the nearest listed class, and the text; it names the class if that is another."""
    nearest = next(
        (kind for kind in type(error).__mro__ if _CLASSES.get(kind.__name__) is kind),
        errors.SkyfxError,
    )
    own = "" if type(error) is nearest else type(error).__name__
    return nearest.__name__, ": ".join(part for part in (own, str(error)) if part)


def restore(rank: int, name: str, text: str) -> Exception:
    """The error of another process, from what `describe` returned there."""
    return _CLASSES[name](f"rank {rank}: {text}")


_groups: dict[dist.ProcessGroup, ProcessGroup] = {}
"""The group of torch's present world group: one heartbeat per process."""


def _close_connections(processes: dist.ProcessGroup | None, rank: int, size: int) -> None:
    """Close all connections of this process, so that nobody waits for a message any more.

    gloo closes a connection when a wait on it times out; aborting a group has no effect there.
    """
    for peer in range(size):
        if peer != rank:
            with suppress(RuntimeError):
                never = dist.irecv(torch.zeros(1), group=processes, group_src=peer, tag=CLOSING)
                never.wait(timedelta(milliseconds=50))  # type: ignore[union-attr]


def _leave() -> None:
    """Leave the group; its threads, if they outlive the interpreter, abort the process."""
    for group in _groups.values():
        if group.heartbeat is not None:
            group.heartbeat.leave()
    if dist.is_initialized():
        dist.destroy_process_group()
