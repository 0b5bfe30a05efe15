"""Runs one step after another by a plan, which may be replaced between two steps."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from skyfx.runtime.batches.batch_cutter import BatchCutter
from skyfx.runtime.batches.microbatch import Batch
from skyfx.runtime.execution.loss_head import LossHead
from skyfx.runtime.execution.shared_data import CallData
from skyfx.runtime.execution.split_cache import SplitCache
from skyfx.runtime.execution.stage import StagedModel
from skyfx.runtime.execution.step import Step, autocast_here
from skyfx.runtime.execution.workers import (
    Deployment,
    Rebalancer,
    RunningStep,
    StepResult,
    StepTimes,
    done_since,
)
from skyfx.runtime.memory.limits import MemoryLimits
from skyfx.runtime.rng.step_streams import begin_step_streams
from skyfx.solver.core.schedule import Action
from skyfx.solver.core.timeline import CompletedAction
from skyfx.solver.errors import StageError, WorkerLostError

UNDER_WAY = 2
"""Batches of a stream that are in the pipeline at the same time."""


MakeData = Callable[[], CallData]
"""Makes the data of a call, or raises."""

LossFn = Callable[[Any, Any], Tensor]
"""From the outputs and the targets of a micro-batch to its mean loss."""

MakeWork = Callable[[], tuple[list[Batch], LossHead | None]]
"""Makes the micro-batches of a step, and in training its loss."""


class Runner:
    """Runs one step after another by a plan.

    Attributes:
        plan: stages, predicted times, bound and gap.
        workers: run its stages.
        split: splits the model for another mode or shape of micro-batch.
        measured: the times of the last step, None before the first one.
        first_inference: holds the first inference against plain torch, before its values are handed
            over; None if that is done, or not asked for.
    """

    def __init__(
        self, model: nn.Module, deployment: Deployment, cutter: BatchCutter, limits: MemoryLimits
    ) -> None:
        """Run this model within these limits; `cutter` makes micro-batches."""
        self._model, self._cutter, self._limits = model, cutter, limits
        self._calling = threading.Lock()
        self._is_closed, self._is_streaming = False, False
        self.first_inference: Callable[[list[Batch]], bool] | None = None
        self._verifying: int | None = None
        self._deploy(deployment)

    def _deploy(self, deployment: Deployment) -> None:
        self.plan, self.workers = deployment.plan, deployment.workers
        self.measured: StepTimes | None = None
        self._ran: Sequence[StagedModel] = ()
        self.split = deployment.split
        self._splits = SplitCache(self._model, self.split)
        training = self.plan.assumptions.training
        self.workers.learn(deployment.microbatch)
        self._splits.put(deployment.microbatch, deployment.staged, training=training)

    @property
    def draws_as_plain_torch(self) -> bool:
        """Whether dropout and the like draw what plain torch would draw from the same seed.

        Not on a GPU, nor where how much is drawn depends on values.
        """
        return self._splits.draws_as_plain_torch

    def infer(self, make: MakeData) -> Any:
        """The return value for the whole batch, from its micro-batches; raises as `train`."""
        return self._gather(*self._run(lambda: self._cut("pipeline(batch)", make)))

    def outputs(self, parts: list[Batch], *, training: bool) -> list[list[Tensor]]:
        """The tensors that the model returns for each micro-batch; raises as `train`.

        Args:
            parts: the micro-batches.
            training: whether by the graph for training, such as with dropout.
        """
        step, result = self._run(lambda: (parts, None), as_trained=training)
        return self._left(step, result)

    def staged(self, part: Batch, *, training: bool) -> StagedModel:
        """The stages that run micro-batches like this one."""
        (found,) = self._splits.of([part], training=training)
        return found

    def train(self, make: MakeData, loss_fn: LossFn) -> Tensor:
        """The loss of the whole batch, after forward and backward of all its micro-batches.

        Raises:
            ValueError: the plan is for inference.
            StageError: a stage failed.
            WorkerLostError: another process is gone.
            DisagreementError: another process does something else.
        """
        if not self.plan.assumptions.training:
            raise ValueError(
                "this pipeline was planned for inference: partition with mode='training' to train"
            )
        return self._loss(lambda: self._cut("train_step", make, loss_fn))

    def train_on(self, parts: list[Batch], head: LossHead) -> Tensor:
        """The same for these micro-batches; raises as `train`."""
        return self._loss(lambda: (parts, head))

    def _loss(self, work: MakeWork) -> Tensor:
        step, result = self._run(work)
        for staged in step.splits:
            if len(self.plan.stages) - 1 not in staged.stages:
                staged.leave_empty(self._model)
        assert result.loss is not None
        return result.loss

    def stream(self, batches: Iterable[MakeData]) -> Iterator[Any]:
        """Infer one batch after another; the next one begins before one ends.

        So the stages do not idle between two batches. `UNDER_WAY` batches are in memory.
        """
        under_way: deque[tuple[Step, RunningStep]] = deque()
        with self._turn():
            self._is_streaming = True
            try:
                for i, make in enumerate(batches):
                    work = partial(self._cut, f"stream (batch {i + 1})", make)
                    step = self._step(work, turn=i % UNDER_WAY)
                    under_way.append((step, self.workers.start(step)))
                    if len(under_way) == UNDER_WAY:
                        yield self._ended(under_way)
                self.workers.enter("stream (its end)")
                while under_way:
                    yield self._ended(under_way)
            finally:
                self._is_streaming = False
                # raised already, or of a batch that nobody asks for
                with suppress(StageError, WorkerLostError):
                    while under_way:
                        step, started = under_way.popleft()
                        self.workers.finish(step, started)

    def _run(self, work: MakeWork, *, as_trained: bool = False) -> tuple[Step, StepResult]:
        with self._turn():
            step = self._step(work, as_trained=as_trained)
            self._ran = step.splits
            began = time.perf_counter()
            self.workers.finish(step, self.workers.start(step))
            result = self.workers.result(step)
            busy = [result.busy_s[k] for k in sorted(result.busy_s)]
            forward_s, backward_s = zip(*busy, strict=True)
            self.measured = StepTimes(time.perf_counter() - began, forward_s, backward_s)
        return step, result

    def _ended(self, under_way: deque[tuple[Step, RunningStep]]) -> Any:
        step, started = under_way.popleft()
        self.workers.finish(step, started)
        return self._gather(step, self.workers.result(step))

    def _gather(self, step: Step, result: StepResult) -> Any:
        """The return value of the whole batch; attributes are as its last micro-batch left them."""
        sizes = [part.batch_size for part in step.microbatches]
        return step.splits[0].outputs.gather(self._left(step, result), sizes, self._cutter.joins)

    def _left(self, step: Step, result: StepResult) -> list[list[Tensor]]:
        """The returned tensors of each micro-batch, after it has left its attributes."""
        with torch.no_grad():
            pairs = enumerate(step.splits)
            return [list(one.leave(self._model, result.outputs[m])) for m, one in pairs]

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Let calls from several threads take turns; a stream keeps its turn until it ends."""
        self.workers.refuse_reentry()
        if self._verifying == threading.get_ident():  # within the turn of its call
            yield
            return
        if self._is_streaming:
            raise RuntimeError("a stream of this pipeline is under way: exhaust it, or close() it")
        with self._calling:
            if self._is_closed:
                raise RuntimeError("this pipeline is closed; partition the model again")
            yield

    def _cut(
        self, call: str, make: MakeData, loss_fn: LossFn | None = None
    ) -> tuple[list[Batch], LossHead | None]:
        """The micro-batches of a call's data, and the loss if there is one."""
        training = loss_fn is not None
        asked = self._splits.asked(training, shared=self.workers.group is not None)
        data = self.workers.meet(call, make, asked)
        assert data.batch is not None
        parts = self._cutter.parts(data.batch)
        head, failure = None, None
        if loss_fn is not None:
            try:
                head = self._head(loss_fn, data.targets, parts)
            except ValueError as error:  # perhaps only here, where the targets are
                failure = error
        lacking = self._splits.lacking(parts, training=training)
        parts = self.workers.fill(parts, lacking, failure)
        if not training:
            self._verify(parts)
            self._splits.called()
        return parts, head

    def _verify(self, parts: list[Batch]) -> None:
        """Let `first_inference` run micro-batches, until it has held one against plain torch."""
        if self.first_inference is None:
            return
        self._verifying = threading.get_ident()
        try:
            is_done = self.first_inference(parts)
        finally:
            self._verifying = None
        if is_done:
            self.first_inference = None

    def _step(self, work: MakeWork, turn: int = 0, *, as_trained: bool = False) -> Step:
        parts, head = work()
        training = head is not None
        splits = self._splits.of(parts, training=training or as_trained)
        advances = [split.advances for split in splits]
        return Step(
            splits=splits,
            microbatches=parts,
            actions=self.plan.orders(len(parts), training=training),
            num_stages=len(self.plan.stages),
            memory=self._limits.call(),
            boundaries=self.workers.boundaries(splits, training=training, turn=turn),
            head=head,
            draws=begin_step_streams(advances, self.workers.agree),
            autocast=autocast_here(),
        )

    def _head(self, loss_fn: LossFn, targets: Any, parts: list[Batch]) -> LossHead:
        goals = self._cutter.target_parts(targets, parts)
        num_samples = sum(part.batch_size for part in parts)
        weights = [part.batch_size / num_samples for part in parts]
        return LossHead(self._model, loss_fn, goals, weights)

    def timeline(self) -> tuple[CompletedAction, ...]:
        """The actions of the last step, in seconds since its first; all processes call it.

        On several hosts the clocks agree within half the time of a message to all.
        """
        with self._turn():
            ours = [
                CompletedAction(Action(k, one.kind, one.microbatch), one.began_s, one.ended_s)
                for split in {id(split): split for split in self._ran}.values()
                for k, stage in split.stages.items()
                for one in stage.spans()
            ]
            every = self.workers.timeline(ours)
        zero_s = min((done.began_s for done in every), default=0.0)
        return tuple(sorted(done_since(zero_s, every), key=lambda done: done.ended_s))

    def rebalance(
        self, rebalancer: Rebalancer, optimizers: Sequence[Optimizer], above: float, steps: int
    ) -> bool:
        """Go on with another plan if there is a better one; returns whether there was."""
        if any(x.grad is not None for x in self._model.parameters()):
            raise ValueError("parameters have gradients: rebalance after optimizer.zero_grad()")
        with self._turn():
            if self.measured is None:
                return False
            plan = rebalancer.replan(self.plan, self.measured, above, steps)
            if plan is None:
                return False
            self.workers.close()
            self._deploy(rebalancer.migrate(plan, optimizers))
            return True

    def close(self) -> None:
        """End the workers."""
        self.workers.refuse_reentry()
        with self._calling:
            self._is_closed = True
            self.workers.close()
