"""Training from the first batch to the last: a loop around a pipeline, and no more than that.

before_run
    before_epoch
        before_iteration
        one batch forward and backward; after `accumulate` of them the optimizer's step
        after_iteration
    after_epoch
after_run
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from skyfx.runtime.checkpoint.snapshot import Scheduler
from skyfx.runtime.distributed.roll_call import enter
from skyfx.runtime.execution.step import autocast_kinds
from skyfx.runtime.pipeline import Pipeline
from skyfx.runtime.rng.generator_state import preserve_generators
from skyfx.solver.core.field_checks import positive, whole_number
from skyfx.training.callbacks import Callback, Metric, Times
from skyfx.training.resumable_data import resume, snapshot_order

Loss = Callable[[Any, Any], Tensor]
_COUNTS = ("epoch", "batch", "iteration", "step")


class Trainer:
    """Trains a pipeline with any optimizer, scheduler, loss and data.

    Over several processes all make the same calls, with the same data in the same order: what torch
    draws for it is drawn as in the first process.

    Attributes:
        pipeline: what is trained.
        optimizer: made from its parameters.
        scheduler: its learning rate's, or None.
        epoch: how many epochs are done.
        batch: how many batches of the next one are.
        iteration: how many batches in all.
        step: how often the optimizer has stepped.
        loss: the last batch's.
        grad_norm: of the last step, before clipping; None without.
        times: what the last iteration took.
        has_stepped: whether the optimizer stepped in it.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        optimizer: torch.optim.Optimizer,
        loss_fn: Loss | None = None,
        *,
        scheduler: Scheduler | None = None,
        max_grad_norm: float | None = None,
        accumulate: int = 1,
        autocast: torch.dtype | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """Nothing runs yet.

        Args:
            pipeline: planned for training.
            optimizer: made from `pipeline.parameters()`.
            loss_fn: as in `Pipeline.train_step`; without it the model's own loss.
            scheduler: stepped after each step of the optimizer.
            max_grad_norm: to clip the norm of all gradients to.
            accumulate: batches whose gradients are averaged for one step of the optimizer. What is
                left at an epoch's end makes a step of its own.
            autocast: what operators are run in where that is safe, such as `torch.bfloat16`.
            callbacks: called in this order.

        Raises:
            ValueError: a number is none that makes sense.
        """
        whole_number("accumulate", accumulate, least=1)
        if max_grad_norm not in (None, math.inf):  # infinity measures the norm and clips nothing
            positive("max_grad_norm", max_grad_norm)
        if autocast is torch.float16:
            raise ValueError("autocast to float16 needs scaled gradients: use torch.bfloat16")
        self.pipeline, self.optimizer, self.scheduler = pipeline, optimizer, scheduler
        self._loss_fn, self._max_grad_norm = loss_fn, max_grad_norm
        self._accumulate, self._autocast = accumulate, autocast
        self._callbacks = list(callbacks)
        self.epoch = self.batch = self.iteration = self.step = 0
        self.loss, self.has_stepped = math.nan, False
        self.grad_norm: float | None = None
        self.times: Times | None = None
        self._begins: dict[str, Any] | None = None
        self._num_pending = 0
        self._limit: int | None = None
        self._is_asked_to_stop = False

    def fit(self, loader: Iterable[Any], *, epochs: int = 1, max_steps: int | None = None) -> None:
        """Train until so many epochs are done, or so many steps, counted from the very beginning.

        Args:
            loader: gives the batches of one epoch each time it is iterated over: pairs
                `(batch, targets)`, else batches that hold what the model's own loss needs.
            epochs: to be done at the end, with those before.
            max_steps: of the optimizer, with those before.

        Raises:
            ValueError: a number is no whole number >= 0, or the loader gives nothing, or not the
                batches that it gave before the checkpoint.
            StageError: a stage failed.
            WorkerLostError: a process is gone.
        """
        whole_number("epochs", epochs, least=0)
        if max_steps is not None:
            whole_number("max_steps", max_steps, least=0)
        self._limit, self._is_asked_to_stop = max_steps, False
        try:
            self._call("before_run")
            while self.epoch < epochs and not self._is_over():
                self._fit_epoch(loader)
            self._call("after_run")
        finally:
            self._call("close")

    def stop(self) -> None:
        """End with the next step of the optimizer; several processes have to ask at the same."""
        self._is_asked_to_stop = True

    def evaluate(
        self, loader: Iterable[Any], metrics: Mapping[str, Metric] | None = None
    ) -> dict[str, float]:
        """What the model does on other data, in eval mode.

        Batches are streamed through the pipeline; random generators stand afterwards as before.

        Args:
            loader: gives pairs `(batch, targets)`.
            metrics: from outputs and targets of a batch to their mean over it.

        Returns:
            The means over all samples, by name; `loss` by the trainer's own, if it was given one.

        Raises:
            ValueError: the loader gives nothing.
        """
        functions = ({"loss": self._loss_fn} if self._loss_fn else {}) | dict(metrics or {})
        sums, num_samples = dict.fromkeys(functions, 0.0), 0
        waiting: list[tuple[Any, int]] = []

        def batches() -> Iterator[Any]:
            for item in loader:
                batch, targets = _pair(item)
                waiting.append((targets, self.pipeline.num_samples(batch)))
                yield batch

        with preserve_generators(), torch.no_grad(), self._cast():
            for outputs in self.pipeline.stream(batches()):
                targets, size = waiting.pop(0)
                num_samples += size
                for name, function in functions.items():
                    sums[name] += float(function(outputs, targets)) * size
        if not num_samples:
            raise ValueError("the loader gave no batch to evaluate on")
        return {name: total / num_samples for name, total in sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """Where the training is, for a checkpoint that is saved between two iterations."""
        begins = self._begins if self.batch else None
        return {name: getattr(self, name) for name in _COUNTS} | {"begins": begins}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there at the next `fit`."""
        for name in _COUNTS:
            setattr(self, name, state[name])
        self._begins, self._num_pending = state["begins"], 0

    def any_process(self, flag: bool) -> bool:
        """Whether this holds in any of the processes; all have to ask."""
        group = self.pipeline.group
        enter(group, "any_process")
        return flag if group is None else bool(group.sum(torch.tensor([float(flag)])) > 0)

    def _fit_epoch(self, loader: Iterable[Any]) -> None:
        """The batches of an epoch that are left, or as many as there may be."""
        if (set_epoch := getattr(getattr(loader, "sampler", None), "set_epoch", None)) is not None:
            set_epoch(self.epoch)
        if self.batch == 0 or self._begins is None:
            enter(self.pipeline.group, f"fit (epoch {self.epoch})")
            if (group := self.pipeline.group) is not None:  # all processes draw the same from here
                torch.set_rng_state(group.broadcast(0, torch.get_rng_state()))
            self._begins = snapshot_order(loader)
        batches = resume(loader, self._begins, self.batch)
        self._call("before_epoch")
        began = time.perf_counter()
        for item in batches:
            self._iterate(item, time.perf_counter() - began)
            if self.has_stepped and self._is_over():
                return
            began = time.perf_counter()
        if not self.batch:
            raise ValueError(
                f"the loader gave no batch in epoch {self.epoch}: an iterator is used up after one "
                "epoch; give a list or a DataLoader"
            )
        if self._num_pending:
            self._update()
        self.epoch, self.batch, self._begins = self.epoch + 1, 0, None
        self._call("after_epoch")

    def _iterate(self, item: Any, batch_s: float) -> None:
        """One batch, and if it is time the optimizer's step."""
        self._call("before_iteration")
        batch, targets = _pair(item)
        with self._cast():
            self.loss = float(self.pipeline.train_step(batch, targets, self._loss_fn))
        took = self.pipeline.measured
        assert took is not None
        self.iteration, self.batch = self.iteration + 1, self.batch + 1
        self._num_pending += 1
        self.has_stepped = self._num_pending == self._accumulate
        began = time.perf_counter()
        if self.has_stepped:
            self._update()
        update_s = time.perf_counter() - began
        self.times = Times(batch_s, took.step_s, update_s, took.forward_s, took.backward_s)
        self._call("after_iteration")

    def _update(self) -> None:
        """Step by the mean of the gradients that have come together."""
        if self._num_pending > 1:
            for parameter in self.pipeline.parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(self._num_pending)
        if self._max_grad_norm is not None:
            self.grad_norm = float(self.pipeline.clip_grad_norm_(self._max_grad_norm))
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.optimizer.zero_grad()
        self.step, self._num_pending = self.step + 1, 0

    def _is_over(self) -> bool:
        return self._is_asked_to_stop or (self._limit is not None and self.step >= self._limit)

    @contextmanager
    def _cast(self) -> Iterator[None]:
        with ExitStack() as around:
            if self._autocast is not None:
                for kind in autocast_kinds():
                    around.enter_context(torch.autocast(kind, self._autocast))
            yield

    def _call(self, moment: str) -> None:
        for callback in self._callbacks:
            getattr(callback, moment)(self)


def _pair(item: Any) -> tuple[Any, Any]:
    """A batch and its targets; one without any brings its own loss."""
    is_pair = isinstance(item, (tuple, list)) and len(item) == 2
    return (item[0], item[1]) if is_pair else (item, None)
