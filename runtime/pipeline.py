"""The user's pipeline: it infers and trains like the model it was made from."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from skyfx.runtime.batches.batch_cutter import BatchCutter
from skyfx.runtime.batches.batch_dims import Dim
from skyfx.runtime.batches.microbatch import Batch
from skyfx.runtime.checkpoint.checkpoints import Checkpoints
from skyfx.runtime.checkpoint.snapshot import Scheduler
from skyfx.runtime.distributed.process_group import ProcessGroup
from skyfx.runtime.execution.loss_head import returned_loss
from skyfx.runtime.execution.runner import Runner
from skyfx.runtime.execution.shared_data import CallData, Reads
from skyfx.runtime.execution.verified import Verified
from skyfx.runtime.execution.workers import Deployment, Rebalancer, StepTimes
from skyfx.runtime.memory.limits import MemoryLimits
from skyfx.runtime.profile import Profile, measured
from skyfx.solver.core.plan import Plan
from skyfx.solver.errors import SkyfxError


class Pipeline(AbstractContextManager["Pipeline"]):
    """A model split over devices by a plan, with a worker thread for each device.

    The parameters are the model's own: any optimizer and learning-rate scheduler works on them. Use
    it as a context manager, or call `close`; the end of the program ends the workers as well.

    All processes of a job make the same calls with the same data, else all raise
    `DisagreementError`. Where `reads` says that a process reads none, data may be None.

    Attributes:
        runner: runs the steps, for skyfx's own use.
        verified: what was compared with plain torch before the pipeline was handed over.
    """

    def __init__(
        self,
        model: nn.Module,
        deployment: Deployment,
        cutter: BatchCutter,
        limits: MemoryLimits,
        rebalancer: Rebalancer | None = None,
    ) -> None:
        """Run a model that has been split.

        Args:
            model: its parameters are where the plan has them.
            deployment: the plan, its workers and stages.
            cutter: cuts batches into micro-batches.
            limits: of the devices' memory; lifted by `close`.
            rebalancer: finds another plan when devices become slower.
        """
        self._model, self._cutter, self._rebalancer = model, cutter, rebalancer
        self.runner = Runner(model, deployment, cutter, limits)
        self._closing: list[Callable[[], None]] = [limits.lift]
        self.verified = Verified(remark="it was not asked for")

    @property
    def plan(self) -> Plan:
        """Stages, predicted times, bound and gap."""
        return self.runner.plan

    @property
    def group(self) -> ProcessGroup | None:
        """The processes that run it together; None in a single process."""
        return self.runner.workers.group

    @property
    def reads(self) -> Reads:
        """Whether this process reads `batch` (for the first stage) and `targets` (for the last)."""
        return self.runner.workers.reads

    @property
    def measured(self) -> StepTimes | None:
        """The times of the last call; None before the first one."""
        return self.runner.measured

    @property
    def batch_dims(self) -> dict[str, Dim]:
        """How batches are cut into micro-batches: by argument, the dimension of the samples.

        `"entries"` is a list with an entry for each sample; None goes whole to each micro-batch.
        """
        return self._cutter.dims

    def num_samples(self, batch: Any) -> int:
        """The number of samples in a batch."""
        return self._cutter.placed(Batch.of(batch)).batch_size

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Infer: the model in eval mode, without gradients, on one micro-batch after another.

        Args:
            args: one batch as in `partition` (a tensor, a tuple, a dict), or the model's own
                positional arguments.
            kwargs: the model's own keyword arguments.

        Returns:
            The model's return value for the whole batch; a cache in it is None.

        Raises:
            ValueError: the batch contradicts `batch_dims`.
            StageError: a stage failed; the cause is the stage's own exception.
        """
        if len(args) == 1 and not kwargs:
            return self.runner.infer(partial(CallData.of, *args))
        return self.runner.infer(lambda: CallData(Batch.of_call(*args, **kwargs)))

    def stream(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Infer one batch after another; stages do not idle between two batches.

        Args:
            batches: each as in `partition`; read on demand, at most two ahead.

        Yields:
            The model's return value for each batch, in their order.

        Raises:
            StageError: a stage failed; results of earlier batches have been yielded.
            RuntimeError: another call was made before the stream's end.
        """
        yield from self.runner.stream(partial(CallData.of, batch) for batch in batches)

    def train_step(
        self, batch: Any, targets: Any = None, loss_fn: Callable[[Any, Any], Tensor] | None = None
    ) -> Tensor:
        """Run all micro-batches forward and backward; gradients accumulate in the parameters.

        In `torch.autocast` backward is outside of it, as torch advises. Numbers, strings, functions
        on the model, and globals that it reads, may be changed: it is captured again then.

        Args:
            batch: a tensor, a tuple of the model's positional or a dict of its keyword arguments.
            targets: a tensor or any nesting of tensors, cut like the batch: along dimension 0, or
                as `target_dims` of `partition` says.
            loss_fn: from the model's outputs and the targets of one micro-batch to its mean loss.
                By default the loss that the model returns.

        Returns:
            The mean loss of the batch, detached; a micro-batch has the weight of its samples.

        Raises:
            ValueError: the plan is for inference, the number of targets differs from the number of
                samples, the batch contradicts `batch_dims`, or it requires a gradient.
            StageError: a stage failed; gradients are then incomplete, so call
                `optimizer.zero_grad()`.
        """
        make = partial(CallData.for_training, batch, targets)
        return self.runner.train(make, loss_fn or returned_loss)

    def profile(
        self,
        batch: Any,
        targets: Any = None,
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
        *,
        steps: int = 3,
    ) -> Profile:
        """Measured times of stages and steps beside the planned ones; print it to see a table.

        It runs the pipeline as `train_step` does, or as a call does if it was planned for
        inference. Gradients, buffers and random generators are the same afterwards. `write_trace`
        of the result writes the timeline of the last step.

        Args:
            batch: as in `train_step`, as are the next two.
            targets: for training.
            loss_fn: for training.
            steps: number of measured steps, after one to warm up; medians are shown.
        """

        def step() -> StepTimes | None:
            is_trained = self.plan.assumptions.training
            self.train_step(batch, targets, loss_fn) if is_trained else self(batch)
            return self.measured

        self.runner.workers.enter("profile", steps=steps)
        times = measured(self._model, step, steps)
        return Profile.of(self.plan, times, self.runner.timeline())

    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0) -> Tensor:
        """Scale all gradients down so that their norm, which it returns, is at most `max_norm`.

        As `torch.nn.utils.clip_grad_norm_`, which would use the gradients of this process only, and
        takes no sparse ones.
        """
        return self.runner.workers.clip(list(self._model.parameters()), max_norm, norm_type)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The model's own parameters, for an optimizer."""
        return self._model.parameters()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The model's own parameters by their original names."""
        return self._model.named_parameters()

    def state_dict(self, module: str = "") -> dict[str, Any]:
        """Parameters and buffers by the model's own names, as the unsplit model has them.

        All processes have to call it; each gets the whole state, on the CPU.

        Args:
            module: the name of a submodule, such as `bert.encoder.layer.3`, to get its state by
                its own names.
        """
        return self.runner.workers.state_of(self._model, module)

    def load_state_dict(self, state: Mapping[str, Any], module: str = "") -> Any:
        """Load the `state_dict` of a pipeline or of the unsplit model; all processes call it.

        Args:
            state: by name, of the whole model or of the submodule `module`.
            module: its name.
        """
        return self.runner.workers.load_state(self._model, state, module)

    def checkpoints(
        self,
        folder: str | os.PathLike[str],
        *,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: Scheduler | None = None,
        keep: int = 2,
    ) -> Checkpoints:
        """The checkpoints of this training in a folder, to resume from the latest, and to save.

        Args:
            folder: of this run; it need not exist. Several processes should all see it; if they do
                not, the first process's folder has all checkpoints.
            optimizer: made from the pipeline's parameters.
            scheduler: of the learning rate.
            keep: number of latest checkpoints to keep.

        Closing the pipeline waits for a save that is under way.
        """
        self.runner.workers.refuse_reentry()
        self.runner.workers.enter("checkpoints")
        model, group = self._model, self.group
        made = Checkpoints(
            model, folder, optimizer=optimizer, scheduler=scheduler, keep=keep, group=group
        )
        self._closing.append(made.close)
        return made

    def rebalance(
        self, *optimizers: torch.optim.Optimizer, above: float = 0.25, steps: int = 5
    ) -> bool:
        """Make a new plan and move to it, if stages have become slower than planned.

        Call it between two training steps, after `optimizer.zero_grad()`; while stages are on time
        it costs nothing. Parameters that move to another process are new objects there.

        Args:
            optimizers: all that hold the pipeline's parameters; their state moves as well.
            above: how much longer than planned the slowest stage has to take, relatively.
            steps: number of consecutive late steps; a step that is less than half as late resets
                the count. The present plan stays if another gains less than a quarter of `above`.

        Returns:
            Whether the pipeline has another plan now.

        Raises:
            ValueError: the pipeline was made from a given plan, so nothing was measured here, or a
                parameter has a gradient.
        """
        if self._rebalancer is None:
            raise ValueError("the plan was given, and nothing measured: partition without plan=")
        return self.runner.rebalance(self._rebalancer, optimizers, above, steps)

    def close(self) -> None:
        """End the workers. The model keeps its parameters, on their present devices."""
        self.runner.close()
        for close in self._closing:
            close()

    def __reduce__(self) -> Any:
        raise TypeError(
            "a pipeline cannot be copied or pickled, since its workers are running: keep "
            "state_dict() and the plan, and partition again"
        )

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self.close()
        except (SkyfxError, OSError):  # of a checkpoint that was being saved
            if error is None:  # else the first failure is raised
                raise

    def __str__(self) -> str:
        return f"{self.plan}\n{self._cutter}\n{self.verified}"

    __repr__ = __str__
