"""What happens around a training, and when; what most trainings want."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from skyfx.runtime.checkpoint.checkpoints import Checkpoints
from skyfx.solver.core.field_checks import whole_number

if TYPE_CHECKING:
    from skyfx.training.trainer import Trainer

Metric = Callable[[Any, Any], Tensor | float]
"""From the outputs and targets of a batch to a mean over it."""

logger = logging.getLogger(__name__)


class Callback:
    """What happens around a training; a subclass overrides what it needs.

    Over several processes each has its own, and all of them run at the same moments.
    """

    def before_run(self, trainer: "Trainer") -> None:
        """`fit` begins; a checkpoint may be loaded here."""

    def before_epoch(self, trainer: "Trainer") -> None:
        """An epoch begins, or goes on where it was saved."""

    def before_iteration(self, trainer: "Trainer") -> None:
        """A batch has come, and is trained on next."""

    def after_iteration(self, trainer: "Trainer") -> None:
        """It was; `trainer.loss`, `times` and `has_stepped` are of this one."""

    def after_epoch(self, trainer: "Trainer") -> None:
        """All batches of an epoch are done, and `trainer.epoch` counts it."""

    def after_run(self, trainer: "Trainer") -> None:
        """`fit` ends: all is done, or it was asked to stop; not after an error."""

    def close(self, trainer: "Trainer") -> None:
        """`fit` is over, also after an error: let go of what was taken."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of an iteration.

    Attributes:
        batch_s: waiting for the batch.
        run_s: forward and backward through the pipeline.
        update_s: clipping, optimizer and scheduler.
        forward_s: of each stage, busy with a micro-batch forward, `(num_stages,)`.
        backward_s: of each stage, busy with one backward.
    """

    batch_s: float
    run_s: float
    update_s: float
    forward_s: tuple[float, ...]
    backward_s: tuple[float, ...]


class Checkpointing(Callback):
    """Goes on from the latest checkpoint in a folder, and saves there.

    What goes on does in every bit what it would have done, also in the middle of an epoch: the
    model, the optimizer, the scheduler, random numbers and the order of the data.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every_steps: int | None = None,
        keep: int = 2,
        wait: bool = False,
    ) -> None:
        """Nothing is read or written yet.

        Args:
            folder: as in `Pipeline.checkpoints`, as is `keep`.
            every_steps: of the optimizer. At the end of each epoch and of the run in any case.
            keep: how many to keep.
            wait: whether training waits until it is on the disk.
        """
        if every_steps is not None:
            whole_number("every_steps", every_steps, least=1)
        whole_number("keep", keep, least=1)
        self._folder, self._keep = folder, keep
        self._every_steps, self._wait = every_steps, wait
        self._checkpoints: Checkpoints | None = None
        self._saved = 0

    def before_run(self, trainer: "Trainer") -> None:
        """Load the latest checkpoint, if there is one."""
        if self._checkpoints is None:
            self._checkpoints = trainer.pipeline.checkpoints(
                self._folder,
                optimizer=trainer.optimizer,
                scheduler=trainer.scheduler,
                keep=self._keep,
            )
            if (found := self._checkpoints.load()) is not None:
                trainer.load_state_dict(found.extra)
                logger.info("goes on from step %d in epoch %d", trainer.step, trainer.epoch)
            self._saved = trainer.step

    def after_iteration(self, trainer: "Trainer") -> None:
        """Save if it is time."""
        if self._every_steps and trainer.has_stepped and trainer.step % self._every_steps == 0:
            self._save(trainer)

    def after_epoch(self, trainer: "Trainer") -> None:
        """Save what is new."""
        self._save(trainer)

    def after_run(self, trainer: "Trainer") -> None:
        """Save what is new, and wait until it is on the disk."""
        self._save(trainer)
        assert self._checkpoints is not None
        self._checkpoints.wait()

    def _save(self, trainer: "Trainer") -> None:
        assert self._checkpoints is not None
        if trainer.step > self._saved:
            self._checkpoints.save(trainer.step, trainer.state_dict(), wait=self._wait)
            self._saved = trainer.step


class StopFlag(Callback):
    """Stops the run when a file is there or a signal comes, in whichever process.

    So a person ends it without losing anything, and so does a batch system that gives notice.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, signals: Sequence[signal.Signals] = ()
    ) -> None:
        """Nothing is looked for yet.

        Args:
            path: the file. It is left where it is: remove it before the run is to go on.
            signals: such as `signal.SIGTERM`; from the main thread, and only during the run.
        """
        self._path = None if path is None else Path(path)
        self._signals, self._before = tuple(signals), dict[signal.Signals, Any]()
        self._came = threading.Event()

    def before_run(self, trainer: "Trainer") -> None:
        """Begin to listen to the signals."""
        self._came.clear()
        self._before = {each: signal.signal(each, self._note) for each in self._signals}

    def after_iteration(self, trainer: "Trainer") -> None:
        """Ask all processes."""
        is_there = self._path is not None and self._path.exists()
        if trainer.any_process(is_there or self._came.is_set()):
            logger.info("asked to stop after step %d", trainer.step)
            trainer.stop()

    def close(self, trainer: "Trainer") -> None:
        """Leave the signals as they were."""
        for each, before in self._before.items():
            signal.signal(each, before)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came.set()


class Timer(Callback):
    """Keeps what each iteration took, and logs it with the loss.

    Attributes:
        times: of each iteration, in their order.
    """

    def __init__(self, every: int = 10) -> None:
        """Nothing is timed yet.

        Args:
            every: after so many iterations a line is logged, at the level INFO.
        """
        whole_number("every", every, least=1)
        self.times: list[Times] = []
        self._every = every

    def after_iteration(self, trainer: "Trainer") -> None:
        """Keep the times."""
        assert trainer.times is not None
        self.times.append(trainer.times)
        if trainer.iteration % self._every == 0:
            took = trainer.times
            logger.info(
                "epoch %d, batch %d, step %d: loss %.4f, batch %.4f s, run %.4f s (a micro-batch "
                "in the slowest stage: forward %.4f s, backward %.4f s), update %.4f s",
                *(trainer.epoch, trainer.batch, trainer.step, trainer.loss),
                *(took.batch_s, took.run_s, max(took.forward_s), max(took.backward_s)),
                took.update_s,
            )


class Evaluate(Callback):
    """Evaluates on other data after each epoch.

    Attributes:
        results: by the number of epochs that were done.
    """

    def __init__(
        self, loader: Iterable[Any], metrics: Mapping[str, Metric] | None = None, *, every: int = 1
    ) -> None:
        """Nothing is evaluated yet.

        Args:
            loader: as in `Trainer.evaluate`, as are `metrics`.
            metrics: by name.
            every: after so many epochs.
        """
        whole_number("every", every, least=1)
        self.results: dict[int, dict[str, float]] = {}
        self._loader, self._metrics, self._every = loader, metrics, every

    def after_epoch(self, trainer: "Trainer") -> None:
        """Evaluate if it is time."""
        if trainer.epoch % self._every == 0:
            found = trainer.evaluate(self._loader, self._metrics)
            self.results[trainer.epoch] = found
            said = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
            logger.info("after epoch %d: %s", trainer.epoch, said)
