"""Who runs the stages of a pipeline: several processes, each some of them in threads."""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from skyfx.runtime.device import LocalDevice
from skyfx.runtime.distributed.process_group import ProcessGroup
from skyfx.runtime.execution.stage import Span
from skyfx.runtime.execution.step import StagedModel, Step
from skyfx.runtime.execution.workers import (
    INFERENCE_CAPACITY,
    RunningStep,
    StepResult,
    Workers,
    done_since,
)
from skyfx.runtime.transport.local import Boundaries
from skyfx.runtime.transport.message import MessageLayout
from skyfx.runtime.transport.remote import RemoteInbound, RemoteOutbound
from skyfx.solver.core.plan import Stage as PlannedStage
from skyfx.solver.core.timeline import CompletedAction
from skyfx.solver.errors import StageError

__all__: list[str] = ["DistributedWorkers"]

PATIENCE_S, HANGS = 8.0, 10
"""A stage hangs that has computed for so long, and so many times as long as was planned."""


class DistributedWorkers(Workers):
    """The workers of this process, in a group in which other processes run the other stages.

    Every process calls the pipeline with the same batch, and all get the loss and the outputs.
    """

    def __init__(
        self,
        places: Mapping[int, LocalDevice],
        stages: Sequence[PlannedStage],
        rank_of: Sequence[int],
        group: ProcessGroup,
    ) -> None:
        """Start this process's workers.

        Args:
            places: where the stages of this process run, by their numbers; there may be none.
            stages: of the plan, `(num_stages,)`.
            rank_of: whose each stage is, `(num_stages,)`.
            group: all processes.
        """
        super().__init__(places)
        self._rank_of, self._group = rank_of, group
        self._patience_s = {
            k: max(PATIENCE_S, HANGS * stages[k].compute_s) for k in places if stages[k].compute_s
        }
        if group.heartbeat is not None:
            group.heartbeat.name(_names(stages, rank_of))
        ways = [way for k in places for way in ((k, k - 1), (k, k + 1))]
        self._senders = {
            way: ThreadPoolExecutor(1, thread_name_prefix=f"skyfx-send-{way[0]}-to-{way[1]}")
            for way in ways
            if way[1] in range(len(rank_of)) and way[1] not in places
        }

    @property
    def group(self) -> ProcessGroup:
        """All processes."""
        return self._group

    def boundaries(
        self, splits: Sequence[StagedModel], *, training: bool, turn: int = 0
    ) -> Boundaries:
        """What stands at our stages in a step; `turn` keeps the messages of several apart."""
        ours = super().boundaries(splits, training=training)
        before, after = dict(ours.before), dict(ours.after)
        group, m, first = self._group, len(splits), turn * len(self._rank_of)
        for k in self._places:
            if k > 0 and k not in before:
                forms = [split.stages[k].receives for split in splits]
                peer = self._rank_of[k - 1]
                sender = self._senders[k, k - 1]
                before[k] = RemoteInbound(first + k - 1, peer, group, sender, forms, in_flight=m)
            if k + 1 < len(self._rank_of) and k not in after:
                in_flight = m if training else INFERENCE_CAPACITY
                peer, sender = self._rank_of[k + 1], self._senders[k, k + 1]
                after[k] = RemoteOutbound(
                    first + k, peer, group, sender, in_flight=in_flight, training=training
                )
        return Boundaries(before, after)

    def start(self, step: Step) -> RunningStep:
        """Begin our stages of a step.

        Raises:
            StageError: one of them failed, or one of another process.
            WorkerLostError: another process is gone.
        """
        with self._watching(step):
            return super().start(step) if self._places else []

    def finish(self, step: Step, started: RunningStep) -> None:
        """Wait for the end of our stages; raises as `start` does."""
        with self._watching(step):
            super().finish(step, started)
            step.finish()

    @contextmanager
    def _watching(self, step: Step) -> Iterator[None]:
        """Within it, others hear of it when a stage of ours fails or hangs."""
        heartbeat = self._group.heartbeat
        if heartbeat is not None:
            heartbeat.overdue = lambda: step.overdue(self._patience_s, heartbeat.active_s)
        try:
            yield
        except StageError as error:
            self._group.report_failure(error)
            raise
        finally:
            if heartbeat is not None:
                heartbeat.overdue = lambda: None

    def agreed(self, state: Tensor) -> Tensor:
        """The first process's state: the others may have another seed, or none."""
        return self._group.broadcast(0, state)

    def state_of(self, model: nn.Module) -> dict[str, Any]:
        """The whole model's state, each tensor from the first process that holds it."""
        state = model.state_dict()
        tensors = {name: x for name, x in state.items() if isinstance(x, Tensor)}
        ours = [name for name, x in tensors.items() if not x.is_meta]
        said = [set(names) for names in self._group.all_gather_json(ours, list[str])]
        for name, tensor in tensors.items():
            holders = [rank for rank, names in enumerate(said) if name in names]
            if not holders:
                raise ValueError(f"no process holds {name!r}: no stage uses it")
            values = torch.empty(tensor.shape, dtype=tensor.dtype)
            if holders[0] == self._group.rank:
                values.copy_(tensor)
            state[name] = self._group.broadcast(holders[0], values)
        return state

    def load_state(self, model: nn.Module, state: Mapping[str, Any]) -> Any:
        """Load what this process holds; names are held against the whole model's."""
        own = model.state_dict()
        missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or unexpected:
            raise RuntimeError(
                f"the state is another model's: missing {missing[:3]}, unexpected {unexpected[:3]}"
            )
        ours = [name for name, x in own.items() if not (isinstance(x, Tensor) and x.is_meta)]
        return model.load_state_dict({name: state[name] for name in ours}, strict=False)

    def gradient_norm(self, parameters: Sequence[nn.Parameter], norm_type: float) -> Tensor:
        """The norm of all gradients, here and elsewhere; all processes have to call it.

        Bit for bit that of the unsplit model, since each process tells the norm of each of its
        gradients, and all of them are added up in the order of the parameters.
        """
        told = torch.zeros(2, len(parameters), dtype=torch.float64)
        for i, parameter in enumerate(parameters):
            if parameter.grad is not None:
                own = torch.linalg.vector_norm(parameter.grad, norm_type)
                told[:, i] = torch.tensor([1.0, float(own)])
        is_there, norms = self._group.sum(told)
        found = norms[is_there > 0].to(torch.get_default_dtype())
        norm: Tensor = torch.linalg.vector_norm(found, norm_type)
        return norm

    def close(self) -> None:
        """End the threads."""
        super().close()
        for sender in self._senders.values():
            sender.shutdown()

    def outcome(self, step: Step) -> StepResult:
        """What came of a step, told to all."""
        ours = super().outcome(step)
        told = torch.zeros(1 + 2 * len(self._rank_of), dtype=torch.float64)
        for k, (forward_s, backward_s) in ours.busy_s.items():
            told[1 + 2 * k], told[2 + 2 * k] = forward_s, backward_s
        if ours.loss is not None:
            told[0] = ours.loss
        loss, *seconds = self._group.sum(told).tolist()
        busy = dict(enumerate(zip(seconds[::2], seconds[1::2], strict=True)))
        if not step.training:
            outputs = {m: self._outputs(step, m) for m in range(len(step.splits))}
            return StepResult(None, outputs, busy)
        mine = ours.loss if ours.loss is not None else torch.tensor(loss)
        return StepResult(mine, {}, busy)

    def timeline(self, spans: Mapping[int, Sequence[Span]]) -> list[CompletedAction]:
        """The actions of a step, of all processes; their clocks are set by a message to all."""
        self._group.sum(torch.zeros(1))
        ours = done_since(spans, time.perf_counter())
        every = self._group.all_gather_json(ours, list[CompletedAction])
        return [action for actions in every for action in actions]

    def _outputs(self, step: Step, m: int) -> list[torch.Tensor]:
        """The outputs of a micro-batch, from where the last stage is."""
        layout = MessageLayout(step.splits[m].returned)
        message = layout.pack(step.outputs[m]) if m in step.outputs else layout.room()
        found = layout.unpack(self._group.broadcast(self._rank_of[-1], message))
        return [x.detach() for x in found if x is not None]


def _names(stages: Sequence[PlannedStage], rank_of: Sequence[int]) -> dict[int, str]:
    """What runs in each process: its devices and their stages."""
    names: dict[int, list[str]] = {}
    for k, (stage, rank) in enumerate(zip(stages, rank_of, strict=True)):
        names.setdefault(rank, []).append(f"stage {k} on {stage.device!r}")
    return {rank: ", ".join(some) for rank, some in names.items()}
