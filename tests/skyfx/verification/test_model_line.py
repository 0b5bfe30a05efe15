"""What differs is named with the line of the model that does it."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from skyfx.tracing.capture import capture
from skyfx.verification.model_line import deviating_line
from skyfx.verification.observation import RunMode

X = torch.linspace(-1, 1, 16).reshape(2, 8)
TRAINING = RunMode(training=True, backward=True)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.scale = 2.0

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        h = self.between(h)  # here
        return self.last(h)

    def between(self, h: Tensor) -> Tensor:
        return h * self.scale


class OtherValue(Net):
    def between(self, h: Tensor) -> Tensor:
        _ = h.mean()  # in no graph, as nothing reads it
        return h * 3.0  # here


class OtherGradient(Net):
    """The values are the same; `tanh` gets no gradient."""

    def between(self, h: Tensor) -> Tensor:
        return h.detach() * self.scale


def line_of(code: Any, text: str) -> str:
    source, first = inspect.getsourcelines(code)
    (offset,) = (i for i, line in enumerate(source) if text in line)
    return f" at {__file__}:{first + offset}"


@pytest.mark.parametrize(
    ("model", "code", "text"),
    [(OtherValue, OtherValue.between, "# here"), (OtherGradient, OtherGradient.between, "detach")],
)
def test_the_first_line_that_differs_is_found(
    model: type[Net], code: Callable[..., Any], text: str
) -> None:
    captured = capture(Net(), X)
    assert deviating_line(model(), captured, TRAINING, 1e-4) == line_of(code, text)


def test_equal_runs_differ_nowhere() -> None:
    model = Net()
    assert deviating_line(model, capture(model, X), TRAINING, 1e-4) == ""
