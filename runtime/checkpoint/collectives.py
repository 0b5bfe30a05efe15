"""The processes that save and load together: all succeed, or all fail with one error.

A process that no other one helps is a crew of one.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from skyfx.runtime.distributed.process_group import ProcessGroup, as_bytes
from skyfx.solver.errors import CheckpointError

__all__: list[str] = ["Collectives"]

T = TypeVar("T")

CHUNK = 16 * 2**20
"""Bytes that are sent at a time, and so what a file on its way takes of memory."""


class Collectives:
    """What the processes of a pipeline tell each other about checkpoints.

    Their messages do not mix with those of the pipeline, so that both may be on their way at once.
    """

    def __init__(self, group: ProcessGroup | None) -> None:
        """A group, which every process has to make a crew of, or this process alone."""
        self._group = None if group is None or group.size == 1 else group.another()
        self.rank = 0 if self._group is None else self._group.rank
        self.size = 1 if self._group is None else self._group.size

    def told(self, mine: Any) -> list[Any]:
        """What every process says, by rank: something that JSON has a word for."""
        text = json.dumps(mine)
        if self._group is None:
            return [json.loads(text)]
        return [json.loads(said) for said in self._group.gather(text.encode())]

    def agreed(self, action: Callable[[], Any]) -> list[Any]:
        """What this returns in each process, by rank: something that JSON has a word for.

        Raises:
            CheckpointError: it failed in another process; a process in which it failed raises its
                own error.
        """
        failure: Exception | None = None
        try:
            mine = {"said": action()}
        except Exception as error:
            failure, mine = error, {"failed": f"{type(error).__name__}: {error}"}
        said = self.told(mine)
        if failure is not None:
            raise failure
        for rank, word in enumerate(said):
            if "failed" in word:
                raise CheckpointError(f"rank {rank} failed: {word['failed']}")
        return [word["said"] for word in said]

    def done(self, action: Callable[[], T]) -> T:
        """What this returns here, when it has been done in every process; raises as `agreed`."""
        found: list[T] = []
        self.agreed(lambda: found.append(action()))
        return found[0]

    def first(self, action: Callable[[], Any]) -> Any:
        """What this returns in the first process, in all of them; raises as `agreed` does."""
        return self.agreed(lambda: action() if self.rank == 0 else None)[0]

    def send_file(self, path: Path) -> None:
        """Send a file to the first process."""
        size, failure = path.stat().st_size, None
        with path.open("rb") as file:
            for chunk in _chunks(size):
                try:
                    file.readinto(chunk.numpy().data)
                except OSError as error:  # the other end waits for all the same
                    failure = error
                self._send(chunk, 0)
        if failure is not None:
            raise failure

    def receive_file(self, path: Path, size: int, rank: int) -> None:
        """Receive a file of this many bytes from a process."""
        failure = None
        with path.open("wb") as file:
            for chunk in _chunks(size):
                self._receive(chunk, rank)
                try:
                    if failure is None:
                        file.write(chunk.numpy().data)
                except OSError as error:  # such as a full disk; the other end sends all the same
                    failure = error
        if failure is not None:
            raise failure

    def send(self, tensor: Tensor, rank: int) -> None:
        """Send a contiguous tensor of the CPU to a process."""
        for chunk in torch.split(as_bytes(tensor), CHUNK):
            self._send(chunk, rank)

    def receive(self, tensor: Tensor) -> None:
        """Receive a contiguous tensor of the CPU from the first process."""
        for chunk in torch.split(as_bytes(tensor), CHUNK):
            self._receive(chunk, 0)

    def _send(self, chunk: Tensor, rank: int) -> None:
        assert self._group is not None
        self._group.send(chunk, rank)

    def _receive(self, chunk: Tensor, rank: int) -> None:
        assert self._group is not None
        self._group.receive(chunk, rank)


def _chunks(size: int) -> Iterator[Tensor]:
    """The same room for each part of so many bytes."""
    room = torch.empty(min(size, CHUNK), dtype=torch.uint8)
    for start in range(0, size, CHUNK):
        yield room[: size - start]
