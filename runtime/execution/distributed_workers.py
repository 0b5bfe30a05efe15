"""The workers of a pipeline in several processes: each runs some of the stages, in threads."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from skyfx.runtime.batches.microbatch import Batch
from skyfx.runtime.device import LocalDevice
from skyfx.runtime.distributed.clock_difference import ahead_of_first_s
from skyfx.runtime.distributed.gathering import gathered
from skyfx.runtime.distributed.process_group import ProcessGroup
from skyfx.runtime.distributed.roll_call import enter
from skyfx.runtime.execution.shared_data import CallData, Reads, SharedData
from skyfx.runtime.execution.stage import StagedModel
from skyfx.runtime.execution.step import Step
from skyfx.runtime.execution.workers import (
    INFERENCE_CAPACITY,
    RunningStep,
    StepResult,
    Workers,
    done_since,
    numbers_of,
)
from skyfx.runtime.transport.local import Boundaries
from skyfx.runtime.transport.message import MessageLayout, TensorSpec
from skyfx.runtime.transport.remote import ReceiveQueue, RemoteInbound, RemoteOutbound, SendQueue
from skyfx.solver.core.plan import Stage as PlannedStage
from skyfx.solver.core.timeline import CompletedAction
from skyfx.solver.errors import StageError

PATIENCE_S, HANGS = 8.0, 10
"""A stage hangs when it computes for longer than both: seconds, and multiples of its plan."""


class DistributedWorkers(Workers):
    """The workers of this process; other processes of the group run the other stages.

    Every process calls the pipeline with the same batch, or with None where it runs neither the
    first stage nor, for targets, the last; each gets the loss and the outputs.
    """

    group: ProcessGroup

    def __init__(
        self,
        devices: Mapping[int, LocalDevice],
        stages: Sequence[PlannedStage],
        rank_of: Sequence[int],
        group: ProcessGroup,
    ) -> None:
        """Start this process's workers.

        Args:
            devices: the device of each stage of this process, by its number; may be empty.
            stages: of the plan, `(num_stages,)`.
            rank_of: the rank that runs each stage, `(num_stages,)`.
            group: all processes.
        """
        super().__init__(devices)
        self._rank_of, self.group = rank_of, group
        several = group.heartbeat is not None
        self._shared = SharedData(group, rank_of[0], rank_of[-1]) if several else None
        # All processes make the same calls, so they count alike.
        self._number = str(0 if group.heartbeat is None else group.heartbeat.calls)
        self._patience_s = {
            k: max(PATIENCE_S, HANGS * stages[k].compute_s) for k in devices if stages[k].compute_s
        }
        if group.heartbeat is not None:
            group.heartbeat.name(_names(stages, rank_of))
        ways = [way for k in devices for way in ((k, k - 1), (k, k + 1))]
        self._senders = {
            way: ThreadPoolExecutor(1, thread_name_prefix=f"skyfx-send-{way[0]}-to-{way[1]}")
            for way in ways
            if way[1] in range(len(rank_of)) and way[1] not in devices
        }

    @property
    def reads(self) -> Reads:
        """What this process reads of the data of a call."""
        own = self.group.rank
        return Reads(batch=own == self._rank_of[0], targets=own == self._rank_of[-1])

    def learn(self, batch: Batch) -> None:
        """Know the nesting of a batch, of which this process may be given None later."""
        if self._shared is not None:
            self._shared.learn(batch)

    def enter(self, call: str, **asked: Any) -> None:
        """Begin a call; raises in all processes if they make different ones."""
        enter(self.group, call, pipeline=self._number, **asked)

    def meet(self, call: str, make: Callable[[], CallData], asked: Mapping[str, Any]) -> CallData:
        """Begin a call with data; raises in all processes if they have different ones."""
        if self._shared is None:
            return super().meet(call, make, asked)
        number = self.group.counts[call] + 1
        name = f"{call} (step {number})" if call == "train_step" else call
        texts = {key: str(value) for key, value in asked.items()}
        data = self._shared.meet(name, texts | {"pipeline": self._number}, make)
        self.group.counts[call] = number
        return data

    def fill(
        self, parts: list[Batch], lacking: Sequence[int], failure: Exception | None
    ) -> list[Batch]:
        """Send values to the processes that lack and need some."""
        if self._shared is not None:
            parts = self._shared.fill(parts, lacking, failure)
        return super().fill(parts, lacking, failure)

    def boundaries(
        self, splits: Sequence[StagedModel], *, training: bool, turn: int = 0
    ) -> Boundaries:
        """The links of our stages in a step; `turn` keeps the messages of several steps apart."""
        ours = super().boundaries(splits, training=training)
        before, after = dict(ours.before), dict(ours.after)
        m, first = len(splits), turn * len(self._rank_of)
        in_flight = m if training else INFERENCE_CAPACITY
        for (k, to), sender in self._senders.items():
            peer, tag, group = self._rank_of[to], 2 * (first + min(k, to)), self.group
            if to < k:
                layouts = [MessageLayout(split.stages[k].receives) for split in splits]
                values = ReceiveQueue(peer, tag, group, layouts)
                before[k] = RemoteInbound(values, SendQueue(peer, tag + 1, group, sender, m))
            else:
                sent = SendQueue(peer, tag, group, sender, in_flight)
                back = ReceiveQueue(peer, tag + 1, group)
                after[k] = RemoteOutbound(sent, back, training=training)
        return Boundaries(before, after)

    def start(self, step: Step) -> RunningStep:
        """Begin our stages of a step.

        Raises:
            StageError: a stage failed, here or in another process.
            WorkerLostError: another process is gone.
        """
        with self._watching(step):
            return super().start(step) if self._device_of else []

    def finish(self, step: Step, started: RunningStep) -> None:
        """Wait for the end of our stages; raises as `start` does."""
        with self._watching(step):
            super().finish(step, started)
            step.boundaries.finish()

    @contextmanager
    def _watching(self, step: Step) -> Iterator[None]:
        """Tell the other processes when a stage of this one fails or hangs."""
        heartbeat = self.group.heartbeat
        if heartbeat is not None:
            heartbeat.overdue = lambda: step.overdue(self._patience_s, heartbeat.clock.active_s)
        try:
            yield
        except StageError as error:
            self.group.report_failure(error)
            raise
        finally:
            if heartbeat is not None:
                heartbeat.overdue = lambda: None

    def agree(self, state: Tensor) -> Tensor:
        """The state in the first process: the others may have another seed, or none."""
        return self.group.broadcast(0, state)

    def state_of(self, model: nn.Module, module: str) -> dict[str, Any]:
        """The whole state, each tensor from the first process that holds it."""
        self.enter("state_dict", module=module)
        state = model.get_submodule(module).state_dict()
        tensors = {name: x for name, x in state.items() if isinstance(x, Tensor)}
        for name, values in gathered(self.group, tensors):
            if values is None:
                raise ValueError(f"no process holds {name!r}: no stage uses it")
            state[name] = values
        return state

    def load_state(self, model: nn.Module, state: Mapping[str, Any], module: str) -> Any:
        """Load the tensors that this process holds; the names have to be the whole module's."""
        if self._shared is not None:
            self._shared.meet_with_state("load_state_dict", {"module": module}, state)
        part = model.get_submodule(module)
        own = part.state_dict()
        missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or unexpected:
            raise RuntimeError(
                f"the state is of another model: {len(missing)} of its names are missing "
                f"{missing[:3]}, {len(unexpected)} are unexpected {unexpected[:3]}"
            )
        ours = [name for name, x in own.items() if not (isinstance(x, Tensor) and x.is_meta)]
        return part.load_state_dict({name: state[name] for name in ours}, strict=False)

    def gradient_norm(self, parameters: Sequence[nn.Parameter], norm_type: float) -> Tensor:
        """The norm of all gradients in all processes; every process has to call it.

        It is bit for bit that of the unsplit model: each process sends the norm of each of its
        gradients, and they are added up in the order of the parameters.
        """
        sent = torch.zeros(2, len(parameters), dtype=torch.float64)
        for i, parameter in enumerate(parameters):
            if parameter.grad is not None:
                own = torch.linalg.vector_norm(numbers_of(parameter.grad), norm_type)
                sent[:, i] = torch.tensor([1.0, float(own)])
        is_there, norms = self.group.sum(sent)
        found = norms[is_there > 0].to(torch.get_default_dtype())
        norm: Tensor = torch.linalg.vector_norm(found, norm_type)
        return norm

    def close(self) -> None:
        """End the threads."""
        super().close()
        for sender in self._senders.values():
            sender.shutdown()

    def result(self, step: Step) -> StepResult:
        """The result of a step, in all processes."""
        ours = super().result(step)
        loss = torch.zeros(1) if ours.loss is None else ours.loss.detach().reshape(1).cpu()
        times = torch.zeros(len(self._rank_of), 2, dtype=torch.float64)
        for k, busy_s in ours.busy_s.items():
            times[k] = torch.tensor(busy_s)
        forms = [] if step.training else [split.returned for split in step.splits]
        lengths = torch.zeros(sum(len(form.shape) for row in forms for form in row))
        if len(lengths) and step.outputs:  # of this process; their lengths may depend on values
            shapes = (x.shape for m in range(len(forms)) for x in step.outputs[m])
            lengths = torch.tensor(list(itertools.chain.from_iterable(shapes)))
        sent = [loss, times.flatten(), lengths]
        found = self.group.sum(torch.cat([x.double() for x in sent]))
        loss, times, lengths = torch.split_with_sizes(found, [len(x) for x in sent])
        busy = {k: (float(x), float(y)) for k, (x, y) in enumerate(times.view(-1, 2))}
        if step.training:
            every = loss[0].to(torch.get_default_dtype()) if ours.loss is None else ours.loss
            return StepResult(every, {}, busy)
        each = map(int, lengths.tolist())
        seen = [[form.resized([next(each) for _ in form.shape]) for form in row] for row in forms]
        outputs = {m: self._outputs(step, m, row) for m, row in enumerate(seen)}
        return StepResult(None, outputs, busy)

    def timeline(self, ours: list[CompletedAction]) -> list[CompletedAction]:
        """The actions of all processes in a step, by the first one's clock."""
        ours = done_since(ahead_of_first_s(self.group), ours)
        every = self.group.all_gather_json(ours, list[CompletedAction])
        return [action for actions in every for action in actions]

    def _outputs(self, step: Step, m: int, forms: Sequence[TensorSpec]) -> list[torch.Tensor]:
        """The outputs of a micro-batch, from the process that runs the last stage."""
        layout = MessageLayout(forms)
        message = layout.pack(step.outputs[m]) if m in step.outputs else layout.buffer()
        found = layout.unpack(self.group.broadcast(self._rank_of[-1], message))
        return [x.detach() for x in found if x is not None]


def _names(stages: Sequence[PlannedStage], rank_of: Sequence[int]) -> dict[int, str]:
    """The stages of each process with their devices, as text."""
    names: dict[int, list[str]] = {}
    for k, (stage, rank) in enumerate(zip(stages, rank_of, strict=True)):
        names.setdefault(rank, []).append(f"stage {k} on {stage.device!r}")
    return {rank: ", ".join(some) for rank, some in names.items()}
