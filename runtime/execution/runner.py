"""Runs one step after another by a plan, which may be replaced between two steps."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from skyfx.runtime.execution.microbatch import Batch
from skyfx.runtime.execution.output_joins import OutputJoins
from skyfx.runtime.execution.step import LossHead, StagedModel, Step, autocast_here
from skyfx.runtime.execution.workers import RunningStep, StepResult, Workers, done_since
from skyfx.runtime.reachable_state import hooks_of
from skyfx.runtime.rng.step_streams import begin_step_streams
from skyfx.solver.core.plan import Plan
from skyfx.solver.core.schedule import Action
from skyfx.solver.core.timeline import CompletedAction
from skyfx.solver.errors import StageError, WorkerLostError

UNDER_WAY = 2
"""Batches of a stream that are in the pipeline at the same time."""


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of the last call, and busy seconds of a micro-batch in each stage, `(num_stages,)`.

    A stage's are those of its forward and, in training, its backward.
    """

    step_s: float
    forward_s: tuple[float, ...]
    backward_s: tuple[float, ...]

    @property
    def stage_s(self) -> tuple[float, ...]:
        """Both together."""
        return tuple(map(sum, zip(self.forward_s, self.backward_s, strict=True)))


SplitFn = Callable[[Batch, bool], StagedModel]
"""Splits the model for micro-batches like this one, for training or not, as the plan says."""


class Deployment(NamedTuple):
    """A plan, its workers, and the model as `split` for it; `staged` is that of `microbatch`."""

    plan: Plan
    workers: Workers
    split: SplitFn
    microbatch: Batch
    staged: StagedModel


class SplitCache:
    """The splits that have been made, until the model has other tensors."""

    def __init__(self, model: nn.Module, split: SplitFn) -> None:
        """Split this model with this function."""
        self._model, self._split = model, split
        self._made: dict[Any, StagedModel] = {}
        self._tensors_then: list[tuple[Tensor, torch.dtype]] = []

    def put(self, part: Batch, staged: StagedModel, *, training: bool) -> None:
        """Add a split that has been made for micro-batches like this one."""
        self._made[self._setting(training), part.signature] = staged
        self._tensors_then = self._tensors()

    def of(self, parts: Sequence[Batch], *, training: bool) -> list[StagedModel]:
        """The split of each micro-batch."""
        # `load_state_dict(assign=True)` gives the model other tensors, and `half()` other buffers.
        if _identities(self._tensors()) != _identities(self._tensors_then):
            self._made.clear()
        setting = self._setting(training)
        keys = [(setting, part.signature) for part in parts]
        for key, part in zip(keys, parts, strict=True):
            if key not in self._made:
                self.put(part, self._split(part, training), training=training)
        return [self._made[key] for key in keys]

    @property
    def draws_as_plain_torch(self) -> bool:
        """Whether it is known of all random nodes how many numbers they draw."""
        return all(staged.advances is not None for staged in self._made.values())

    def _setting(self, training: bool) -> Any:
        """The part of a key that is the same for all micro-batches: looked up once per batch."""
        modes = [module.training for module in self._model.modules()]
        # A model in eval mode is trained as a whole; in training mode, parts of it may be in eval.
        parts_in_eval = tuple(modes) if training and modes[0] and not all(modes) else ()
        hooks = tuple(id(hook) for x in self._model.modules() for hook in hooks_of(x))
        return training, parts_in_eval, hooks, autocast_here()

    def _tensors(self) -> list[tuple[Tensor, torch.dtype]]:
        return [(x, x.dtype) for x in (*self._model.parameters(), *self._model.buffers())]


def _identities(tensors: list[tuple[Tensor, torch.dtype]]) -> list[tuple[int, torch.dtype]]:
    return [(id(x), kind) for x, kind in tensors]


class Rebalancer(Protocol):
    """Finds another plan when the present one no longer fits, and moves the model to it."""

    def replan(self, plan: Plan, measured: StepTimes, above: float, steps: int) -> Plan | None:
        """Another plan, or None to stay with the present one; see `Pipeline.rebalance`."""

    def migrate(self, plan: Plan, optimizers: Sequence[Optimizer]) -> Deployment:
        """Move parameters and optimizer state to where this plan has them."""


class Runner:
    """Runs one step after another by a plan.

    Attributes:
        plan: stages, predicted times, bound and gap.
        workers: run its stages.
        measured: the times of the last step, None before the first one.
    """

    def __init__(self, model: nn.Module, deployment: Deployment, joins: OutputJoins) -> None:
        """Run this model; `joins` says how the outputs of micro-batches are joined."""
        self._model, self._joins = model, joins
        self._calling = threading.Lock()
        self._is_closed, self._is_streaming = False, False
        self._deploy(deployment)

    def _deploy(self, deployment: Deployment) -> None:
        self.plan, self.workers = deployment.plan, deployment.workers
        self.measured: StepTimes | None = None
        self._ran: Sequence[StagedModel] = ()
        self._splits = SplitCache(self._model, deployment.split)
        training = self.plan.assumptions.training
        self._splits.put(deployment.microbatch, deployment.staged, training=training)

    @property
    def draws_as_plain_torch(self) -> bool:
        """Whether random nodes draw the numbers that plain torch would draw."""
        return self._splits.draws_as_plain_torch

    def infer(self, parts: list[Batch]) -> Any:
        """The return value for the whole batch, from its micro-batches; raises as `train`."""
        return self._gather(*self._run(parts, None))

    def outputs(self, parts: list[Batch], *, training: bool) -> list[list[Tensor]]:
        """The tensors that the model returns for each micro-batch; raises as `train`.

        Args:
            parts: the micro-batches.
            training: whether by the graph for training, such as with dropout.
        """
        step, result = self._run(parts, None, as_trained=training)
        return self._left(step, result)

    def staged(self, part: Batch, *, training: bool) -> StagedModel:
        """The stages that run micro-batches like this one."""
        (found,) = self._splits.of([part], training=training)
        return found

    def train(self, parts: list[Batch], head: LossHead) -> Tensor:
        """The loss of the whole batch, after forward and backward of all its micro-batches.

        Raises:
            StageError: a stage failed.
            WorkerLostError: another process is gone.
        """
        step, result = self._run(parts, head)
        for staged in step.splits:
            if len(self.plan.stages) - 1 not in staged.stages:
                staged.leave_empty(self._model)
        assert result.loss is not None
        return result.loss

    def stream(self, batches: Iterable[list[Batch]]) -> Iterator[Any]:
        """Infer one batch after another; the next one begins before one ends.

        So the stages do not idle between two batches. `UNDER_WAY` batches are in memory.
        """
        under_way: deque[tuple[Step, RunningStep]] = deque()
        with self._turn():
            self._is_streaming = True
            try:
                for i, parts in enumerate(batches):
                    step = self._step(parts, None, turn=i % UNDER_WAY)
                    under_way.append((step, self.workers.start(step)))
                    if len(under_way) == UNDER_WAY:
                        yield self._ended(under_way)
                while under_way:
                    yield self._ended(under_way)
            finally:
                self._is_streaming = False
                # raised already, or of a batch that nobody asks for
                with suppress(StageError, WorkerLostError):
                    while under_way:
                        step, started = under_way.popleft()
                        self.workers.finish(step, started)

    def _run(
        self, parts: list[Batch], head: LossHead | None, *, as_trained: bool = False
    ) -> tuple[Step, StepResult]:
        with self._turn():
            step = self._step(parts, head, as_trained=as_trained)
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
        return step.splits[0].outputs.gather(self._left(step, result), sizes, self._joins)

    def _left(self, step: Step, result: StepResult) -> list[list[Tensor]]:
        """The returned tensors of each micro-batch, after it has left its attributes."""
        with torch.no_grad():
            return [
                list(staged.leave(self._model, result.outputs[m]))
                for m, staged in enumerate(step.splits)
            ]

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Let calls from several threads take turns; a stream keeps its turn until it ends."""
        self.workers.refuse_reentry()
        if self._is_streaming:
            raise RuntimeError("a stream of this pipeline is under way: exhaust it, or close() it")
        with self._calling:
            if self._is_closed:
                raise RuntimeError("this pipeline is closed; partition the model again")
            yield

    def _step(
        self,
        parts: list[Batch],
        head: LossHead | None,
        turn: int = 0,
        *,
        as_trained: bool = False,
    ) -> Step:
        training = head is not None
        splits = self._splits.of(parts, training=training or as_trained)
        advances = [split.advances for split in splits]
        return Step(
            splits=splits,
            microbatches=parts,
            actions=self.plan.orders(len(parts), training=training),
            num_stages=len(self.plan.stages),
            boundaries=self.workers.boundaries(splits, training=training, turn=turn),
            head=head,
            draws=begin_step_streams(advances, self.workers.agree),
            autocast=autocast_here(),
        )

    def timeline(self) -> tuple[CompletedAction, ...]:
        """The actions of the last step, in seconds since its first; all processes call it.

        On several hosts the clocks agree within the time of a message to all.
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
