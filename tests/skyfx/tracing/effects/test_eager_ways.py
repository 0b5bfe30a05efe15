"""A captured graph does what eager torch does, where torch.export notes something else."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from tests.support import unsplit_reference
from tests.support.models import BATCH, Case
from tests.support.plans import SIZE, split_evenly

WIDTH = 4


class StopError(Exception):
    """Ends a forward."""


class Odd(nn.Module):
    """Tries operators that fail, ends a submodule by a hook, and draws whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.inner = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
        self.inner[1].register_forward_hook(self.stop)

    def stop(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.seen = output
        raise StopError

    def stopped(self, h: Tensor) -> Tensor:
        try:
            return self.inner(h)
        except StopError:
            return self.seen

    def tried(self, h: Tensor) -> Tensor:
        try:
            h = h @ torch.ones(3, 3)
        except RuntimeError:
            h = h * 2
        try:
            return h.view(3, 5) + h.add_(torch.ones(7))
        except RuntimeError:
            return h + 1

    def forward(self, x: Tensor) -> Tensor:
        h = self.stopped(self.tried(self.first(x)))
        h = h + torch.randint_like(h, 0, 3) + torch.empty_like(h).random_(0, 4)
        return self.last(h)


def test_operators_that_fail_and_draws_of_whole_numbers_are_exact() -> None:
    made = Case(Odd(), torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH), mse_loss)
    alone = unsplit_reference.unsplit(made)
    with split_evenly(made, 2) as pipeline:
        torch.manual_seed(3)
        expected = unsplit_reference.train_step(alone, SIZE)
        torch.manual_seed(3)
        assert torch.equal(pipeline.train_step(made.batch, made.targets, mse_loss), expected)
        unsplit_reference.assert_equal_gradients(pipeline, alone.model)
