"""A leaf that a plan suffers from is told of, and the cure cuts it."""

import logging

import pytest
import torch
from torch import Tensor, nn

import skyfx

WIDTH = 256


class Decides(nn.Module):
    """A line of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class Large(nn.Module):
    """Layers around that line."""

    def __init__(self, cured: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(6)))
        self.decides = Decides() if cured else None

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.layers(x))
        if self.decides is not None:
            return self.decides(h)
        return h * 2 if h.sum() > 0 else h


@pytest.mark.parametrize("cured", [False, True])
def test_a_large_leaf_is_named_with_its_line_and_the_cure(
    cured: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Large(cured), nn.Linear(WIDTH, WIDTH))
    x = torch.randn(256, WIDTH)
    with (
        caplog.at_level(logging.WARNING, logger="skyfx.passes.large_leaves"),
        skyfx.partition(model, ["cpu"], example_inputs=x, num_microbatches=1),
    ):
        pass
    told = [x for x in caplog.messages if "cannot be cut" in x]
    assert len(told) == (not cured)
    for message in told:
        assert message.startswith("1.forward is one node with ")
        assert "1 stays whole (__bool__ at test_large_leaves.py:" in message
        assert "into a submodule of its own" in message
