"""How processes write one checkpoint together: each its own files, the first one the rest.

    rank 0   a partial folder   files             record   its name, when all is in it
    rank 1                      files                      in that folder, or else sent there

Until it has its name nobody sees it.
"""

import shutil
from pathlib import Path

from torch import Tensor

from skyfx.runtime.checkpoint.layout import Folder, write_tensors
from skyfx.runtime.checkpoint.snapshot import Snapshot, merged
from skyfx.runtime.checkpoint.transfer import receive_file, send_file
from skyfx.runtime.distributed.process_group import ProcessGroup

__all__: list[str] = ["write"]


def write(
    group: ProcessGroup, folder: Folder, step: int, taken: Snapshot | Exception, *, keep: int
) -> None:
    """Write what every process has taken; all return when it is on the disk.

    Args:
        group: all processes, each of which calls this.
        folder: where to; where they do not share one, the first process's counts.
        step: of the checkpoint.
        taken: what this process holds, or why that cannot be saved.
        keep: how many checkpoints to keep.

    Raises:
        CheckpointError: it failed in another process; here it raises its own error.
    """
    held = group.run_together(lambda: list(_taken(taken).model))
    snapshot = _taken(taken)
    name = group.broadcast_from_first(lambda: folder.begin(step))
    partial = folder.path / name
    here = group.run_together(lambda: group.rank == 0 or folder.sees(name))
    try:
        # What no stage uses, every process has.
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
    finally:  # nothing, if it has been given its name
        if group.rank == 0 or not here[group.rank]:
            shutil.rmtree(partial, ignore_errors=True)


def _taken(taken: Snapshot | Exception) -> Snapshot:
    if isinstance(taken, Exception):
        raise taken
    return taken


def _write_files(partial: Path, rank: int, tensors: dict[str, dict[str, Tensor]]) -> dict[str, int]:
    """Write the tensors of each kind; returns the files and how large they are."""
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
    """Bring the files together that lie elsewhere, one after another."""
    if all(here):
        return

    def moved() -> None:
        for rank, files in enumerate(sizes):
            if here[rank]:
                continue
            for file, size in files.items():
                if group.rank == rank:
                    send_file(group, partial / file)
                elif group.rank == 0:
                    receive_file(group, partial / file, size, rank)

    group.barrier_after(moved)
