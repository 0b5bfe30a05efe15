"""Capture keeps torch's own warnings to itself, and lets those of the model through."""

import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from skyfx.tracing.capture import capture
from skyfx.tracing.leaves.leaf_calls import leaf_of
from tests.support import models
from tests.support.models import BATCH, Case

WIDTH = 4
TORCH_LOGGERS = ["torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes"]


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cells = kind(WIDTH, 6, num_layers=2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.cells(x)[0]
        return result


class Branch(nn.Module):
    """Becomes a leaf, after attempts to trace that fail."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class Outspoken(nn.Module):
    """Warns in forward, before and in a part that becomes a leaf."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = Branch()

    def forward(self, x: Tensor) -> Tensor:
        warnings.warn("use NewModel", stacklevel=1)
        return self.branch(x) + 1


class Unusual(nn.Module):
    """Numbers from values, a derivative, and gradients of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        begin = int(self.pointer)
        self.pointer[0] = (begin + 1) % WIDTH
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.first(x).sin().sum(), x, create_graph=True)
        with torch.inference_mode():
            known = self.first(x)
        h = Same.apply(slope) + known.data
        return self.last(h[h[:, 0] < 9e9])


class Same(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Moves(nn.Module):
    """Moves a layer between devices, where it stays; torch reads its gradients then."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        if x.isfinite().all():
            self.layer.to(x.device)
        return self.layer(x)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """The messages that torch's loggers let through from warnings on."""
    messages = list[str]()
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    for name in TORCH_LOGGERS:
        logging.getLogger(name).addHandler(handler)
    yield messages
    for name in TORCH_LOGGERS:
        logging.getLogger(name).removeHandler(handler)


def recurrent(kind: type[nn.RNNBase]) -> Case:
    return Case(Recurrent(kind), torch.randn(BATCH, 5, WIDTH), torch.zeros(BATCH), nn.MSELoss())


def branching() -> Case:
    return Case(nn.Sequential(Branch()), torch.ones(BATCH, WIDTH), torch.zeros(()), nn.MSELoss())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "build",
    [
        lambda: recurrent(nn.LSTM),
        lambda: recurrent(nn.GRU),
        lambda: recurrent(nn.RNN),
        branching,
        lambda: Case(Unusual(), torch.randn(BATCH, WIDTH), torch.zeros(BATCH), nn.MSELoss()),
        models.bert,
        models.resnet,
    ],
    ids=["lstm", "gru", "rnn", "branch", "unusual", "bert", "cnn"],
)
def test_usual_models_are_captured_in_silence(
    build: Callable[[], Case], training: bool, logged: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    case = build()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        capture(case.model, case.batch, training=training)
    assert logged == []
    assert capfd.readouterr() == ("", "")


def test_a_warning_of_the_model_comes_through_once() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        capture(Outspoken(), torch.ones(BATCH, WIDTH))
    assert [str(warning.message) for warning in caught] == ["use NewModel"]


def test_code_that_moves_its_layers_gets_computed_parameters_in_silence() -> None:
    captured = capture(nn.Sequential(Moves()), torch.randn(BATCH, WIDTH))
    (leaf,) = filter(None, map(leaf_of, captured.ids))
    shapes = [(BATCH, WIDTH), (WIDTH, WIDTH), (WIDTH,)]
    given = [torch.ones(shape, requires_grad=True) for shape in shapes]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = leaf(*(2 * x for x in given))
    found.sum().backward()
    assert all(isinstance(x.grad, Tensor) for x in given)
