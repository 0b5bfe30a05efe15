"""Checkpoints of a training, by the model's own names; it can be resumed under any plan.

      every process       takes a snapshot of the tensors it holds, at once
           |
      a separate thread   writes it ---> all have written ---> the first process names the folder
                          (a process that does not see the first one's folder sends its files)

A process may be killed at any moment: the last complete checkpoint stays, and a partial one, which
is not listed and which the next save removes.
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
from skyfx.runtime.distributed.roll_call import enter

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was loaded: the number of its step, and the user's own values in it."""

    step: int
    extra: dict[str, Any]


class Checkpoints:
    """Saves a training to a folder and loads it from there, under any plan.

    A checkpoint has the model's parameters and buffers, the state of optimizer and scheduler, and
    the random generators of torch, Python and numpy: a resumed training is bit for bit the one that
    was never interrupted. In a job of several processes, all of them make every call.
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
            raise ValueError(f"keep is {keep}, expected 1 or more checkpoints")
        self._training = Training(model, optimizer, scheduler)
        self._folder, self._keep = Folder(folder), keep
        # Of calls, which must meet all others; saves go on in a group of their own.
        self._calls = ProcessGroup.alone() if group is None else group
        self._group = self._calls.duplicate()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="skyfx-checkpoint")
        self._writing: Future[None] | None = None

    def save(self, step: int, extra: Mapping[str, Any] | None = None, *, wait: bool = True) -> None:
        """Save the training as it is now; waits for the save before.

        Args:
            step: the number of steps so far: larger than at every earlier save to this folder.
            extra: all else that the program needs to resume, such as its position in the data:
                numbers, text and tensors, in lists, tuples and dicts. The first process's is saved.
            wait: whether to return only after it is on the disk. If not, it is copied to the CPU's
                memory and written while training goes on; the next call then raises its error.

        Raises:
            CheckpointError: a part of it cannot be saved.
            OSError: the folder cannot be written. Each of these is raised in all processes.
        """
        enter(self._calls, "save", step=step)
        self.wait()
        taken, training, rank = Future[Snapshot](), self._training, self._group.rank
        try:
            taken.set_result(Snapshot.of(training, extra or {}, rank, copied=not wait))
        except Exception as error:  # the other processes have to know of it
            taken.set_exception(error)
        failed = taken.exception() is not None
        self._writing = self._writer.submit(self._write, step, taken)
        del taken  # its memory is freed when it is written
        if wait or failed:
            self.wait()

    def load(self, step: int | None = None) -> Checkpoint | None:
        """Resume from a checkpoint: the latest one, or that of a step.

        Returns:
            The checkpoint; None if there is none yet, and the training begins.

        Raises:
            CheckpointError: there is none of this step, it is damaged, or it is of another model
                or optimizer. Then nothing has changed.
        """
        enter(self._calls, "load", step=step)
        self.wait()
        found = load(self._group, self._folder, self._training, step)
        return None if found is None else Checkpoint(*found)

    def latest(self) -> int | None:
        """The step of the latest checkpoint, None if there is none."""
        enter(self._calls, "latest")
        self.wait()
        found: int | None = self._group.broadcast_from_first(self._folder.latest)
        return found

    def wait(self) -> None:
        """Wait until all saves are on the disk; raises the error of one that failed."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Wait as `wait` does; nothing can be saved afterwards."""
        self._writer.shutdown()
        self.wait()

    def _write(self, step: int, taken: Future[Snapshot]) -> None:
        try:
            write(self._group, self._folder, step, taken, keep=self._keep)
        except Exception as error:  # the program may end without asking for it
            logger.error("The checkpoint of step %d was not saved: %s", step, error)
            raise
