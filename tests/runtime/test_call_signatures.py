"""A pipeline may be called in any way that a model is."""

import copy
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import skyfx
from tests.support import unsplit_reference
from tests.support.models import BATCH, Case
from tests.support.plans import SIZE, split_evenly
from tests.support.unsplit_reference import assert_equal_gradients

WIDTH = 4


def case(model: nn.Module | None = None) -> Case:
    blocks = (nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)) for _ in range(3))
    batch, targets = torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH)
    return Case(model or nn.Sequential(*blocks), batch, targets, functional.mse_loss)


def step(pipeline: skyfx.Pipeline, given: Case) -> Tensor:
    return pipeline.train_step(given.batch, given.targets, given.loss_fn)


def test_calls_from_several_threads_take_turns() -> None:
    given = case()
    alone = unsplit_reference.unsplit(given)
    steps = [unsplit_reference.train_step(alone, SIZE) for _ in range(4)]
    found: list[Tensor] = []
    with split_evenly(given) as pipeline:
        threads = [
            threading.Thread(target=lambda: found.append(step(pipeline, given))) for _ in steps
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert torch.equal(torch.stack(found), torch.stack(steps))
        assert_equal_gradients(pipeline, alone.model)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_copy_is_refused(copied: Callable[[skyfx.Pipeline], Any]) -> None:
    with (
        split_evenly(case()) as pipeline,
        pytest.raises(TypeError, match=r"keep state_dict\(\) and the plan"),
    ):
        copied(pipeline)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_makes_no_difference(mode: Callable[[], Any]) -> None:
    given = case()
    alone = unsplit_reference.unsplit(given)
    with split_evenly(given) as pipeline:
        with mode():
            assert torch.equal(step(pipeline, given), reference_step(alone))
            found = pipeline(given.batch)
        assert_equal_gradients(pipeline, alone.model)
    assert torch.equal(found, unsplit_reference.infer(alone, SIZE)[0])


def reference_step(alone: Case) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        return unsplit_reference.train_step(alone, SIZE)


def test_attention_infers_without_gradients_under_a_plan_for_training() -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.0, batch_first=True)
    given = case(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    given = Case(given.model, torch.randn(BATCH, 3, WIDTH), torch.randn(BATCH), given.loss_fn)
    with split_evenly(given) as pipeline, torch.no_grad():
        torch.testing.assert_close(pipeline(given.batch), unsplit_reference.infer(given, SIZE)[0])


def test_the_callers_autocast_holds_in_the_stages() -> None:
    given = case()
    alone = unsplit_reference.unsplit(given)
    with split_evenly(given) as pipeline:
        before = pipeline(given.batch)
        with torch.autocast("cpu", torch.bfloat16):
            found, expected = pipeline(given.batch), unsplit_reference.infer(alone, SIZE)[0]
            assert torch.equal(step(pipeline, given), unsplit_reference.train_step(alone, SIZE))
        assert_equal_gradients(pipeline, alone.model)
    assert before.dtype == torch.float32
    assert found.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(found, expected)


def double(model: nn.Module) -> None:
    model.double()


def assign(model: nn.Module) -> None:
    state = {name: torch.rand_like(x.float()).to(x) for name, x in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def freeze_a_norm(model: nn.Module) -> None:
    model.train()
    model[1][1].eval()


@pytest.mark.parametrize("change", [double, assign, freeze_a_norm])
def test_a_change_of_the_model_is_noticed(change: Callable[[nn.Module], None]) -> None:
    given = case()
    with split_evenly(given) as pipeline:
        step(pipeline, given)
        pipeline(given.batch)
        change(given.model)
        given.model.zero_grad()
        dtype = next(given.model.parameters()).dtype
        given = Case(given.model, given.batch.to(dtype), given.targets.to(dtype), given.loss_fn)
        alone = unsplit_reference.unsplit(given)
        assert torch.equal(step(pipeline, given), train_as_it_is(alone))
        assert_equal_gradients(pipeline, alone.model)
        assert torch.equal(pipeline(given.batch), unsplit_reference.infer(alone, SIZE)[0])


def train_as_it_is(alone: Case) -> Tensor:
    """As `reference.train_step`, with the parts that are in eval mode left so."""
    total = torch.zeros(())
    for batch, targets in zip(alone.batch.split(SIZE), alone.targets.split(SIZE), strict=True):
        share = alone.loss_fn(alone.model(batch), targets) * (SIZE / BATCH)
        share.backward()
        total = total + share.detach()
    return total


@pytest.mark.parametrize("size", [1, 6, 9])
def test_targets_of_another_size_are_refused_before_anything_runs(size: int) -> None:
    given = case()
    before = copy.deepcopy(given.model.state_dict())
    with split_evenly(given) as pipeline:
        says = rf"8 samples, but the targets have shape \({size}, {WIDTH}\): give a target for each"
        with pytest.raises(ValueError, match=says):
            pipeline.train_step(given.batch, torch.randn(size, WIDTH), given.loss_fn)
        state = pipeline.state_dict()
    assert all(torch.equal(state[name], x) for name, x in before.items())


def test_a_batch_that_requires_a_gradient_is_refused() -> None:
    given = case()
    with (
        split_evenly(given) as pipeline,
        pytest.raises(ValueError, match="gradients end at the pipeline's"),
    ):
        pipeline.train_step(given.batch.requires_grad_(), given.targets, given.loss_fn)


def test_nothing_is_added_up_after_ctrl_c_however_often() -> None:
    given = case()
    with split_evenly(given) as pipeline:

        def slow(outputs: Tensor, targets: Tensor) -> Tensor:
            time.sleep(0.8)
            return functional.mse_loss(outputs, targets)

        for after_s in (0.3, 0.5):
            threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            pipeline.train_step(given.batch, given.targets, slow)
        given.model.zero_grad()
        pipeline(given.batch)  # comes after whatever the workers still did
        assert all(p.grad is None for p in pipeline.parameters())


class WritesItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.linears[0](x * 1)
        x.mul_(2)
        return self.linears[2](self.linears[1](y + x).tanh()) + x


def test_what_a_model_writes_to_its_input_the_callers_batch_has() -> None:
    given = case(WritesItsInput())
    alone = Case(copy.deepcopy(given.model), given.batch.clone(), given.targets, given.loss_fn)
    with split_evenly(given) as pipeline:
        assert torch.equal(step(pipeline, given), unsplit_reference.train_step(alone, SIZE))
        assert_equal_gradients(pipeline, alone.model)
    assert torch.equal(given.batch, alone.batch)


@dataclass(frozen=True)
class Pair:
    """A dataclass that torch knows nothing of."""

    x: Tensor
    rest: dict[str, Any]


class Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linears = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(3)))

    def forward(self, pair: Pair) -> dict[str, Pair]:
        return {"out": Pair(self.linears(pair.x) + pair.rest["y"], {"in": pair, "n": 3})}


def test_dataclasses_are_taken_apart_and_put_together() -> None:
    x, y = torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH)
    given = case(Pairs())
    with split_evenly(Case(given.model, (Pair(x, {"y": y}),), x, given.loss_fn)) as pipeline:
        found = pipeline(Pair(2 * x, {"y": 3 * y}))["out"]
    assert isinstance(found, Pair)
    assert torch.equal(found.rest["in"].x, 2 * x)
    assert torch.equal(found.rest["in"].rest["y"], 3 * y)
    assert found.rest["n"] == 3
    torch.testing.assert_close(found.x, given.model.linears(2 * x) + 3 * y)
