"""The stages of a model: each a submodule on its device, run on one micro-batch at a time."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, fx, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from skyfx.runtime.batches.microbatch import OutputSpec
from skyfx.runtime.device import LocalDevice
from skyfx.runtime.execution.assigned_attributes import AssignedAttributes
from skyfx.runtime.execution.hook_calls import HookCalls
from skyfx.runtime.rng.step_streams import Advances
from skyfx.runtime.transport.local import Gradients, Values
from skyfx.runtime.transport.message import TensorSpec
from skyfx.solver.core.schedule import Kind


class Span(NamedTuple):
    """An action of a stage, with its begin and end on `time.perf_counter`."""

    kind: Kind
    microbatch: int
    began_s: float
    ended_s: float


class StageObserver(Protocol):
    """Is told what a stage takes and gives."""

    def ran_forward(self, values: Values, sent: Values) -> None:
        """A micro-batch went forward: what came, and what the stage sends."""

    def ran_backward(self, gradients: Gradients, returned: Gradients) -> None:
        """It went backward: the gradients that came, and those that the stage returns."""


_InFlight = tuple[list[GradientEdge | None], list[Tensor | None]]


class _Begin(torch.autograd.Function):
    """The beginning of an autograd graph, a stage's or the loss's, which notes the gradient there.

    `.grad` of a leaf would do the same, but would copy the gradient into the leaf's own layout, and
    operators before it may then add up numbers in another order.
    """

    @staticmethod
    def forward(
        ctx: Any, leaf: Tensor, i: int, gradients: list[Tensor | None], writable: bool
    ) -> Tensor:
        ctx.note = i, gradients
        alone: Any = leaf.new_empty(0)
        return alone.set_(leaf) if writable else leaf.view_as(leaf)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None, None]:
        add_gradient(gradient, *ctx.note)
        return None, None, None, None


def note_gradient(
    x: Tensor, i: int, gradients: list[Tensor | None], *, writable: bool = False
) -> Tensor:
    """Let autograd's graph begin at a tensor; its gradient becomes item `i` of these.

    Args:
        x: the tensor.
        i: its number.
        gradients: of all tensors.
        writable: whether the tensor may be written to in place. Autograd does not see then that `x`
            shares its memory.
    """
    begin: Any = _Begin.apply
    found: Tensor = begin(x.requires_grad_(), i, gradients, writable)
    return found


def add_gradient(gradient: Tensor, i: int, gradients: list[Tensor | None]) -> None:
    """Add it to item `i` of these: a loss may go backward by itself before."""
    before = gradients[i]
    gradients[i] = gradient if before is None else before + gradient


@dataclass(slots=True)
class Stage:
    """A submodule on its device.

    The module takes the values that are alive at the boundary before it, and returns those that are
    alive after it; a value that only passes through is in both. The first stage takes the model's
    inputs, the last one returns its outputs.

    Attributes:
        is_random: whether an operator draws random numbers.
        receives: the form of each input.
        written: positions of inputs that the module writes to; it gets copies, since autograd and
            other micro-batches may need them.
        since_s: while the stage computes, the time at which it began, on `time.perf_counter`.
        observer: is told of each action, if there is one.
    """

    local_device: LocalDevice
    module: fx.GraphModule
    is_random: bool
    receives: tuple[TensorSpec, ...]
    written: frozenset[int] = frozenset()
    since_s: float | None = None
    observer: StageObserver | None = None
    _spans: list[Span] = field(default_factory=list)
    _busy_s: float = 0.0
    _events: list[tuple[Kind, int, torch.Event, torch.Event]] = field(default_factory=list)
    _origin: tuple[torch.Event, float] | None = None
    _in_flight: dict[int, _InFlight] = field(default_factory=dict)
    _of_loss: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)

    def forward(
        self, microbatch: int, values: Values, *, training: bool, keeps: bool = True
    ) -> Values:
        """Run the stage forward.

        Args:
            microbatch: its number; `backward` takes the same one.
            values: from the stage before, on any device.
            training: whether gradients will flow back.
            keeps: whether values that the module writes to are as before; else what it has written
                is there, as a caller of the model has it.

        Returns:
            The values for the next stage.
        """
        gradients: list[Tensor | None] = [None] * len(values)
        # Moving values counts as communication, and so does waiting for the device they are on.
        moved = [
            value.detach().to(self.local_device.device, copy=i in self.written)
            for i, value in enumerate(values)
        ]
        began = self._began()
        with torch.set_grad_enabled(training):
            for i, value in enumerate(values):
                if training and value.requires_grad:
                    moved[i] = note_gradient(moved[i], i, gradients)
            copies = [(values[i].detach(), moved[i].detach()) for i in self.written]
            sent: Values = self.module(*moved)
        for value, copied in copies if not keeps else ():
            value.copy_(copied)
        if training:  # not the values themselves, whose memory may be freed once they are sent
            roots = [get_gradient_edge(x) if x.requires_grad else None for x in sent]
            self._in_flight[microbatch] = (roots, gradients)
        self._ended(began, Kind.FORWARD, microbatch)
        if self.observer is not None:
            self.observer.ran_forward(values, sent)
        return sent

    def backward(self, microbatch: int, gradients: Gradients) -> Gradients:
        """Run the stage backward; parameters accumulate their gradients in `.grad`.

        Args:
            microbatch: its number.
            gradients: of the values that `forward` returned; None where none flows.

        Returns:
            The gradients of the values that `forward` took; None where none flows.
        """
        edges, received = self._in_flight.pop(microbatch)
        roots, flowing = [], []
        for edge, gradient in zip(edges, gradients, strict=True):
            if gradient is not None and edge is not None:
                roots.append(edge)
                flowing.append(gradient.to(self.local_device.device))
        for parameter, gradient in self._of_loss.pop(microbatch, ()):
            roots.append(get_gradient_edge(parameter))
            flowing.append(gradient)
        began = self._began()
        if roots:
            torch.autograd.backward(roots, flowing)
        self._ended(began, Kind.BACKWARD, microbatch)
        if self.observer is not None:
            self.observer.ran_backward(gradients, received)
        return received

    def add_later(self, microbatch: int, parameter: Tensor, gradient: Tensor) -> None:
        """Let `backward` begin a parameter's gradient with this one, which the loss gives it.

        Plain torch adds up all of a micro-batch first, and then adds that to `.grad`.
        """
        self._of_loss.setdefault(microbatch, []).append((parameter, gradient))

    @property
    def busy_s(self) -> float:
        """Busy seconds since `reset`: of the CPU, or of the device's stream."""
        self.spans()
        return self._busy_s

    def spans(self) -> Sequence[Span]:
        """The actions since `reset`; on a device with a stream, by the clock of the stream."""
        for kind, microbatch, event, end in self._events:
            end.synchronize()
            assert self._origin is not None
            origin, origin_s = self._origin
            began_s = origin_s + origin.elapsed_time(event) / 1e3
            ended_s = began_s + event.elapsed_time(end) / 1e3
            self._add(Span(kind, microbatch, began_s, ended_s))
        self._events.clear()
        return self._spans

    def reset(self) -> None:
        """Forget the rest of an unfinished step, and the time counted so far."""
        self._in_flight.clear()
        self._of_loss.clear()
        self._events.clear()
        self._spans.clear()
        self._busy_s = 0.0
        self._origin = None
        self.since_s = None

    def _began(self) -> "float | torch.Event":
        """Note when an action begins, on the device's own stream if it has one."""
        self.since_s = time.perf_counter()
        if self.local_device.device.type == "cpu" or self.local_device.slowdown > 1:
            return self.since_s
        now = self._now()
        if self._origin is None:
            self._origin = now, self.since_s
        return now

    def _ended(self, began: "float | torch.Event", kind: Kind, microbatch: int) -> None:
        """Wait as long as the slowdown asks for, and count the action that ends then."""
        self.since_s = None
        if isinstance(began, torch.Event):
            self._events.append((kind, microbatch, began, self._now()))
            return
        if self.local_device.device.type != "cpu":
            torch.accelerator.synchronize(self.local_device.device)
        if self.local_device.slowdown > 1:
            time.sleep((time.perf_counter() - began) * (self.local_device.slowdown - 1))
        self._add(Span(kind, microbatch, began, time.perf_counter()))

    def _add(self, span: Span) -> None:
        """Keep a span, and the sum of all: it is read after each of thousands of actions."""
        self._spans.append(span)
        self._busy_s += span.ended_s - span.began_s

    def _now(self) -> torch.Event:
        event = torch.Event(self.local_device.device, enable_timing=True)
        event.record(torch.accelerator.current_stream(self.local_device.device))
        return event


class FirstCall(Protocol):
    """What plain torch's first call would make of a model's parameters, and keep."""

    def undo_if_stale(self) -> bool:
        """Put it back if the parameters have changed since; whether they have."""

    def settle(self) -> None:
        """The model has been called: it stays."""


@dataclass(frozen=True, slots=True)
class StagedModel:
    """A model split for one mode and shape of micro-batch.

    Attributes:
        stages: by their number; those of other processes are missing.
        outputs: how the return value nests.
        assigned: the form of what forward leaves on attributes.
        hooks: the calls of hooks that only observe.
        returned: the forms of the tensors of all three.
        advances: how far the random nodes advance torch's generator.
        first: what a first call of the model has made of its parameters.
    """

    stages: Mapping[int, Stage]
    outputs: OutputSpec
    assigned: AssignedAttributes
    hooks: HookCalls
    returned: tuple[TensorSpec, ...]
    advances: Advances
    first: FirstCall | None = None

    def leave(self, model: nn.Module, values: Sequence[Tensor]) -> Sequence[Tensor]:
        """Give attributes and hooks what the last stage has sent for them; returns the outputs."""
        num_outputs = self.outputs.num_tensors
        num_both = num_outputs + self.assigned.form.num_tensors
        self.assigned.leave(model, values[num_outputs:num_both])
        self.hooks.make(values[num_both:])
        return values[:num_outputs]

    def leave_empty(self, model: nn.Module) -> None:
        """The same where another process runs the last stage: tensors without values."""
        empty = [form.empty() for form in self.returned[self.outputs.num_tensors :]]
        self.assigned.leave_empty(model, empty[: self.assigned.form.num_tensors])
