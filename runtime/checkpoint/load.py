"""Processes load one checkpoint together: each the tensors that it holds now.

The first process finds the checkpoint and sends its record to the others. Processes that see the
same folder read it themselves; the first one sends the others the tensors they need, one by one.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from skyfx.runtime.checkpoint.layout import RECORD, Entry, Folder, Reader, indexed, parse
from skyfx.runtime.checkpoint.restore import Restoring
from skyfx.runtime.checkpoint.save import CHUNK
from skyfx.runtime.checkpoint.snapshot import Training
from skyfx.runtime.distributed.process_group import ProcessGroup, as_bytes
from skyfx.solver.errors import CheckpointError


def load(
    group: ProcessGroup, folder: Folder, training: Training, step: int | None
) -> tuple[int, dict[str, Any]] | None:
    """Load the checkpoint of a step, or the latest one; every process calls this.

    Returns:
        Its step, and the user's own values; None if there is no checkpoint.

    Raises:
        CheckpointError: it is damaged or of another training, or another process has a later one
            in a folder of its own. Then nothing has changed.
    """
    if step is None:
        _refuse_later(group.run_together(folder.latest), folder)
    found = group.broadcast_from_first(lambda: _found(folder, step))
    if found is None:
        return None
    text, entries = found
    record, index = parse(text), {name: Entry(*entry) for name, entry in entries.items()}
    path = folder.of(record["step"])

    def planned() -> Restoring:
        try:
            return Restoring(record, index, training, group.rank, group.size)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None

    plan = group.barrier_after(planned)
    with Reader(path, index) if _holds(path / RECORD, text) else nullcontext() as reader:
        wanted = group.run_together(lambda: [] if reader is not None else plan.wanted)
        group.barrier_after(lambda: _check(group, reader, plan, wanted))
        _fill(group, reader, plan, wanted)
    plan.finish()
    return record["step"], plan.extra


def _refuse_later(latest: list[int | None], folder: Folder) -> None:
    """Refuse to begin from an older step, if another host was the first one at the last save."""
    steps = [-1 if step is None else step for step in latest]
    if (most := max(steps)) > steps[0]:
        own = "none" if latest[0] is None else f"one of step {latest[0]}"
        raise CheckpointError(
            f"{folder.path}: in its own folder of this name, rank {steps.index(most)} has a "
            f"checkpoint of step {most}, and the first process has {own}: take a folder that all "
            "hosts see, or copy that checkpoint to the first host"
        )


def _found(folder: Folder, step: int | None) -> tuple[str, dict[str, Entry]] | None:
    """The record and the tensors of a checkpoint."""
    if step is None and folder.latest() is None:
        return None
    text = folder.record(step)
    record = parse(text)
    return text, indexed(folder.of(record["step"]), record["files"])


def _holds(path: Path, text: str) -> bool:
    """Whether this is the file that the first process reads: its text has a unique id."""
    return path.is_file() and path.read_text() == text


def _check(
    group: ProcessGroup, reader: Reader | None, plan: Restoring, wanted: list[list[str]]
) -> None:
    """Verify the tensors to be loaded, also those for processes that cannot read them."""
    if reader is not None:
        sent = {name for names in wanted for name in names} if group.rank == 0 else set[str]()
        reader.check(sorted(sent.union(plan.wanted)))


def _fill(
    group: ProcessGroup, reader: Reader | None, plan: Restoring, wanted: list[list[str]]
) -> None:
    """Fill every tensor; `wanted` lists those that each process has to be sent."""
    if reader is not None:
        for name in plan.wanted:
            plan.fill(name, reader.get(name))
    for rank, names in enumerate(wanted):
        for name in names:
            if group.rank == 0 and reader is not None:
                for chunk in torch.split(as_bytes(reader.get(name)), CHUNK):
                    group.send(chunk, rank)
            elif group.rank == rank:
                buffer = plan.buffer(name)
                for chunk in torch.split(as_bytes(buffer), CHUNK):
                    group.receive(chunk, 0)
                plan.fill(name, buffer)
