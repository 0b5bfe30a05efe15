"""Who runs the stages of a pipeline: threads of this process, one for each device."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skyfx.runtime.device import LocalDevice
from skyfx.runtime.distributed.process_group import ProcessGroup
from skyfx.runtime.execution.stage import Span
from skyfx.runtime.execution.step import StagedModel, Step
from skyfx.runtime.transport.local import Boundaries, ChannelClosed, LocalLink, Values
from skyfx.solver.core.cluster import Link, Wire, Wiring
from skyfx.solver.core.schedule import Action
from skyfx.solver.core.timeline import CompletedAction

__all__: list[str] = [
    *("StepResult", "RunningStep", "Workers", "done_since", "with_torch_threads", "worker"),
]

INFERENCE_CAPACITY = 2
"""Micro-batches that may wait between two stages in inference: they overlap, in bounded memory."""


RunningStep = Sequence[Future[None]]
"""A step under way: the devices that are at it."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came of a step: its loss, its outputs by micro-batch, and busy seconds by stage.

    These are of a micro-batch forward, and backward.
    """

    loss: Tensor | None
    outputs: Mapping[int, Values]
    busy_s: Mapping[int, tuple[float, float]]


class Workers:
    """A thread for each device; one that is alone runs its stages in the caller's thread.

    OpenMP lets threads spin between two parallel regions only while it counts no more of them than
    cores. A second team of them, as a worker with several torch threads has, ends that: a BERT with
    small layers then takes half as long again. A single device needs no second team.
    """

    def __init__(
        self, places: Mapping[int, LocalDevice], wiring: Wiring = lambda _, __: None
    ) -> None:
        """Start the workers.

        Args:
            places: where each stage runs, by its number.
            wiring: what to emulate between two devices, by their names; else handing over is free.
        """
        self._places, self._wiring = places, wiring
        self._threads: set[int] = set()
        self._executors: dict[str, ThreadPoolExecutor] = {}
        self._devices = {place.name: place for place in places.values()}
        if len(self._devices) > 1:
            self._executors = {
                name: worker(f"skyfx-stage-{_numbers(places, name)}", place)
                for name, place in self._devices.items()
            }
        for executor in self._executors.values():
            self._threads.add(executor.submit(threading.get_ident).result())

    @property
    def group(self) -> ProcessGroup | None:
        """The processes that run the pipeline together; None in one alone."""
        return None

    def boundaries(
        self, splits: Sequence[StagedModel], *, training: bool, turn: int = 0
    ) -> Boundaries:
        """What stands between the stages in a step.

        Args:
            splits: of each micro-batch, `(num_microbatches,)`.
            training: whether gradients come back.
            turn: which of the steps that are under way at once this is.
        """
        m = len(splits)
        capacity = m if training else min(m, INFERENCE_CAPACITY)
        between = {
            k: LocalLink(capacity, m, *self._wires(k))
            for k in self._places
            if k + 1 in self._places
        }
        return Boundaries(before={k + 1: one for k, one in between.items()}, after=between)

    def _wires(self, k: int) -> tuple[Link | Wire | None, Link | Wire | None]:
        """From a stage to the next one, and back."""
        here, there = self._places[k].name, self._places[k + 1].name
        return self._wiring(here, there), self._wiring(there, here)

    def start(self, step: Step) -> RunningStep:
        """Begin a step; stages that run in the caller's thread are at its end then.

        Raises:
            StageError: a stage failed.
        """
        if not self._executors:
            self._run_here(step)
        return [e.submit(step.run_device, name) for name, e in self._executors.items()]

    def finish(self, step: Step, started: RunningStep) -> None:
        """Wait for the end of a step; the first failure ends the others.

        Raises:
            StageError: a stage failed.
        """
        try:
            wait(started, return_when=FIRST_EXCEPTION)
        finally:  # also on Ctrl-C: no worker may go on with a step that nobody waits for
            step.stop()
            wait(started)
        _raise_first_failure(started)

    def agreed(self, state: Tensor) -> Tensor:
        """The state of torch's generator that a step begins with: this process's own."""
        return state

    def state_of(self, model: nn.Module) -> dict[str, Any]:
        """The model's state by its own names."""
        return model.state_dict()

    def load_state(self, model: nn.Module, state: Mapping[str, Any]) -> Any:
        """Load such a state."""
        return model.load_state_dict(state)

    def gradient_norm(self, parameters: Sequence[nn.Parameter], norm_type: float) -> Tensor:
        """The norm of all gradients as one vector, as `torch.nn.utils.get_total_norm` has it."""
        gradients = [x.grad for x in parameters if x.grad is not None]
        return torch.nn.utils.get_total_norm(gradients, norm_type)

    def refuse_own(self) -> None:
        """Refuse a call that comes from within a stage: it would wait for itself for ever."""
        if threading.get_ident() in self._threads:
            raise RuntimeError(
                "the pipeline is called from its own stage, which would wait for itself for ever: "
                "let loss_fn use the outputs that it is given"
            )

    def close(self) -> None:
        """End the threads."""
        for executor in self._executors.values():
            executor.shutdown()

    def outcome(self, step: Step) -> StepResult:
        """What came of a step that has run."""
        total = None if step.head is None else step.head.total
        return StepResult(total, step.outputs, {k: step.busy_s(k) for k in self._places})

    def timeline(self, spans: Mapping[int, Sequence[Span]]) -> list[CompletedAction]:
        """The actions of a step that has run, of all stages, by one clock.

        Args:
            spans: of the stages that run here, by their numbers.
        """
        return done_since(spans, 0.0)

    def _run_here(self, step: Step) -> None:
        here = threading.get_ident()
        self._threads.add(here)
        try:
            # A thread of its own would not know the caller's modes either.
            for name, place in self._devices.items():
                with with_torch_threads(place.num_threads), torch.inference_mode(False):
                    step.run_device(name)
        finally:
            self._threads.discard(here)


def done_since(spans: Mapping[int, Sequence[Span]], zero_s: float) -> list[CompletedAction]:
    """Actions in seconds since a moment on `time.perf_counter`."""
    return [
        CompletedAction(
            Action(k, span.kind, span.microbatch), span.began_s - zero_s, span.ended_s - zero_s
        )
        for k, of_stage in spans.items()
        for span in of_stage
    ]


def _numbers(places: Mapping[int, LocalDevice], name: str) -> str:
    """The numbers of a device's stages: `0-3`."""
    return "-".join(str(k) for k, place in places.items() if place.name == name)


def worker(name: str, place: LocalDevice) -> ThreadPoolExecutor:
    """A thread with its own number of torch threads; the calling thread keeps its own."""
    executor = ThreadPoolExecutor(1, thread_name_prefix=name)
    before = torch.get_num_threads()
    executor.submit(_use_torch_threads, place.num_threads).result()
    torch.set_num_threads(before)
    return executor


@contextmanager
def with_torch_threads(num_threads: int) -> Iterator[None]:
    """Within it, this thread has this number of torch threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _use_torch_threads(num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    # torch takes the process's number over when a thread first asks: from now on it has its own.
    assert torch.get_num_threads() == num_threads


def _raise_first_failure(futures: Sequence[Future[None]]) -> None:
    """Raise the failure that stopped the others, which only saw their channels closed."""
    for future in futures:
        error = future.exception()
        if error is not None and not isinstance(error, ChannelClosed):
            raise error
