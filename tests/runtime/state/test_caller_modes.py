"""Threads of stages have what torch and Python keep for the thread of their caller."""

import copy
from contextvars import ContextVar
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import mse_loss
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

import skyfx
from tests.support import unsplit_reference
from tests.support.models import BATCH, Case
from tests.support.plans import SIZE, split_evenly

WIDTH = 6
SCALE = ContextVar("scale", default=1.0)


class Doubled(TorchFunctionMode):
    """Doubles what `torch.tanh` returns."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        return found * 2 if func is torch.tanh else found


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(torch.tanh(self.first(x))))


class Doubling(Net):
    def forward(self, x: Tensor) -> Tensor:
        with Doubled():
            return super().forward(x)


def quiet() -> FlopCounterMode:
    return FlopCounterMode(display=False)


def scaled_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return mse_loss(outputs, targets) * SCALE.get() * (2 if torch.ones(()).is_meta else 1)


def case(model: nn.Module) -> Case:
    x = torch.linspace(-1, 1, BATCH * WIDTH).reshape(BATCH, WIDTH)
    return Case(model, x, x.flip(0), scaled_loss)


def test_a_step_has_what_is_set_around_it() -> None:
    ours = case(Net())
    alone = unsplit_reference.unsplit(ours)
    with split_evenly(ours, 2) as pipeline:
        token = SCALE.set(3.0)
        torch.set_default_device("meta")
        try:
            with saved_tensors_hooks(lambda x: x.half(), lambda x: x.float()):
                found = pipeline.train_step(ours.batch, ours.targets, scaled_loss)
                for x, y in zip(ours.batch.split(SIZE), ours.targets.split(SIZE), strict=True):
                    loss = scaled_loss(alone.model(x), y) * (SIZE / BATCH)
                    loss.backward()  # type: ignore[no-untyped-call]
        finally:
            torch.set_default_device(None)
            SCALE.reset(token)
        whole = mse_loss(alone.model(ours.batch), ours.targets)
        assert float(found) == pytest.approx(6 * whole.item())
        for one, other in zip(ours.model.parameters(), alone.model.parameters(), strict=True):
            assert one.grad is not None
            assert other.grad is not None
            assert torch.equal(one.grad, other.grad)


def test_modes_that_would_see_other_calls_are_refused_and_the_cures_are_right() -> None:
    ours = case(Net())
    data = ours.batch, ours.targets, ours.loss_fn
    with split_evenly(ours, 2) as pipeline:
        with pytest.raises(ValueError, match="over one device"), quiet():
            pipeline.train_step(*data)
        with pytest.raises(ValueError, match="enter it in forward"), Doubled():
            pipeline.train_step(*data)
        pipeline.train_step(*data)
    with pytest.raises(ValueError, match="enter it in forward"), Doubled():
        skyfx.capture(ours.model, ours.batch)
    with split_evenly(ours, 1) as pipeline:
        counts = list[int]()
        for step in (
            lambda: pipeline.train_step(*data),
            lambda: unsplit_reference.step(ours, SIZE),
        ):
            with quiet() as counter:
                step()
            counts.append(counter.get_total_flops())
        assert counts[0] == counts[1] > 0
    doubling = case(Doubling())
    alone = Case(copy.deepcopy(doubling.model), *data)
    expected = unsplit_reference.train_step(alone, SIZE)
    with split_evenly(doubling, 2) as pipeline:
        assert torch.equal(pipeline.train_step(*data), expected)
        unsplit_reference.assert_equal_gradients(pipeline, alone.model)
