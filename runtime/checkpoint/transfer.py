"""Files and tensors of a checkpoint on their way between processes, in chunks."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from skyfx.runtime.distributed.process_group import ProcessGroup, as_bytes

CHUNK = 16 * 2**20
"""Bytes that are sent at once, and so the memory that a file on its way takes."""


def send_file(group: ProcessGroup, path: Path) -> None:
    """Send a file to the first process."""
    size, failure = path.stat().st_size, None
    with path.open("rb") as file:
        for chunk in _chunks(size):
            try:
                file.readinto(chunk.numpy().data)
            except OSError as error:  # the receiver waits for the chunk all the same
                failure = error
            group.send(chunk, 0)
    if failure is not None:
        raise failure


def receive_file(group: ProcessGroup, path: Path, size: int, rank: int) -> None:
    """Receive a file of `size` bytes from a process."""
    failure = None
    with path.open("wb") as file:
        for chunk in _chunks(size):
            group.receive(chunk, rank)
            try:
                if failure is None:
                    file.write(chunk.numpy().data)
            except OSError as error:  # such as a full disk; the sender sends on all the same
                failure = error
    if failure is not None:
        raise failure


def send_tensor(group: ProcessGroup, tensor: Tensor, rank: int) -> None:
    """Send a contiguous tensor on the CPU to a process."""
    for chunk in torch.split(as_bytes(tensor), CHUNK):
        group.send(chunk, rank)


def receive_tensor(group: ProcessGroup, tensor: Tensor) -> None:
    """Receive a contiguous tensor on the CPU from the first process."""
    for chunk in torch.split(as_bytes(tensor), CHUNK):
        group.receive(chunk, 0)


def _chunks(size: int) -> Iterator[Tensor]:
    """The same buffer for each chunk of `size` bytes."""
    buffer = torch.empty(min(size, CHUNK), dtype=torch.uint8)
    for start in range(0, size, CHUNK):
        yield buffer[: size - start]
