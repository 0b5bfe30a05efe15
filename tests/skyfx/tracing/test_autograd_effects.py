"""What a forward asks of autograd itself trains as in plain torch."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from skyfx.tracing.capture import Capture
from skyfx.tracing.leaf_calls import leaf_of
from tests.support import unsplit_reference
from tests.support.models import BATCH, Case
from tests.support.plans import SIZE, split_evenly
from tests.support.unsplit_reference import assert_equal_gradients

WIDTH = 6


class Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float = 1.0) -> Tensor:
        return (x * scale).round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient, None


straight_through = Round.apply
"""Bound before skyfx could see a call of it, as in torch's own documents."""


class Net(nn.Module):
    """Two linear layers, and between them what a test says."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.teacher = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


class BoundEarly(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(straight_through(straight_through(self.first(x)), 3.0))


class BoundLate(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(Round.apply(self.first(x)))


class Quantiser(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return straight_through(x)


class InSubmodule(Net):
    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Sequential(Quantiser(), nn.Tanh(), Quantiser())

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))


class Inference(Net):
    """The teacher is not trained."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        with torch.inference_mode():
            told = torch.tanh(self.teacher(h))
            with torch.inference_mode(False), torch.no_grad():
                told = told + 1
        return self.last(h - told)


class Teacher(nn.Linear):
    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class DecoratedInference(Net):
    def __init__(self) -> None:
        super().__init__()
        self.teacher = Teacher(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.last(h - self.teacher(h))


class InferenceOfOne(Net):
    """A submodule in plain torch's inference mode, by a method bound early."""

    def forward(self, x: Tensor) -> Tensor:
        told = no_gradients(self.teacher)(x)
        return self.last(torch.tanh(self.first(x)) - told)


no_gradients = torch.inference_mode(True)


class Switches(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        with torch.no_grad():
            told = self.teacher(h)
            with torch.enable_grad():
                more = self.last(h)
        torch.set_grad_enabled(False)
        less = self.teacher(h)
        torch.set_grad_enabled(True)
        return self.last(h - told) + more + less


class Reentrant(Net):
    """The first value needs no gradient, the second one does."""

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(self.teacher, x, use_reentrant=True)
        h = self.first(h)
        h = checkpoint(lambda a, b: torch.tanh(self.last(a)) * b, h, 2.0, use_reentrant=True)
        return self.last(checkpoint(self.first, h, use_reentrant=False))


class WithoutGradientInside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return 2 * gradient


class NeedsNoGradient(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(WithoutGradientInside.apply(x))))


class ReadsData(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.last.weight.data.clamp_(-0.2, 0.2)
        h = self.first(x)
        h = self.last(h + h.data * self.teacher.weight.data.mean())
        self.last.weight.data.clamp_(-0.2, 0.2)  # which backward does not mind
        return h


class SetsData(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.first.weight.data = self.first.weight.data / self.first.weight.data.norm()
        return self.last(self.first(x))


class Decays(Net):
    """Each call changes a parameter, and no call before the first step counts."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        with torch.no_grad():
            self.teacher.weight.mul_(0.9)
        return self.last(h) + self.teacher(x)


class Contrasts(Net):
    """A moving average of parameters, and a queue that is written by an index, as MoCo has them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.randn(WIDTH, 2 * BATCH))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))
        self.teacher.requires_grad_(False)

    @torch.no_grad()
    def move(self) -> None:
        for own, other in zip(self.teacher.parameters(), self.first.parameters(), strict=True):
            own.data = own.data * 0.9 + other.data * 0.1

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        begin = int(self.pointer)
        self.queue.data[:, begin : begin + len(keys)] = keys.T
        self.pointer[0] = (begin + len(keys)) % self.queue.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        query = functional.normalize(self.first(x), dim=1)
        with torch.no_grad():
            self.move()
            keys = functional.normalize(self.teacher(x), dim=1)
        found = query * keys + (query @ self.queue.clone().detach())[:, :WIDTH]
        self.enqueue(keys)
        return self.last(found)


EXACT = [
    BoundEarly,
    BoundLate,
    InSubmodule,
    Inference,
    DecoratedInference,
    InferenceOfOne,
    Switches,
    Reentrant,
    NeedsNoGradient,
    ReadsData,
    SetsData,
    Decays,
    Contrasts,
]


def case(model: nn.Module) -> Case:
    torch.manual_seed(1)
    return Case(model, torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH), functional.mse_loss)


def kept(captured: Capture) -> list[str]:
    return [captured.ids[node] for node in captured.ids if leaf_of(node)]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@pytest.mark.parametrize("kind", EXACT)
def test_it_trains_and_infers_as_in_plain_torch(kind: type[nn.Module]) -> None:
    trains_exactly(kind())


def trains_exactly(model: nn.Module) -> None:
    ours = case(model)
    alone = Case(copy.deepcopy(ours.model), ours.batch, ours.targets, ours.loss_fn)
    with split_evenly(ours, 2) as pipeline:
        for _ in range(2):
            expected = unsplit_reference.train_step(alone, SIZE)
            found = pipeline.train_step(ours.batch, ours.targets, ours.loss_fn)
            assert torch.equal(found, expected)
        assert_equal_gradients(pipeline, alone.model)
        assert torch.equal(pipeline(ours.batch), unsplit_reference.infer(alone, SIZE)[0])
    for key, value in alone.model.state_dict().items():
        assert torch.equal(ours.model.state_dict()[key], value), key


class Forces(nn.Module):
    """Minus the gradient of an energy, as force fields have it."""

    create_graph = True

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)

    def energy(self, x: Tensor) -> Tensor:
        return self.other(torch.relu(torch.tanh(self.one(x))) @ torch.ones(WIDTH, WIDTH)).sin()

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.requires_grad_() if x.is_leaf else x
            (found,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=self.create_graph)
        return -found


class DetachedForces(Forces):
    create_graph = False


class ForcesByMethods(Forces):
    """The innermost call has not all that it differentiates."""

    def differentiate(self, energy: Tensor, x: Tensor) -> Tensor:
        return torch.autograd.grad(energy.sum(), x, create_graph=True)[0]

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.requires_grad_() if x.is_leaf else x
            return self.differentiate(self.energy(x), x)


class FunctionalForces(Forces):
    def forward(self, x: Tensor) -> Tensor:
        return torch.func.grad(lambda at: self.energy(at).sum())(x)


class Directional(Forces):
    def forward(self, x: Tensor) -> Tensor:
        return torch.func.jvp(torch.tanh, (self.one(x),), (torch.ones_like(x),))[1]


class Jacobian(Forces):
    def forward(self, x: Tensor) -> Tensor:
        return torch.func.vmap(torch.func.jacrev(self.energy))(x)[:, 0]


class With(Net):
    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(torch.tanh(self.first(x))))


class OwnMethod(Forces):
    """A method of the model itself, on its input."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.forces(x))

    def forces(self, x: Tensor) -> Tensor:
        return Forces.forward(self, x)


DERIVATIVES = [Forces, DetachedForces, ForcesByMethods, FunctionalForces, Directional, Jacobian]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("kind", [*DERIVATIVES, OwnMethod])
def test_derivatives_are_exact(kind: type[nn.Module]) -> None:
    trains_exactly(OwnMethod() if kind is OwnMethod else With(kind()))
