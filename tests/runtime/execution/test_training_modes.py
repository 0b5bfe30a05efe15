"""Each submodule trains and infers in its own mode, as in plain torch."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import skyfx
from skyfx.solver.errors import CaptureError
from tests.support import unsplit_reference
from tests.support.models import Case

SIZE = 2
BATCH, TARGETS = torch.linspace(-1, 1, 32).reshape(4, 8), torch.linspace(1, -1, 32).reshape(4, 8)

Change = Callable[[nn.Module], Any]


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm, self.dropout = nn.BatchNorm1d(8), nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.dropout(torch.tanh(self.norm(self.first(x)))))


class Freezes(Normed):
    def __init__(self) -> None:
        super().__init__()
        self.note, self.gain = True, 1.0

    def train(self, mode: bool = True) -> "Freezes":
        super().train(mode)
        self.norm.eval()
        self.note = mode
        return self


class Scales(Freezes):
    def train(self, mode: bool = True) -> "Scales":
        super().train(mode)
        self.gain = 0.5 if mode else 1.0
        return self

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.gain


class Merges(nn.Linear):
    """A linear layer with an adapter, which it adds to its weight for inference."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.down, self.up = nn.Parameter(torch.ones(2, 8) / 8), nn.Parameter(torch.ones(8, 2) / 8)
        self.is_merged = False

    def train(self, mode: bool = True) -> "Merges":
        super().train(mode)
        if self.is_merged == mode:
            self.weight.data += (-1 if mode else 1) * (self.up @ self.down)
            self.is_merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.is_merged else y + x @ self.down.T @ self.up.T


class Adapted(Normed):
    def __init__(self) -> None:
        super().__init__()
        self.first = Merges()


def plain_step(model: nn.Module) -> Tensor:
    return unsplit_reference.step(Case(model, BATCH, TARGETS, functional.mse_loss), SIZE)


def plain_outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(batch) for batch in BATCH.split(SIZE)])


@contextmanager
def partitioned(model: nn.Module, **options: Any) -> Iterator[skyfx.Pipeline]:
    pins = ["last=cpu:1"]
    with skyfx.partition(
        model, ["cpu", "cpu"], example_inputs=BATCH, num_microbatches=2, pins=pins, **options
    ) as pipeline:
        yield pipeline


def assert_trains_as(model: nn.Module, plain: nn.Module, pipeline: skyfx.Pipeline) -> None:
    losses = []
    for each, step in (
        (plain, lambda: plain_step(plain)),
        (model, lambda: pipeline.train_step(BATCH, TARGETS, functional.mse_loss)),
    ):
        each.zero_grad()
        torch.manual_seed(3)
        losses.append(step())
    assert losses[0] == losses[1]
    for (name, found), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (found.grad is None) == (expected.grad is None), name
        assert found.grad is None or torch.equal(found.grad, expected.grad), name  # type: ignore[arg-type]
    for found, expected in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.equal(found, expected)
    assert [x.training for x in model.modules()] == [x.training for x in plain.modules()]


def assert_infers_as(model: nn.Module, plain: nn.Module, pipeline: skyfx.Pipeline) -> None:
    torch.manual_seed(4)
    expected = plain_outputs(plain)
    torch.manual_seed(4)
    assert torch.equal(pipeline(BATCH), expected)
    assert [x.training for x in model.modules()] == [x.training for x in plain.modules()]


def frozen(model: nn.Module) -> None:
    model.train().get_submodule("norm").eval()


def all_but_the_model(model: nn.Module) -> None:
    model.train()
    for each in model.children():
        each.eval()


def with_dropout(model: nn.Module) -> None:
    model.eval().get_submodule("dropout").train()


def test_modes_may_change_between_steps() -> None:
    model, plain = Normed(), Normed()
    frozen(model)
    frozen(plain)
    with partitioned(model) as pipeline:
        for change in (None, nn.Module.train, all_but_the_model):
            for each in (model, plain):
                change and change(each)
            assert_trains_as(model, plain, pipeline)
        for change in (with_dropout, nn.Module.eval):
            change(model)
            change(plain)
            assert_infers_as(model, plain, pipeline)
        nn.Module.train(model)
        assert torch.equal(pipeline(BATCH), plain_outputs(plain))
    with_dropout(model)
    with partitioned(model, mode="inference") as pipeline:
        with_dropout(plain)
        assert_infers_as(model, plain, pipeline)
        assert not torch.equal(pipeline(BATCH), pipeline(BATCH))


def test_a_model_in_eval_mode_trains_in_it_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    model, plain = Freezes().eval(), Freezes().eval()
    with caplog.at_level(logging.WARNING), partitioned(model) as pipeline:
        (told,) = [x for x in caplog.messages if "in eval mode" in x]
        assert "call model.train() before, if that is not meant" in told
        for change in (nn.Module.eval, nn.Module.train, nn.Module.eval, with_dropout):
            for each in (model, plain):
                change(each)
            assert_trains_as(model, plain, pipeline)
        for change in (nn.Module.train, nn.Module.eval):
            change(model)
            plain.eval()
            assert torch.equal(pipeline(BATCH), plain_outputs(plain))
    assert len([x for x in caplog.messages if "in eval mode" in x]) == 1
    with pytest.raises(CaptureError, match=r"Call model\.eval"):
        skyfx.partition(Scales().train(), ["cpu"], example_inputs=BATCH, mode="inference")


def test_what_train_does_beside_flags_is_left_to_the_caller(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, plain = Adapted(), Adapted()
    before = model.first.weight.clone()
    with partitioned(model) as pipeline:
        (told,) = [x for x in caplog.messages if "first.weight" in x]
        assert_trains_as(model, plain, pipeline)
        with pytest.raises(CaptureError) as why:
            pipeline(BATCH)
        assert str(why.value) == told
        assert len(told.splitlines()) <= 3
        assert "Call model.eval() before inference and model.train() before training" in told
        assert torch.equal(model.first.weight, before)
        assert not model.first.is_merged
        assert_trains_as(model, plain, pipeline)
        for _ in range(2):
            model.eval()
            plain.eval()
            assert_infers_as(model, plain, pipeline)
            model.train()
            plain.train()
            assert_trains_as(model, plain, pipeline)
    with pytest.raises(CaptureError, match=r"Call model\.eval"):
        skyfx.partition(model, ["cpu"], example_inputs=BATCH, mode="inference")


def test_a_loss_that_draws_beside_dropout_is_told(caplog: pytest.LogCaptureFixture) -> None:
    def noisy(outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.mse_loss(outputs, targets + torch.randn_like(targets))

    with partitioned(Normed()) as pipeline:
        for _ in range(2):
            pipeline.train_step(BATCH, TARGETS, noisy)
    (told,) = [x for x in caplog.messages if "loss_fn draws other random numbers" in x]
    assert "pass them with the targets" in told
