"""Processes write one checkpoint together: each its own files, the first one also the record.

    rank 0   makes a partial folder   files   record   renames the folder when it is complete
    rank 1                            files            in that folder, or sent there

No process loads it before it is renamed.
"""

import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import torch
from torch import Tensor

from skyfx.runtime.checkpoint.layout import Folder, write_tensors
from skyfx.runtime.checkpoint.snapshot import Snapshot, merged
from skyfx.runtime.distributed.process_group import ProcessGroup

CHUNK = 16 * 2**20
"""Bytes that are sent at once, and so the memory that a file on its way takes."""


def write(
    group: ProcessGroup, folder: Folder, step: int, taken: Future[Snapshot], *, keep: int
) -> None:
    """Write the snapshots of all processes; all return when they are on the disk.

    Args:
        group: all processes, each of which calls this.
        folder: of the run; where they do not share one, the one of the first process counts.
        step: of the checkpoint.
        taken: has the snapshot of this process, or the error that prevented it.
        keep: number of checkpoints to keep.

    Raises:
        The error of the process where it failed, in all processes.
    """
    held = group.run_together(lambda: list(taken.result().model))
    snapshot = taken.result()
    name = group.broadcast_from_first(lambda: folder.begin(step))
    partial = folder.path / name
    here = group.run_together(lambda: group.rank == 0 or folder.sees(name))
    try:
        # A tensor that no stage uses is in every process.
        others = {each for names in held[: group.rank] for each in names}
        model = {each: x for each, x in snapshot.model.items() if each not in others}
        tensors = {"model": model, "state": snapshot.state}
        sizes = group.run_together(lambda: _write_files(partial, group.rank, tensors))
        _gather(group, partial, sizes, here)
        records = group.run_together(lambda: snapshot.record)
        record = merged(records) | {
            "model": sorted({each for names in held for each in names}),
            "files": [file for files in sizes for file in files],
        }
        group.broadcast_from_first(lambda: folder.commit(name, step, record, keep))
    finally:  # no effect after the folder was renamed
        if group.rank == 0 or not here[group.rank]:
            shutil.rmtree(partial, ignore_errors=True)


def _write_files(partial: Path, rank: int, tensors: dict[str, dict[str, Tensor]]) -> dict[str, int]:
    """Write the tensors of each kind; returns the sizes of the files, by their names."""
    sizes = {}
    for kind, held in tensors.items():
        if held:
            path = partial / f"{kind}-{rank:05d}.safetensors"
            write_tensors(path, held)
            sizes[path.name] = path.stat().st_size
    return sizes


def _gather(
    group: ProcessGroup, partial: Path, sizes: list[dict[str, int]], here: list[bool]
) -> None:
    """Send the files of other folders to the first process, one after another."""

    def transfer() -> None:
        away = ((rank, files) for rank, files in enumerate(sizes) if not here[rank])
        for rank, files in away:
            for file, size in files.items():
                if group.rank == rank:
                    _send_file(group, partial / file)
                elif group.rank == 0:
                    _receive_file(group, partial / file, size, rank)

    if not all(here):
        group.barrier_after(transfer)


def _send_file(group: ProcessGroup, path: Path) -> None:
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


def _receive_file(group: ProcessGroup, path: Path, size: int, rank: int) -> None:
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


def _chunks(size: int) -> Iterator[Tensor]:
    """The same buffer for each chunk of `size` bytes."""
    buffer = torch.empty(min(size, CHUNK), dtype=torch.uint8)
    for start in range(0, size, CHUNK):
        yield buffer[: size - start]
