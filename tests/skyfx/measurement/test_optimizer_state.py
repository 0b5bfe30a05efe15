"""The memory of an optimizer's state, against what its state takes after a step of the model."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adafactor, Adam, AdamW, Optimizer

import skyfx
from skyfx.measurement.optimizer_state import state_ratio
from skyfx.passes.planner_graph import num_bytes


def layers(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 96, dtype=dtype), nn.Linear(96, 64, dtype=dtype))


class Master(Optimizer):
    """Keeps each parameter in float32, and its momentum."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for each in group["params"]:
                kept = self.state[each]
                kept.setdefault("master", each.float())
                kept.setdefault("momentum", torch.zeros_like(kept["master"]))


def mixed() -> nn.Sequential:
    model = layers(torch.bfloat16)
    model.append(nn.Linear(64, 32))
    return model


def half_frozen() -> nn.Sequential:
    model = layers()
    model[0].requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("optimizer", "build"),
    [
        (AdamW, layers),
        (partial(Adam, amsgrad=True), layers),
        (AdamW, partial(layers, torch.bfloat16)),
        (SGD, layers),
        (lambda parameters: SGD(parameters, lr=0.1, momentum=0.9), half_frozen),
        (Master, mixed),
        (Master, half_frozen),
    ],
)
def test_it_is_that_of_the_whole_models_state(optimizer: Any, build: Any) -> None:
    model = build()
    found = state_ratio(optimizer, None, model)
    trained = [x for x in model.parameters() if x.requires_grad]
    made = optimizer(trained)
    for each in trained:
        each.grad = torch.ones_like(each)
    made.step()
    kept = sum(num_bytes(state) for state in made.state.values())
    # Adam counts the steps of each parameter in four bytes, which do not grow with it.
    counts = 4 * len(trained) * any("step" in state for state in made.state.values())
    assert found * num_bytes(trained) == pytest.approx(kept - counts)


def test_factors_of_a_matrix_are_less_than_the_matrix() -> None:
    assert 0 < state_ratio(Adafactor, None, layers()) < 0.05


def test_a_ratio_is_taken_as_it_is_and_adams_is_assumed() -> None:
    assert state_ratio(None, 0.5, layers()) == 0.5
    assert state_ratio(None, None, layers()) == 2
    assert state_ratio(AdamW, None, layers().requires_grad_(False)) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": SGD, "optimizer_state_ratio": 0}, "found both, expected one of them"),
        ({"optimizer": torch.optim.LBFGS}, "LBFGS cannot make a step for one parameter"),
        ({"optimizer": SGD(layers().parameters())}, "cannot make a step .* give its class"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_line(options: Any, message: str) -> None:
    x = torch.ones(8, 64)
    with pytest.raises(ValueError, match=message) as raised:
        skyfx.partition(layers(), ["cpu", "cpu"], example_inputs=x, **options)
    assert "\n" not in str(raised.value)


def test_a_smaller_optimizer_fits_where_adam_does_not() -> None:
    model, x = nn.Sequential(*(nn.Linear(512, 512) for _ in range(4))), torch.ones(8, 512)
    weights = num_bytes(list(model.parameters()))
    devices = [skyfx.Device("cpu", memory_bytes=1.5 * weights) for _ in range(2)]
    with pytest.raises(skyfx.InfeasibleError):
        skyfx.partition(model, devices, example_inputs=x)
    with skyfx.partition(model, devices, example_inputs=x, optimizer=SGD) as pipeline:
        assert pipeline.plan.assumptions.optimizer_state_ratio == 0
