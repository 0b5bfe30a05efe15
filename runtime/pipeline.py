"""The pipeline that a user holds: it infers and trains like the model it was made from."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from skyfx.runtime import draws
from skyfx.runtime.checkpoint import Checkpoints
from skyfx.runtime.microbatch import Batch
from skyfx.runtime.snapshot import Scheduler
from skyfx.runtime.splits import Splits, Splitter
from skyfx.runtime.step import LossHead, Split, Step, autocast_here, returned_loss
from skyfx.runtime.workers import Outcome, Workers
from skyfx.solver.errors import CheckpointError
from skyfx.solver.plan import Plan

__all__: list[str] = ["Measured", "Pipeline"]


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds of the last call, and busy seconds a micro-batch of each stage, `(num_stages,)`."""

    step_s: float
    stage_s: tuple[float, ...]


class Pipeline:
    """A model split over devices by a plan, a worker thread for each device.

    The parameters are the model's own: any optimizer and learning-rate scheduler works on them. Use
    it as a context manager, or call `close`; the end of the program ends the workers as well.

    Attributes:
        plan: stages, predicted times, bound and gap.
        measured: what the last call took, None before the first one.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        workers: Workers,
        splitter: Splitter,
        microbatch: Batch,
    ) -> None:
        """Split the model for `microbatch`, which it was planned for."""
        self.plan = plan
        self.measured: Measured | None = None
        self._model = model
        self._splits = Splits(model, splitter)
        self._microbatch_size = microbatch.batch_size
        self._calling = threading.Lock()
        self._workers = workers
        self._checkpoints: list[Checkpoints] = []
        self._closed = False
        self._splits.of([microbatch], training=plan.assumptions.training)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Infer: the model in eval mode, without gradients, on one micro-batch after another.

        Args:
            args: one batch as in `partition` (a tensor, a tuple, a dict), or the model's own
                positional arguments.
            kwargs: the model's own keyword arguments.

        Returns:
            What the model returns for the whole batch; a cache in it is None.

        Raises:
            StageError: a stage failed; its cause is the stage's own exception.
        """
        batch = (
            Batch.of(args[0]) if len(args) == 1 and not kwargs else Batch.of_call(*args, **kwargs)
        )
        parts = batch.split(self._microbatch_size)
        splits, outcome = self._run(parts, None)
        pieces = [outcome.outputs[m] for m in range(len(parts))]
        return splits[0].outputs.gather(pieces, [part.batch_size for part in parts])

    def train_step(
        self,
        batch: Any,
        targets: Any = None,
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
    ) -> Tensor:
        """Run all micro-batches forward and backward; gradients add up in the parameters.

        Args:
            batch: a tensor, a tuple of the model's positional or a dict of its keyword arguments.
            targets: a tensor or any nesting of tensors, split along dimension 0 like the batch.
            loss_fn: from the model's outputs and the targets of one micro-batch to its mean loss.
                Without it, the loss is the one that the model returns.

        Returns:
            The mean loss of the batch, detached: each micro-batch counts by its number of samples.

        Raises:
            ValueError: the plan is for inference, the targets are not as many as the samples, or
                the batch requires a gradient.
            StageError: a stage failed; gradients are then incomplete, so call
                `optimizer.zero_grad()`.
        """
        if not self.plan.assumptions.training:
            raise ValueError(
                "this pipeline was planned for inference; partition with mode='training' to train"
            )
        whole = Batch.of(batch)
        if any(x.requires_grad for x in whole.tensors):
            raise ValueError(
                "a tensor of the batch requires a gradient, which ends at the pipeline's inputs: "
                "make what computes it a part of the model, or detach it"
            )
        parts = whole.split(self._microbatch_size)
        goals = Batch.of_targets(targets, whole.batch_size).split(self._microbatch_size)
        weights = [part.batch_size / whole.batch_size for part in parts]
        head = LossHead(loss_fn or returned_loss, goals, weights)
        _, outcome = self._run(parts, head)
        assert outcome.loss is not None
        return outcome.loss

    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0) -> Tensor:
        """Scale all gradients down so that their norm is at most this.

        As `torch.nn.utils.clip_grad_norm_`, which over several processes would see the gradients of
        this one alone; there all have to call it.

        Returns:
            The norm before.
        """
        parameters = list(self._model.parameters())
        norm = self._workers.gradient_norm(parameters, norm_type)
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        return norm

    def parameters(self) -> Iterator[nn.Parameter]:
        """The model's own parameters, for an optimizer."""
        return self._model.parameters()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The model's own parameters by their original names."""
        return self._model.named_parameters()

    def state_dict(self) -> dict[str, Any]:
        """Parameters and buffers by the model's own names; the unsplit model loads it, and back.

        Over several processes all have to call it, and all get all of it, on the CPU.
        """
        return self._workers.state_of(self._model)

    def load_state_dict(self, state: Mapping[str, Any]) -> Any:
        """Load what `state_dict` of the pipeline or of the unsplit model returned."""
        return self._workers.load_state(self._model, state)

    def checkpoints(
        self,
        folder: str | os.PathLike[str],
        *,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: Scheduler | None = None,
        keep: int = 2,
    ) -> Checkpoints:
        """The checkpoints of this training in a folder: to go on from the latest, and to save.

        Args:
            folder: where they are, or will be. Over several processes, better one that all see; if
                they do not, the first process's folder has all.
            optimizer: made from the pipeline's parameters.
            scheduler: of the learning rate.
            keep: how many to keep, the latest ones.

        Returns:
            What saves and loads; closing the pipeline waits for what is being saved.
        """
        self._workers.refuse_own()
        made = Checkpoints(
            self._model,
            folder,
            optimizer=optimizer,
            scheduler=scheduler,
            keep=keep,
            group=self._workers.group,
        )
        self._checkpoints.append(made)
        return made

    def close(self) -> None:
        """End the workers. The model keeps its parameters, on the devices where they are."""
        self._workers.refuse_own()
        with self._calling:
            self._closed = True
            self._workers.close()
            for each in self._checkpoints:
                each.close()

    def _run(self, parts: list[Batch], head: LossHead | None) -> tuple[list[Split], Outcome]:
        """Run the micro-batches through all stages; the first failure ends the others."""
        self._workers.refuse_own()
        with self._calling:  # calls from several threads take turns
            if self._closed:
                raise RuntimeError("this pipeline is closed; partition the model again")
            training = head is not None
            splits = self._splits.of(parts, training=training)
            step = Step(
                splits=splits,
                microbatches=parts,
                actions=self.plan.orders(len(parts), training=training),
                num_stages=len(self.plan.stages),
                boundaries=self._workers.boundaries(splits, training=training),
                head=head,
                draws=self._draws(splits),
                autocast=autocast_here(),
            )
            began = time.perf_counter()
            self._workers.run(step)
            outcome = self._workers.outcome(step)
            busy = tuple(outcome.busy_s[k] for k in sorted(outcome.busy_s))
            self.measured = Measured(time.perf_counter() - began, busy)
        return splits, outcome

    def _draws(self, splits: Sequence[Split]) -> draws.Draws | None:
        """Where the random nodes of a step start to draw, if there are any in the whole model."""
        advances = [split.advances for split in splits]
        if all(one is not None and not one for one in advances):
            return None
        return draws.begun(advances, self._workers.agreed)

    def __reduce__(self) -> Any:
        raise TypeError(
            "a pipeline cannot be copied or pickled, its workers are running: keep state_dict() "
            "and the plan, and partition again"
        )

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except (CheckpointError, OSError):
            if error is None:  # else what failed first is what is raised
                raise

    def __str__(self) -> str:
        return str(self.plan)

    __repr__ = __str__
