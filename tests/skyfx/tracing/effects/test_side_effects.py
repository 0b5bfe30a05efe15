"""What a captured graph would leave out in silence is refused, with the line and the cure."""

import random
from collections.abc import Callable
from random import randint
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import skyfx
from skyfx.solver.errors import CaptureError
from skyfx.tracing.capture import capture
from skyfx.tracing.effects.side_effects import checked_draws
from skyfx.tracing.leaves.leaf_calls import leaf_of
from tests.support import unsplit_reference
from tests.support.models import BATCH, Case
from tests.support.plans import SIZE, split_evenly

WIDTH = 4


class Layers(nn.Module):
    """Two layers, for the models below to do something unusual with."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.last = nn.Linear(WIDTH, WIDTH)


class HookOnTensor(Layers):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y.register_hook(lambda gradient: gradient * 2)
        return self.last(y)


class HookOnModule(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.last.register_full_backward_hook(lambda *args: None)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))


class PythonDraws(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) if random.random() < 0.5 else self.first(x)


class NamedDraws(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * randint(1, 9)


class KeptDraws(Layers):
    draw = random.random

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * self.draw()


class NumpyDraws(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * float(numpy.random.rand())


class Counts(Layers):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return self.first(x) * self.calls


class Batched(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(self.first)(x)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (KeptDraws, "draws from random, so every step would repeat one draw"),
        (Counts, r"changes 'calls' \(1, then 2\) at .*test_side_effects.py:\d+.* in a buffer"),
    ],
)
def test_what_a_graph_would_leave_out_is_refused(kind: type[Layers], message: str) -> None:
    model = kind()
    states = random.getstate(), str(numpy.random.get_state())
    with pytest.raises(CaptureError, match=message):
        capture(model, torch.randn(BATCH, WIDTH))
    assert (random.getstate(), str(numpy.random.get_state())) == states
    assert vars(model).get("calls", 0) == 0


@pytest.mark.parametrize("kind", [HookOnTensor, HookOnModule, Batched])
def test_gradients_of_hooks_and_vmap_in_the_models_own_forward_are_exact(
    kind: type[Layers],
) -> None:
    made = Case(kind(), torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH), mse_loss)
    alone = unsplit_reference.unsplit(made)
    with split_evenly(made, 2) as pipeline:
        expected = unsplit_reference.train_step(alone, SIZE)
        assert torch.equal(pipeline.train_step(made.batch, made.targets, mse_loss), expected)
        unsplit_reference.assert_equal_gradients(pipeline, alone.model)


@pytest.mark.parametrize("kind", [PythonDraws, NamedDraws, NumpyDraws])
def test_foreign_draws_in_the_models_own_forward_differ_from_step_to_step(
    kind: type[Layers],
) -> None:
    states = random.getstate(), str(numpy.random.get_state())
    captured = capture(kind(), torch.randn(BATCH, WIDTH))
    assert (random.getstate(), str(numpy.random.get_state())) == states
    leaves = [leaf for node in captured.ids if (leaf := leaf_of(node))]
    assert [leaf.seen.is_random for leaf in leaves] == [True]


@torch.library.custom_op("skyfx_tests::tripled", mutates_args=())
def tripled(x: Tensor) -> Tensor:
    return x.clone()


tripled.register_fake(torch.empty_like)
tripled.register_autograd(lambda ctx, gradient: 3 * gradient)


class OwnOperator(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(tripled(self.first(x)))


def test_an_operator_of_the_users_own_has_its_gradient() -> None:
    model, x = OwnOperator(), torch.randn(BATCH, WIDTH)
    model(x).sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with split_evenly(Case(model, x, x, loss_fn=nn.MSELoss()), 2) as pipeline:
        pipeline.train_step(x, None, lambda outputs, _: outputs.sum() * (BATCH / len(outputs)))
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


class Remembers(Layers):
    """Notes the longest input so far, as rotary embeddings do."""

    longest = 0

    def forward(self, x: Tensor) -> Tensor:
        self.longest = max(self.longest, len(x))
        return self.first(x)


def test_a_number_that_settles_is_not_refused() -> None:
    model, x = Remembers(), torch.randn(BATCH, WIDTH)
    assert torch.equal(capture(model, x).module(x)[0], model.first(x))


CHECKING = """
def forward(self, x, draw=draw):
    draw(32)
    return self.last(self.first(x))
"""
"""As beartype wraps a forward: it draws to pick an item, whose type it checks."""


@pytest.mark.parametrize(
    ("file", "is_refused"), [("<@beartype(Net.forward) at 0x1>", False), ("<made>", True)]
)
def test_draws_that_pick_what_is_checked_are_let_alone(file: str, is_refused: bool) -> None:
    made: dict[str, Any] = {"draw": random.getrandbits}
    exec(compile(CHECKING, file, "exec"), made)
    model = type("Net", (Layers,), {"forward": made["forward"]})()
    x = torch.randn(BATCH, WIDTH)
    if is_refused:
        with pytest.raises(CaptureError, match="draws from random"):
            capture(model, x)
    else:
        assert torch.equal(capture(model, x).module(x)[0], model(x))
        with skyfx.partition(model, ["cpu"], example_inputs=x, num_microbatches=2) as pipeline:
            assert pipeline.verified.largest == 0


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (lambda: random.random(), "random"),
        (lambda: randint(0, 3), "random"),
        (lambda: random.shuffle([1, 2]), "random"),
        (lambda: numpy.random.rand(), "numpy.random"),
        (lambda: numpy.random.permutation(3), "numpy.random"),
    ],
)
def test_draws_of_global_generators_are_noticed(draw: Callable[[], Any], name: str) -> None:
    seen = list[str]()
    with checked_draws(lambda name, *args: seen.append(name)):
        draw()
        random.setstate(random.getstate())
        numpy.random.set_state(numpy.random.get_state())
        random.Random(0).random()
    draw()
    assert seen == [name]
