"""The workers of a pipeline in one process: a thread for each device."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from skyfx.runtime.batches.microbatch import Batch
from skyfx.runtime.device import LocalDevice
from skyfx.runtime.distributed.process_group import ProcessGroup
from skyfx.runtime.execution.shared_data import CallData, Reads
from skyfx.runtime.execution.split_cache import SplitFn
from skyfx.runtime.execution.stage import StagedModel
from skyfx.runtime.execution.step import Step
from skyfx.runtime.state.caller_modes import CallerModes
from skyfx.runtime.transport import local
from skyfx.solver.core.cluster import Wiring
from skyfx.solver.core.plan import Plan
from skyfx.solver.core.timeline import CompletedAction

INFERENCE_CAPACITY = 2
"""Micro-batches that may wait between two stages in inference: stages overlap in bounded memory."""


RunningStep = Sequence[Future[None]]
"""The futures of the devices that run a step."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """The loss of a step, its outputs by micro-batch, and busy seconds by stage.

    Busy seconds are those of one micro-batch, forward and backward.
    """

    loss: Tensor | None
    outputs: Mapping[int, local.Values]
    busy_s: Mapping[int, tuple[float, float]]


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


class Workers:
    """A thread for each device; a single device runs its stages in the caller's thread.

    OpenMP lets threads spin between two parallel regions only while it has no more threads than
    cores. A worker with several torch threads would be a second team of them and end that: a BERT
    with small layers then takes 1.5 times as long. A single device needs no second team.

    Attributes:
        group: the processes that run the pipeline together; None in one alone.
    """

    group: ProcessGroup | None = None

    def __init__(
        self, devices: Mapping[int, LocalDevice], wiring: Wiring = lambda _, __: None
    ) -> None:
        """Start the workers.

        Args:
            devices: the device of each stage of this process, by its number.
            wiring: the link to emulate between two devices, by their names; None for no delay.
        """
        self._device_of, self._wiring = devices, wiring
        self._devices = {device.name: device for device in devices.values()}
        self._executors: dict[str, ThreadPoolExecutor] = {}
        for name, device in self._devices.items() if len(self._devices) > 1 else ():
            stages = "-".join(str(k) for k, one in devices.items() if one.name == name)
            self._executors[name] = worker(f"skyfx-stage-{stages}", device)
        executors = self._executors.values()
        self._threads = {each.submit(threading.get_ident).result() for each in executors}

    def boundaries(
        self, splits: Sequence[StagedModel], *, training: bool, turn: int = 0
    ) -> local.Boundaries:
        """The links between the stages in a step.

        Args:
            splits: of each micro-batch, `(num_microbatches,)`.
            training: whether gradients come back.
            turn: the number of this step among those that are under way at once.
        """
        m = len(splits)
        capacity = m if training else min(m, INFERENCE_CAPACITY)
        between = {}
        for k in self._device_of:
            if k + 1 in self._device_of:
                here, there = self._device_of[k].name, self._device_of[k + 1].name
                values = local.BoundedQueue[local.Values](capacity, self._wiring(here, there))
                gradients = local.BoundedQueue[local.Gradients](m, self._wiring(there, here))
                between[k] = local.LocalLink(values, gradients)
        return local.Boundaries(before={k + 1: one for k, one in between.items()}, after=between)

    def start(self, step: Step) -> RunningStep:
        """Begin a step; stages in the caller's thread have finished it at return.

        Raises:
            StageError: a stage failed.
            ValueError: the caller is within a mode that other threads do not see.
        """
        if not self._executors:
            self._run_here(step)
            return []
        run = CallerModes.here().run
        return [e.submit(run, step.run_device, name) for name, e in self._executors.items()]

    def finish(self, step: Step, started: RunningStep) -> None:
        """Wait for the end of a step; the first failure ends the others.

        Raises:
            StageError: a stage failed.
        """
        try:
            wait(started, return_when=FIRST_EXCEPTION)
        finally:  # also on Ctrl-C: no worker may continue a step that nobody waits for
            step.stop()
            wait(started)
        for future in started:  # the devices that another one stopped only saw their links closed
            error = future.exception()
            if error is not None and not isinstance(error, local.ChannelClosed):
                raise error

    @property
    def reads(self) -> Reads:
        """What this process reads of the data of a call."""
        return Reads(batch=True, targets=True)

    def learn(self, batch: Batch) -> None:
        """Know what a batch is like, before the first call."""

    def enter(self, call: str, **asked: Any) -> None:
        """Begin a call that all processes have to make, with these arguments."""

    def meet(self, call: str, make: Callable[[], CallData], asked: Mapping[str, Any]) -> CallData:
        """Begin a call with data, of which all processes are given the same.

        Raises:
            TypeError: there is no batch.
        """
        data = make()
        return data if data.batch is not None else CallData(Batch.of(None))

    def fill(
        self, parts: list[Batch], lacking: Sequence[int], failure: Exception | None
    ) -> list[Batch]:
        """The micro-batches of that call, with values for those that lack and need some.

        Raises:
            ValueError: `failure`, or that of another process.
        """
        if failure is not None:
            raise failure
        return parts

    def agree(self, state: Tensor) -> Tensor:
        """The state of torch's generator with which a step begins: that of this process."""
        return state

    def state_of(self, model: nn.Module, module: str) -> dict[str, Any]:
        """The state of a module of the model by its own names."""
        return model.get_submodule(module).state_dict()

    def load_state(self, model: nn.Module, state: Mapping[str, Any], module: str) -> Any:
        """Load such a state."""
        return model.get_submodule(module).load_state_dict(state)

    def gradient_norm(self, parameters: Sequence[nn.Parameter], norm_type: float) -> Tensor:
        """The norm of all gradients as one vector, as of `torch.nn.utils.get_total_norm`."""
        gradients = [numbers_of(x.grad) for x in parameters if x.grad is not None]
        return torch.nn.utils.get_total_norm(gradients, norm_type)

    def clip(self, parameters: Sequence[nn.Parameter], max_norm: float, norm_type: float) -> Tensor:
        """Scale all gradients down so that their norm is at most `max_norm`; returns the norm."""
        self.enter("clip_grad_norm_", max_norm=max_norm, norm_type=norm_type)
        for x in parameters:
            if x.grad is not None and x.grad.is_sparse:
                x.grad = x.grad.coalesce()  # torch scales no others
        norm = self.gradient_norm(parameters, norm_type)
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        return norm

    def refuse_reentry(self) -> None:
        """Refuse a call from within a stage, which would never return.

        Raises:
            RuntimeError: this thread runs a stage.
        """
        if threading.get_ident() in self._threads:
            raise RuntimeError(
                "the pipeline was called from inside one of its own stages: the call could never "
                "return. Use the outputs that loss_fn is given instead"
            )

    def close(self) -> None:
        """End the threads."""
        for executor in self._executors.values():
            executor.shutdown()

    def result(self, step: Step) -> StepResult:
        """The result of a step that has run."""
        total = None if step.head is None else step.head.total
        return StepResult(total, step.outputs, {k: step.busy_s(k) for k in self._device_of})

    def timeline(self, ours: list[CompletedAction]) -> list[CompletedAction]:
        """The actions of all processes in a step that has run, by one clock."""
        return ours

    def _run_here(self, step: Step) -> None:
        here = threading.get_ident()
        self._threads.add(here)
        try:
            # A separate thread would not inherit the caller's modes either.
            for name, device in self._devices.items():
                with with_torch_threads(device.num_threads), torch.inference_mode(False):
                    step.run_device(name)
        finally:
            self._threads.discard(here)


class Deployment(NamedTuple):
    """A plan, its workers, and the model as `split` for it; `staged` is that of `microbatch`."""

    plan: Plan
    workers: Workers
    split: SplitFn
    microbatch: Batch
    staged: StagedModel


class Rebalancer(Protocol):
    """Finds another plan when the present one no longer fits, and moves the model to it."""

    def replan(self, plan: Plan, measured: StepTimes, above: float, steps: int) -> Plan | None:
        """Another plan, or None to stay with the present one; see `Pipeline.rebalance`."""

    def migrate(self, plan: Plan, optimizers: Sequence[Optimizer]) -> Deployment:
        """Move parameters and optimizer state to where this plan has them."""


def done_since(zero_s: float, actions: Iterable[CompletedAction]) -> list[CompletedAction]:
    """The actions, in seconds since this time of their clock."""
    return [CompletedAction(x.action, x.began_s - zero_s, x.ended_s - zero_s) for x in actions]


def worker(name: str, device: LocalDevice) -> ThreadPoolExecutor:
    """A thread with its own number of torch threads; the calling thread keeps its own."""
    executor = ThreadPoolExecutor(1, thread_name_prefix=name)
    with with_torch_threads(torch.get_num_threads()):
        executor.submit(torch.set_num_threads, device.num_threads).result()
        # torch copies the process's number when a thread first asks; then the thread has its own.
        assert executor.submit(torch.get_num_threads).result() == device.num_threads
    return executor


@contextmanager
def with_torch_threads(num_threads: int) -> Iterator[None]:
    """Give this thread this number of torch threads, and its own back at the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def numbers_of(gradient: Tensor) -> Tensor:
    """Its numbers as a dense tensor; those of a sparse one are a row for each row that it has."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient
