"""What is changed on a model between two steps holds from the next step on, as in plain torch."""

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import skyfx

SIZE = 2
BATCH, TARGETS = torch.linspace(-1, 1, 32).reshape(4, 8), torch.linspace(1, -1, 32).reshape(4, 8)


class Annealed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.dropout, self.norm = nn.Dropout(0.0), nn.BatchNorm1d(8)
        self.temperature, self.scale, self.options = 1.0, torch.ones(8), {"gain": 1.0}
        self.best, self.history = 0.0, list[float]()
        self.activation: Callable[[Tensor], Tensor] = torch.tanh

    def forward(self, x: Tensor) -> Tensor:
        h = self.dropout(self.activation(self.first(x) * self.scale))
        return self.last(self.norm(h) / self.temperature) * self.options["gain"]


def notes(model: Annealed) -> None:
    """What forward does not read."""
    model.best += 1.0
    model.history.append(model.best)


def temperature(model: Annealed) -> None:
    model.temperature = 0.5


def dropout(model: Annealed) -> None:
    model.dropout.p = 0.3


def momentum(model: Annealed) -> None:
    model.norm.momentum = 0.5


def another_tensor(model: Annealed) -> None:
    model.scale = torch.full((8,), 0.5)


def entry(model: Annealed) -> None:
    model.options["gain"] = 3.0


def function(model: Annealed) -> None:
    model.activation = torch.sigmoid


def plain_step(model: Annealed) -> Tensor:
    total = torch.zeros(())
    for batch, targets in zip(BATCH.split(SIZE), TARGETS.split(SIZE), strict=True):
        loss = functional.mse_loss(model(batch), targets) * (SIZE / len(BATCH))
        loss.backward()  # type: ignore[no-untyped-call]
        total = total + loss.detach()
    return total


def test_values_that_are_changed_hold_from_the_next_step_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, plain = Annealed(), Annealed()
    changes = (notes, temperature, dropout, momentum, another_tensor, entry, function)
    said = []
    with (
        caplog.at_level(logging.WARNING),
        skyfx.partition(
            model, ["cpu", "cpu"], example_inputs=BATCH, num_microbatches=2, pins=["last=cpu:1"]
        ) as pipeline,
    ):
        for change in changes:
            caplog.clear()
            losses = []
            for each, step in (
                (plain, lambda: plain_step(plain)),
                (model, lambda: pipeline.train_step(BATCH, TARGETS, functional.mse_loss)),
            ):
                each.zero_grad()
                change(each)
                torch.manual_seed(3)
                losses.append(step())
            assert losses[0] == losses[1]
            for found, expected in zip(model.parameters(), plain.parameters(), strict=True):
                assert torch.equal(found.grad, expected.grad)  # type: ignore[arg-type]
            for found, expected in zip(model.buffers(), plain.buffers(), strict=True):
                assert torch.equal(found, expected)
            said.append([record.getMessage().partition(" has ")[0] for record in caplog.records])
    names = ["'temperature'", "'dropout.p'", "'norm.momentum'", "'scale'", "'options'"]
    assert said == [[], *([name] for name in [*names, "'activation'"])]


def test_a_part_of_forward_may_be_left_out_of_autocast() -> None:
    """Forward and loss are in the caller's autocast, and backward is not, as torch advises."""

    class InFloats(Annealed):
        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.first(x))
            with torch.autocast("cpu", enabled=False):
                h = h.float() @ self.last.weight.float()
            return self.last(torch.relu(h))

    model, plain = InFloats(), InFloats()
    for batch, targets in zip(BATCH.split(SIZE), TARGETS.split(SIZE), strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            loss = functional.mse_loss(plain(batch), targets) * (SIZE / len(BATCH))
        loss.backward()  # type: ignore[no-untyped-call]
    with (
        skyfx.partition(
            model, ["cpu", "cpu"], example_inputs=BATCH, num_microbatches=2, pins=["last=cpu:1"]
        ) as pipeline,
        torch.autocast("cpu", torch.bfloat16),
    ):
        pipeline.train_step(BATCH, TARGETS, functional.mse_loss)
    for found, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert (found.grad is None) == (expected.grad is None)
        if found.grad is not None and expected.grad is not None:
            assert torch.equal(found.grad, expected.grad)
