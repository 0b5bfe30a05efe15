"""One step: the micro-batches of a batch through all stages, each device in a thread or process.

        inputs of the micro-batches
             |
        stage 0 --values--> stage 1 --values--> stage 2 --> outputs, in training the loss
                <--grads---         <--grads---

Stages meet only at the boundaries between them. A stage that fails closes all boundaries, so that
the others stop as well.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch

from skyfx.runtime.batches.microbatch import Batch
from skyfx.runtime.execution.hook_calls import within_step
from skyfx.runtime.execution.loss_head import LossHead
from skyfx.runtime.execution.stage import Stage, StagedModel
from skyfx.runtime.memory.call_memory import CallMemory
from skyfx.runtime.rng import generator_lending
from skyfx.runtime.rng.loss_draws import LossDraws
from skyfx.runtime.rng.step_streams import Draws
from skyfx.runtime.transport.local import Boundaries, ChannelClosed, Gradients, Values
from skyfx.solver.core.schedule import Action, Kind, Orders
from skyfx.solver.errors import StageError, WorkerLostError

Autocast = Sequence[tuple[str, torch.dtype]]
"""The device types for which autocast is on, with the dtype."""


def autocast_kinds() -> tuple[str, ...]:
    """The device types of this machine that autocast can be on for."""
    accelerator = torch.accelerator.current_accelerator()
    return ("cpu",) if accelerator is None else ("cpu", accelerator.type)


def autocast_here() -> tuple[tuple[str, torch.dtype], ...]:
    """The autocast settings of this thread, which threads of stages do not inherit."""
    return tuple(
        (kind, torch.get_autocast_dtype(kind))
        for kind in autocast_kinds()
        if torch.is_autocast_enabled(kind)
    )


@dataclass(slots=True)
class Step:
    """The state that the stages share while one batch runs.

    `splits` and `microbatches` are `(num_microbatches,)`: a short last micro-batch has a split of
    its own, with the same stages but other shapes. `actions` are listed per device.
    """

    splits: Sequence[StagedModel]
    microbatches: Sequence[Batch]
    actions: Orders
    num_stages: int
    memory: CallMemory
    boundaries: Boundaries
    head: LossHead | None = None
    draws: Draws | None = None
    autocast: Autocast = ()
    outputs: dict[int, Values] = field(default_factory=dict)
    _head_gradients: dict[int, Gradients] = field(default_factory=dict)
    _loss_draws: LossDraws = field(default_factory=LossDraws)
    _stopped: bool = False

    @property
    def training(self) -> bool:
        """Whether there is a loss, and so a backward."""
        return self.head is not None

    @within_step()
    def run_device(self, name: str) -> None:
        """Run all actions of a device, in its thread.

        Raises:
            StageError: an action failed; the cause is its own exception.
            ChannelClosed: another stage failed.
            WorkerLostError: another process is gone.
        """
        for k in {action.stage for action in self.actions[name]}:
            for stage in self.stages(k):
                stage.reset()
        with self.memory:
            for action in self.actions[name]:
                if self._stopped:  # while this device computed
                    raise ChannelClosed
                self._run_action(action)

    def _run_action(self, action: Action) -> None:
        k, stage = action.stage, self.splits[action.microbatch].stages[action.stage]
        try:
            run = self._run_forward if action.kind is Kind.FORWARD else self._run_backward
            run(k, stage, action.microbatch)
            if stage.local_device.device.type == "cpu":
                self.memory.check()
        except (ChannelClosed, KeyboardInterrupt):
            raise
        except (StageError, WorkerLostError):  # of another process
            self.stop()
            raise
        except BaseException as error:
            self.stop()
            raise StageError(
                f"stage {k} on {stage.local_device.name!r} failed in the {action}: "
                f"{type(error).__name__}: {error}{_hint(error, stage)}"
            ) from error

    def stages(self, k: int) -> list[Stage]:
        """Stage k of each distinct split."""
        return list({id(split): split.stages[k] for split in self.splits}.values())

    def busy_s(self, k: int) -> tuple[float, float]:
        """Seconds that stage k took for a micro-batch forward, and backward, on average."""
        took = {Kind.FORWARD: 0.0, Kind.BACKWARD: 0.0}
        for stage in self.stages(k):
            for span in stage.spans():
                took[span.kind] += span.ended_s - span.began_s
        num = len(self.microbatches)
        return took[Kind.FORWARD] / num, took[Kind.BACKWARD] / num

    def overdue(
        self, patience_s: Mapping[int, float], active_s: Callable[[float], float]
    ) -> str | None:
        """Name a stage that computes for too long, if there is one.

        Args:
            patience_s: longest time of an action, by the numbers of the stages.
            active_s: active seconds of this process since a time of `time.perf_counter`.
        """
        for k, limit_s in patience_s.items():
            for stage in self.stages(k):
                since_s = stage.since_s  # the stage's own thread changes it
                if since_s is not None and active_s(since_s) > limit_s:
                    return (
                        f"stage {k} on {stage.local_device.name!r} hangs: it has computed for more "
                        f"than {limit_s:.0f} s"
                    )
        return None

    def stop(self) -> None:
        """Release every stage that waits for another one, and start no further action."""
        self._stopped = True
        self.boundaries.close()

    def _run_forward(self, k: int, stage: Stage, m: int) -> None:
        values = self.boundaries.before[k].receive_values() if k else self.microbatches[m].tensors
        with ExitStack() as around:
            for kind, dtype in self.autocast:
                around.enter_context(torch.autocast(kind, dtype))
            if stage.is_random and self.draws is not None:
                around.enter_context(generator_lending.use_source(self.draws(k, m)))
            sent = stage.forward(m, values, training=self.training, keeps=False)
            if self._is_last(k) and self.head is not None:
                if self.draws is not None:
                    around.enter_context(self._loss_draws.within(self.head.model))
                self._head_gradients[m] = self.head(m, self.splits[m], sent)
        if not self._is_last(k):
            self.boundaries.after[k].send_values(sent)
        elif self.head is None:
            self.outputs[m] = sent

    def _run_backward(self, k: int, stage: Stage, m: int) -> None:
        is_last, after = self._is_last(k), self.boundaries.after
        gradients = self._head_gradients.pop(m) if is_last else after[k].receive_gradients()
        returned = stage.backward(m, gradients)
        if k:
            self.boundaries.before[k].send_gradients(returned)

    def _is_last(self, k: int) -> bool:
        return k == self.num_stages - 1


def _hint(error: BaseException, stage: Stage) -> str:
    """A hint for an error: of limited memory, or of what is not there for a loss."""
    device, text = stage.local_device, str(error)
    if "meta tensor" in text:
        return (
            " (parameters of other processes have no values here: let forward compute what loss_fn "
            "needs of them, and keep it on an attribute)"
        )
    refused = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in text
    if "to not have been used in the graph" in text:
        return (
            " (the graph of loss_fn begins at the outputs: let forward return what comes before "
            "those parameters, and apply them in loss_fn)"
        )
    if device.memory_bytes is None or not refused:
        return ""
    return (
        f" (the pipeline may use {device.memory_bytes / 2**20:.0f} MiB of {device.name!r}: give it "
        "more, or plan with a smaller memory_bytes and keep the difference as a reserve)"
    )
