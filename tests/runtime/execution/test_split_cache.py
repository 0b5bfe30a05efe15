"""What is changed on a model between two steps holds from the next step on, as in plain torch."""

import logging
from argparse import Namespace
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import skyfx
from tests.support import unsplit_reference
from tests.support.models import Case

SIZE = 2
BATCH, TARGETS = torch.linspace(-1, 1, 32).reshape(4, 8), torch.linspace(1, -1, 32).reshape(4, 8)


SCALE, NOTE = 1.0, 0
OPTIONS = {"shift": 0.0, "note": 0}
ARGUMENTS = Namespace(power=1.0, note=0)


def scaled(h: Tensor) -> Tensor:
    return h * SCALE + OPTIONS["shift"]


def made_by(width: float) -> tuple[Callable[[Tensor], Tensor], Callable[[float], None]]:
    def widen(h: Tensor) -> Tensor:
        return h * width

    def put(value: float) -> None:
        nonlocal width
        width = value

    return widen, put


WIDEN, PUT = made_by(1.0)


class Annealed(nn.Module):
    slope, count = 1.0, 0

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
        h = WIDEN(scaled(h)) * self.slope + ARGUMENTS.power
        return self.last(self.norm(h) / self.temperature) * self.options["gain"]


def notes(model: Annealed) -> None:
    """What forward does not read."""
    model.best += 1.0
    model.history.append(model.best)
    Annealed.count += 1
    OPTIONS["note"] += 1
    ARGUMENTS.note += 1
    globals()["NOTE"] += 1


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


def globals_and_class(model: Annealed) -> None:
    globals()["SCALE"] = 2.0
    OPTIONS["shift"] = 0.5
    Annealed.slope = 0.5


def functions_and_arguments(model: Annealed) -> None:
    globals()["scaled"] = torch.neg
    ARGUMENTS.power = 0.25
    PUT(3.0)


def plain_step(model: Annealed) -> Tensor:
    return unsplit_reference.step(Case(model, BATCH, TARGETS, functional.mse_loss), SIZE)


def test_values_that_are_changed_hold_from_the_next_step_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, plain = Annealed(), Annealed()
    own = (notes, temperature, dropout, momentum, another_tensor, entry, function)
    beside = (globals_and_class, functions_and_arguments)
    said = []
    with (
        caplog.at_level(logging.WARNING),
        skyfx.partition(
            model, ["cpu", "cpu"], example_inputs=BATCH, num_microbatches=2, pins=["last=cpu:1"]
        ) as pipeline,
    ):
        for change in (*own, *beside):
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
    names += ["'activation'", f"'Annealed: slope', '{__name__}: OPTIONS', '{__name__}: SCALE'"]
    names += [f"'made_by.<locals>.widen: width', '{__name__}: ARGUMENTS', '{__name__}: scaled'"]
    assert said == [[], *([name] for name in names)]


def test_what_stays_whole_may_change_globals_itself(caplog: pytest.LogCaptureFixture) -> None:
    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            globals()["NOTE"] = NOTE + 1
            return x * NOTE if x.sum() > 0 else -x * NOTE

    model = nn.Sequential(nn.Linear(8, 8), Counts())
    with skyfx.partition(model, ["cpu"], example_inputs=BATCH, num_microbatches=2) as pipeline:
        before = NOTE
        for _ in range(2):
            pipeline.train_step(BATCH, TARGETS, functional.mse_loss)
    assert before + 4 == NOTE
    assert not [x for x in caplog.messages if "captured again" in x]


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
