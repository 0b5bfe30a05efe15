"""Checkpoints of a training, by the model's own names, to go on from under any plan.

      every process            a snapshot of what it holds: at once
           |
      a thread of its own      writes it ---> all have ---> the first one gives the folder its name
                               (where a process does not see the first one's folder, it sends)

Whoever is killed at whatever moment leaves the last whole checkpoint and a partial one, which is
not seen and which the next save removes.
"""

import logging
import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from skyfx.runtime.checkpoint.layout import Folder
from skyfx.runtime.checkpoint.load import load
from skyfx.runtime.checkpoint.save import write
from skyfx.runtime.checkpoint.snapshot import Scheduler, Snapshot, Training
from skyfx.runtime.distributed.process_group import ProcessGroup

__all__: list[str] = ["Checkpoint", "Checkpoints"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was loaded: after how many steps it was saved, and what the user had kept with it."""

    step: int
    extra: dict[str, Any]


class Checkpoints:
    """Saves a training into a folder and loads it from there, under whatever plan.

    Kept are the model's parameters and buffers, the optimizer's and the scheduler's state, and the
    random generators of torch, Python and numpy: a training that goes on from there does in every
    bit what it would have done. Over several processes all have to make every call.
    """

    def __init__(
        self,
        model: nn.Module,
        folder: str | os.PathLike[str],
        *,
        optimizer: Optimizer | None = None,
        scheduler: Scheduler | None = None,
        keep: int = 2,
        group: ProcessGroup | None = None,
    ) -> None:
        """See `Pipeline.checkpoints`; `group` is the processes that hold the model together."""
        if keep < 1:
            raise ValueError(f"keep is {keep}: a folder keeps at least one checkpoint")
        self._training = Training(model, optimizer, scheduler)
        self._folder, self._keep = Folder(folder), keep
        self._group = ProcessGroup.alone() if group is None else group.duplicate()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="skyfx-checkpoint")
        self._writing: Future[None] | None = None

    def save(self, step: int, extra: Mapping[str, Any] | None = None, *, wait: bool = True) -> None:
        """Save the training as it stands; waits for the save before.

        Args:
            step: how many steps it has made: more than at any save into this folder before.
            extra: what else the program needs to go on, such as its position in the data: numbers,
                text and tensors, in lists, tuples and dicts. The first process's is kept.
            wait: whether to return only when it is on the disk. If not, it is copied to the CPU's
                memory and written while training goes on; an error then comes with the next call.

        Raises:
            CheckpointError: something of it cannot be saved, or another process failed.
            OSError: the folder cannot be written.
        """
        self.wait()
        taken: Snapshot | Exception
        try:
            taken = Snapshot.of(self._training, extra or {}, self._group.rank, copied=not wait)
        except Exception as error:  # the other processes have to hear of it
            taken = error
        failed = isinstance(taken, Exception)
        self._writing = self._writer.submit(self._write, step, taken)
        del taken  # it goes when it is written
        if wait or failed:
            self.wait()

    def load(self, step: int | None = None) -> Checkpoint | None:
        """Go on from a checkpoint: the latest one, or that of a step.

        Returns:
            What was loaded; None if there is none yet, so that the training begins.

        Raises:
            CheckpointError: there is none of this step, it is damaged, or it is one of another
                model or optimizer. Then nothing has changed.
        """
        self.wait()
        found = load(self._group, self._folder, self._training, step)
        return None if found is None else Checkpoint(*found)

    def latest(self) -> int | None:
        """The step of the latest checkpoint, None if there is none."""
        self.wait()
        found: int | None = self._group.broadcast_from_first(self._folder.latest)
        return found

    def wait(self) -> None:
        """Wait until all that was saved is on the disk; raises what went wrong there."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Wait as `wait` does, and save no more."""
        self._writer.shutdown()
        self.wait()

    def _write(self, step: int, taken: Snapshot | Exception) -> None:
        try:
            write(self._group, self._folder, step, taken, keep=self._keep)
        except Exception as error:  # which nobody may ask for before the program ends
            logger.error("The checkpoint of step %d was not saved: %s", step, error)
            raise
