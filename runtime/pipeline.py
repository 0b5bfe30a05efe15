"""The pipeline that a user holds: it infers and trains like the model it was made from."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from skyfx.runtime import random
from skyfx.runtime.channel import ChannelClosed
from skyfx.runtime.microbatch import Batch
from skyfx.runtime.schedule import orders
from skyfx.runtime.stage import Place
from skyfx.runtime.step import LossHead, Split, Step, returned_loss
from skyfx.solver.plan import Plan

__all__: list[str] = ["Measured", "Pipeline"]

Splitter = Callable[[Batch, bool], Split]
"""Splits the model for micro-batches like this one, for training or not, the way the plan says."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds of the last call, and busy seconds a micro-batch of each stage, `(num_stages,)`."""

    step_s: float
    stage_s: tuple[float, ...]


class Pipeline:
    """A model split over devices by a plan, one worker thread a stage.

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
        places: Sequence[Place],
        splitter: Splitter,
        microbatch_size: int,
    ) -> None:
        self.plan = plan
        self.measured: Measured | None = None
        self._model = model
        self._splitter = splitter
        self._microbatch_size = microbatch_size
        self._splits: dict[Any, Split] = {}
        self._workers = [
            ThreadPoolExecutor(
                1, f"skyfx-stage-{k}", initializer=torch.set_num_threads, initargs=(p.num_threads,)
            )
            for k, p in enumerate(places)
        ]
        self._closed = False

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
        step = self._run(parts, "inference", None)
        pieces = [step.outputs[m] for m in range(len(parts))]
        return step.splits[0].outputs.gather(pieces, [part.batch_size for part in parts])

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
                Without it, the loss
                is the one that the model returns.

        Returns:
            The mean loss of the batch, detached: each micro-batch counts by its number of samples.

        Raises:
            ValueError: the plan is for inference.
            StageError: a stage failed; gradients are then incomplete, so call
                `optimizer.zero_grad()`.
        """
        if not self.plan.assumptions.training:
            raise ValueError(
                "this pipeline was planned for inference; partition with mode='training' to train"
            )
        whole = Batch.of(batch)
        parts = whole.split(self._microbatch_size)
        goals = Batch.of_targets(targets, whole.batch_size).split(self._microbatch_size)
        weights = [part.batch_size / whole.batch_size for part in parts]
        head = LossHead(loss_fn or returned_loss, goals, weights)
        self._run(parts, self.plan.assumptions.schedule, head)
        assert head.total is not None
        return head.total

    def parameters(self) -> Iterator[nn.Parameter]:
        """The model's own parameters, for an optimizer."""
        return self._model.parameters()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The model's own parameters by their original names."""
        return self._model.named_parameters()

    def state_dict(self) -> dict[str, Any]:
        """Parameters and buffers by the model's own names; the unsplit model loads it, and back."""
        return self._model.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> Any:
        """Load what `state_dict` of the pipeline or of the unsplit model returned."""
        return self._model.load_state_dict(state)

    def close(self) -> None:
        """End the workers. The model keeps its parameters, on the devices where they are."""
        self._closed = True
        for worker in self._workers:
            worker.shutdown()

    def _run(self, parts: list[Batch], schedule: str, head: LossHead | None) -> Step:
        """Run the micro-batches through all stages; the first failure ends the others."""
        if self._closed:
            raise RuntimeError("this pipeline is closed; partition the model again")
        splits = [self._split_for(part, training=head is not None) for part in parts]
        actions = orders(schedule, len(self._workers), len(parts))
        seed = random.fresh_seed() if splits[0].is_random else 0
        step = Step(splits, parts, actions, head, seed)
        began = time.perf_counter()
        futures = [worker.submit(step.run_stage, k) for k, worker in enumerate(self._workers)]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:  # also on Ctrl-C: no worker may go on with a step that nobody waits for
            step.stop()
            wait(futures)
        _raise_first_failure(futures)
        busy = [sum(s.busy_s for s in step.stages(k)) / len(parts) for k in range(len(futures))]
        self.measured = Measured(time.perf_counter() - began, tuple(busy))
        return step

    def _split_for(self, part: Batch, *, training: bool) -> Split:
        key = (training, part.signature)
        if key not in self._splits:
            self._splits[key] = self._splitter(part, training)
        return self._splits[key]

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __str__(self) -> str:
        return str(self.plan)

    __repr__ = __str__


def _raise_first_failure(futures: Sequence[Future[None]]) -> None:
    """Raise the failure that stopped the others, which only saw their channels closed."""
    for future in futures:
        error = future.exception()
        if error is not None and not isinstance(error, ChannelClosed):
            raise error
