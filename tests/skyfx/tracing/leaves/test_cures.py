"""Who follows the cure of a refusal gets a pipeline that does what the model does."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from skyfx.solver.errors import CaptureError
from skyfx.tracing.capture import capture
from tests.support import unsplit_reference
from tests.support.models import BATCH, Case
from tests.support.plans import SIZE, split_evenly

WIDTH = 6
num_calls = 0


class Line(nn.Module):
    """Something that cannot be captured as operators."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)


class Number(Line):
    def forward(self, h: Tensor) -> Tensor:
        return h * h.abs().max().item()


class Shape(Line):
    def forward(self, h: Tensor) -> Tensor:
        return h - h[h[:, 0] > 0].sum(0)


class Draws(Line):
    def forward(self, h: Tensor) -> Tensor:
        return h * random.random()


class Batched(Line):
    def forward(self, h: Tensor) -> Tensor:
        return torch.vmap(torch.tanh)(h)


LINES = (Number, Shape, Draws, Batched)


def uncured(line: type[Line]) -> nn.Module:
    """The line in a forward of which no lines can be taken out."""

    class Uncured(line):  # type: ignore[valid-type, misc]
        def forward(self, x: Tensor) -> Tensor:
            global num_calls
            num_calls += 1
            return self.last(line.forward(self, self.first(x)))

    return Uncured()


class Cured(Line):
    """The line in a submodule."""

    def __init__(self, line: type[Line]) -> None:
        super().__init__()
        self.line = line()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.line(self.first(x)))


def rows() -> Tensor:
    return torch.randn(BATCH, WIDTH) + torch.linspace(-1, 1, BATCH)[:, None]


@pytest.mark.parametrize("line", LINES)
def test_a_submodule_is_the_cure(line: type[Line]) -> None:
    torch.manual_seed(1)
    made = Case(Cured(line), rows(), rows(), functional.mse_loss)
    with pytest.raises(CaptureError, match=r"a submodule.* which then stays whole") as refused:
        split_evenly(Case(uncured(line), made.batch, made.targets, made.loss_fn), 2, check="off")
    assert len(str(refused.value).splitlines()) <= 3
    alone = unsplit_reference.unsplit(made)
    with split_evenly(made, 2, check="off") as pipeline:
        loss = pipeline.train_step(made.batch, made.targets, made.loss_fn)
        if line is not Draws:  # which draws from another stream
            assert torch.equal(loss, unsplit_reference.train_step(alone, SIZE))
            unsplit_reference.assert_equal_gradients(pipeline, alone.model)


def test_what_blocks_is_told_beside_the_first_obstacle() -> None:
    class Cache:
        """An object that cannot be an input of a node."""

    class Asks(nn.Module):
        def forward(self, h: Tensor, cache: Any) -> Tensor:
            return torch.from_numpy(h.detach().numpy())

    class Blocked(Line):
        def __init__(self) -> None:
            super().__init__()
            self.asks = Asks()

        def forward(self, x: Tensor) -> Tensor:
            global num_calls
            num_calls += 1
            return self.asks(self.first(x), Cache())

    with pytest.raises(
        CaptureError, match=r"cannot stay whole, at .*: asks gets an object"
    ) as refused:
        capture(Blocked(), rows())
    assert len(str(refused.value).splitlines()) <= 3
