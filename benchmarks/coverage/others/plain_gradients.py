"""Networks with gradients of their own: custom functions, derivatives in forward, checkpoints."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.coverage.others.recipes import Models, floats

__all__: list[str] = ["MODELS", "WIDTH", "Rounds", "Sandwich", "X", "plain"]

WIDTH = 8
X = floats(WIDTH)


class Sandwich(nn.Module):
    """Two layers and what is between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def between(self, h: Tensor) -> Tensor:
        """What a subclass puts there."""
        return h

    def forward(self, x: Tensor) -> Tensor:
        """The layers, one after the other."""
        return self.last(self.between(torch.tanh(self.first(x))))


class Rounds(torch.autograd.Function):
    """Rounded forward, unchanged backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """To whole numbers."""
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """As it is."""
        return gradient


class Reverses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float) -> Tensor:
        ctx.rate = rate
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.rate * gradient, None


rounded = Rounds.apply


class BoundEarly(Sandwich):
    def between(self, h: Tensor) -> Tensor:
        return rounded(h * 4) / 4


class GradientReversal(Sandwich):
    def between(self, h: Tensor) -> Tensor:
        return h + Reverses.apply(h, 0.5)


class StraightThrough(Sandwich):
    def between(self, h: Tensor) -> Tensor:
        return h + (h.sign() - h).detach()


class Teacher(Sandwich):
    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Linear(WIDTH, WIDTH)

    def between(self, h: Tensor) -> Tensor:
        with torch.inference_mode():
            told = self.teacher(h)
        return h + told.clone()


class Checkpointed(Sandwich):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))
        self.reentrant = reentrant

    def between(self, h: Tensor) -> Tensor:
        return h + checkpoint(self.inner, h, use_reentrant=self.reentrant)


class Forces(nn.Module):
    """An energy, and its gradient by positions."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 16), nn.SiLU(), nn.Linear(16, 1))

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            positions = positions.clone().requires_grad_(True)
            energy = self.net(positions.flatten(1))
            forces = -torch.autograd.grad(energy.sum(), positions, create_graph=True)[0]
        return energy, forces


class Oscillator(Forces):
    """Physics-informed: the residual of a differential equation."""

    def forward(self, positions: Tensor) -> Tensor:
        t = positions.flatten(1).detach().requires_grad_(True)
        with torch.enable_grad():
            u = self.net(t)
            first = torch.autograd.grad(u.sum(), t, create_graph=True)[0]
        return first.sum(1, keepdim=True) + u


class Clamped(Sandwich):
    """Weights are clipped in place, as by WGAN's first authors."""

    def between(self, h: Tensor) -> Tensor:
        self.last.weight.data.clamp_(-0.2, 0.2)
        return h


def plain(*kinds: Callable[[], nn.Module]) -> Models:
    """These classes under their own names."""
    return {f"plain {kind.__name__}": (kind, X) for kind in kinds}


MODELS: Models = {
    **plain(BoundEarly, GradientReversal, StraightThrough, Teacher, Clamped),
    "plain Checkpointed": (lambda: Checkpointed(reentrant=False), X),
    "plain Checkpointed reentrant": (lambda: Checkpointed(reentrant=True), X),
    "plain Forces": (Forces, floats(4, 3)),
    "plain Oscillator": (Oscillator, floats(4, 3)),
}
