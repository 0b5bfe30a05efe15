"""A checkpoint gets back into a training bit for bit, or is refused before anything has changed."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

import skyfx
from skyfx.solver.errors import CheckpointError
from tests.support.models import small


def grouped(model: nn.Module) -> list[dict[str, Any]]:
    """The last layer learns at another rate; the first one's bias is in no group."""
    return [{"params": [model[0].weight]}, {"params": model[3].parameters(), "lr": 0.02}]


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, nesterov=True),
    "groups": lambda m: torch.optim.AdamW(grouped(m), lr=0.01, amsgrad=True),
    "lr tensor": lambda m: torch.optim.Adam(m.parameters(), lr=torch.tensor(0.01)),
    "fused": lambda m: torch.optim.Adam(m.parameters(), lr=0.01, fused=True),
    "named": lambda m: torch.optim.NAdam(m.named_parameters(), lr=0.01),
    "adagrad": lambda m: torch.optim.Adagrad(m.parameters(), lr=0.01),
    "adafactor": lambda m: torch.optim.Adafactor(m.parameters(), lr=0.01),
    "rmsprop": lambda m: torch.optim.RMSprop(m.parameters(), lr=0.01, centered=True, momentum=0.5),
    "rprop": lambda m: torch.optim.Rprop(m.parameters(), lr=0.01),
    "asgd": lambda m: torch.optim.ASGD(m.parameters(), lr=0.01),
    "lbfgs": lambda m: torch.optim.LBFGS(m.parameters(), lr=0.1, max_iter=3),
}
SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "steps": lambda o: lr_scheduler.MultiStepLR(o, [1, 3, 3, 5]),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o), lr_scheduler.CosineAnnealingWarmRestarts(o, 2)],
        milestones=[2],
    ),
}


def steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any, n: int
) -> list[float]:
    """Train by data that all three generators draw; the losses."""
    losses = []
    for _ in range(n):
        inputs = torch.randn(6, 4) + random.random() + numpy.random.random()

        def closure(inputs: Tensor = inputs) -> Tensor:
            optimizer.zero_grad()
            loss = model(inputs).square().mean()
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
        metric = [losses[-1]] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []
        if scheduler is not None:
            scheduler.step(*metric)
    return losses


def training(optimizer: str, scheduler: str | None) -> tuple[nn.Module, Any, Any]:
    model = small()
    made = OPTIMIZERS[optimizer](model)
    return model, made, SCHEDULERS[scheduler](made) if scheduler else None


@pytest.mark.parametrize(
    ("optimizer", "scheduler"),
    [*((name, None) for name in OPTIMIZERS), *(("momentum", name) for name in SCHEDULERS)],
)
def test_any_optimizer_and_scheduler_goes_on(
    optimizer: str, scheduler: str | None, tmp_path: Path
) -> None:
    model, made, rate = training(optimizer, scheduler)
    steps(model, made, rate, 3)
    skyfx.Checkpoints(model, tmp_path, optimizer=made, scheduler=rate).save(3)
    expected = steps(model, made, rate, 3)
    again, anew, later = training(optimizer, scheduler)
    found = skyfx.Checkpoints(again, tmp_path, optimizer=anew, scheduler=later).load()
    assert found is not None
    assert found.step == 3
    assert steps(again, anew, later, 3) == expected
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def values(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> list[Any]:
    """All that a load may change."""
    state = [] if optimizer is None else list(optimizer.state.values())
    found = [*model.state_dict().values(), *(x for each in state for x in each.values())]
    groups = [] if optimizer is None else [group["lr"] for group in optimizer.param_groups]
    return [x.tolist() for x in found] + groups + torch.get_rng_state().tolist()


def assert_refused(
    message: str, folder: Path, model: nn.Module, optimizer: Any = None, scheduler: Any = None
) -> None:
    """With one line, and nothing has changed."""
    before = values(model, optimizer)
    with pytest.raises(CheckpointError, match=message) as caught:
        skyfx.Checkpoints(model, folder, optimizer=optimizer, scheduler=scheduler).load()
    assert "\n" not in str(caught.value)
    assert values(model, optimizer) == before


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of the small model with AdamW in two groups, and no scheduler."""
    model, optimizer, _ = training("groups", None)
    steps(model, optimizer, None, 1)
    skyfx.Checkpoints(model, tmp_path, optimizer=optimizer).save(1)
    return tmp_path


def test_the_weights_alone_can_be_loaded(saved: Path) -> None:
    model = small()
    assert skyfx.Checkpoints(model, saved).load() is not None
    assert torch.equal(model[0].weight, skyfx.saved_state(saved)["0.weight"])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(*small(), nn.Linear(1, 1)),
            r"another model: it has 9 tensors, the model 11; 2 \(4\.weight, 4\.bias\) are only in "
            "the model, 0 only in the checkpoint",
        ),
        (
            nn.Sequential(*small()[:3]),
            r"it has 9 tensors, the model 7; 0 are only in the model, "
            r"2 \(3\.bias, 3\.weight\) only in the checkpoint",
        ),
        (
            nn.Sequential(nn.Linear(5, 8), *small()[1:]),
            r"'0\.weight' is float32 of shape \(8, 4\) in the checkpoint, but float32 of shape "
            r"\(8, 5\) in the model",
        ),
        (small().double(), r"'0\.weight' is float32 of .* but float64 of"),
    ],
)
def test_another_model_is_refused(model: nn.Module, message: str, saved: Path) -> None:
    assert_refused(message, saved, model)


def test_tensors_that_are_one_here_and_two_there_are_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    skyfx.Checkpoints(model, tmp_path).save(1)
    model[1].weight = model[0].weight
    assert_refused(
        "'1.weight' and '0.weight' are one tensor in the model, but two", tmp_path, model
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (OPTIMIZERS["momentum"], "has the state of AdamW, the optimizer is SGD"),
        (lambda m: torch.optim.AdamW(m.parameters()), "has 2 parameter groups, the optimizer 1"),
        (
            lambda m: torch.optim.AdamW([{"params": m[0].parameters()}, {"params": m[3].weight}]),
            r"group 0 has 2 parameters, but 1 in the checkpoint; 1 \(0\.bias\) are only in one",
        ),
        (
            lambda m: torch.optim.AdamW(small().parameters()),
            "6 of the optimizer's 6 parameters are not the model's",
        ),
    ],
)
def test_another_optimizer_is_refused(
    make: Callable[[nn.Module], torch.optim.Optimizer], message: str, saved: Path
) -> None:
    model = small()
    optimizer = make(model)
    assert_refused(message, saved, model, optimizer)


def test_what_was_not_saved_is_not_loaded(tmp_path: Path, saved: Path) -> None:
    model, optimizer, scheduler = training("groups", "steps")
    assert_refused("a scheduler is given, but the", saved, model, optimizer, scheduler)
    skyfx.Checkpoints(model, tmp_path / "bare").save(1)
    assert_refused("an optimizer is given, but the", tmp_path / "bare", model, optimizer)


@pytest.mark.parametrize("extra", [{"f": print}, {"deep": [{"set": {1}}]}])
def test_what_cannot_be_kept_is_refused(extra: dict[str, Any], tmp_path: Path) -> None:
    checkpoints = skyfx.Checkpoints(small(), tmp_path)
    with pytest.raises(
        CheckpointError, match=r"extra/(f|deep/0/set) is a \w+, expected numbers, text"
    ):
        checkpoints.save(1, extra, wait=False)
    checkpoints.save(1)
    assert checkpoints.latest() == 1
