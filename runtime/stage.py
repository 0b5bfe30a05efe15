"""One stage of a pipeline: a submodule on its device, run on one micro-batch at a time."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd.graph import GradientEdge, get_gradient_edge

from skyfx.runtime.channel import Gradients, Values
from skyfx.runtime.message import Form

__all__: list[str] = ["Place", "Stage"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a stage runs: a torch device under the name that the plan gives it.

    `slowdown` is emulated by waiting, after each action, as many times longer as it took. `type` is
    what times on it are keyed by.
    """

    name: str
    device: torch.device
    slowdown: float = 1.0
    num_threads: int = 1
    type: str = "cpu"


class _Begin(torch.autograd.Function):
    """Where a stage's autograd graph begins: notes the gradient that comes back.

    `.grad` of a leaf would do the same, but copies it into the leaf's own layout, and operators
    before it may add numbers up in another order then.
    """

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, i: int, gradients: list[Tensor | None]) -> Tensor:
        ctx.note = i, gradients
        return leaf.view_as(leaf)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        i, gradients = ctx.note
        gradients[i] = gradient
        return None, None, None


@dataclass(slots=True)
class Stage:
    """A submodule on its device.

    The module takes the values that are alive at the boundary before it, and returns those that are
    alive behind it; one that only passes through is among both. The first stage takes the model's
    inputs, the last one returns its outputs. `receives` says what it takes. Inputs that it writes
    to, by their places in `written`, it copies first: they are parts of the caller's batch.
    """

    place: Place
    module: fx.GraphModule
    is_random: bool
    receives: tuple[Form, ...]
    written: frozenset[int] = frozenset()
    busy_s: float = 0.0
    _live: dict[int, tuple[list[GradientEdge | None], list[Tensor | None]]] = field(
        default_factory=dict
    )

    def forward(self, microbatch: int, values: Values, *, training: bool) -> Values:
        """Run the stage forward.

        Args:
            microbatch: its number; in training what backward needs is kept under it.
            values: what the stage before sent, on whatever device.
            training: whether gradients will flow back.

        Returns:
            What the next stage receives.
        """
        began = time.perf_counter()
        gradients: list[Tensor | None] = [None] * len(values)
        with torch.set_grad_enabled(training):
            sent: Values = self.module(
                *(self._receive(i, value, training, gradients) for i, value in enumerate(values))
            )
        if training:  # where backward begins, and not the values, which may go when they are sent
            roots = [get_gradient_edge(x) if x.requires_grad else None for x in sent]
            self._live[microbatch] = (roots, gradients)
        self._wait(began)
        return sent

    def backward(self, microbatch: int, gradients: Gradients) -> Gradients:
        """Run the stage backward; parameters gather their gradients in `.grad`.

        Args:
            microbatch: its number.
            gradients: of what it sent, None where none flows.

        Returns:
            The gradients of what it received, None where none flows.
        """
        began = time.perf_counter()
        roots, received = self._live.pop(microbatch)
        pairs = [
            (root, gradient.to(self.place.device))
            for root, gradient in zip(roots, gradients, strict=True)
            if gradient is not None and root is not None
        ]
        if pairs:
            torch.autograd.backward([root for root, _ in pairs], [g for _, g in pairs])
        self._wait(began)
        return received

    def reset(self) -> None:
        """Forget what an unfinished step has left, and the time counted so far."""
        self._live.clear()
        self.busy_s = 0.0

    def _receive(
        self, i: int, value: Tensor, training: bool, gradients: list[Tensor | None]
    ) -> Tensor:
        """The value as this stage's own autograd graph begins with it."""
        leaf = value.detach().to(self.place.device, copy=i in self.written)
        if not (training and value.requires_grad):
            return leaf
        begun: Tensor = _Begin.apply(leaf.requires_grad_(), i, gradients)  # type: ignore[no-untyped-call]
        return begun

    def _wait(self, began: float) -> None:
        if self.place.device.type != "cpu" and self.place.slowdown > 1:
            torch.accelerator.synchronize(self.place.device)
        took = time.perf_counter() - began
        if self.place.slowdown > 1:
            time.sleep(took * (self.place.slowdown - 1))
        self.busy_s += time.perf_counter() - began
