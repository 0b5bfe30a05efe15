"""A parameter with several readers within `torch.autocast` has the gradient of plain torch."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from tests.support.models import BATCH, Case
from tests.support.plans import NUM_MICROBATCHES, SIZE, split_evenly

WIDTH = 6


class Repeated(nn.Module):
    """Calls its layers several times: some in an autocast of its own, some in that around it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def within(self, h: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            for _ in range(3):
                h = torch.tanh(self.first(h))
        return h.float()

    def forward(self, x: Tensor) -> Tensor:
        h = self.within(x)
        for layer in (self.first, self.last, self.last, self.first):
            h = torch.tanh(layer(h))
        return h + self.first.weight.to(h.dtype).sum()


def test_gradients_of_all_readers_are_added_up_in_the_type_of_the_copy() -> None:
    x, targets = torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH)
    made = Case(Repeated(), x, targets, mse_loss)
    for around in (True, False):
        plain = copy.deepcopy(made.model)
        for part, goal in zip(x.split(SIZE), targets.split(SIZE), strict=True):
            with torch.autocast("cpu", torch.bfloat16, enabled=around):
                loss = mse_loss(plain(part), goal)
            (loss / NUM_MICROBATCHES).backward()  # type: ignore[no-untyped-call]
        made.model.zero_grad()
        with split_evenly(made, 3) as pipeline, torch.autocast("cpu", torch.bfloat16, around):
            pipeline.train_step(x, targets, mse_loss)
        for found, expected in zip(made.model.parameters(), plain.parameters(), strict=True):
            assert found.grad is not None
            assert expected.grad is not None
            assert torch.equal(found.grad, expected.grad)
