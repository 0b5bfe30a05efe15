"""Values in any place that code of the model reads, and hooks, that are changed between steps."""

import copy
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_hook

import skyfx
from skyfx.runtime.pipeline import Pipeline
from skyfx.runtime.state.fixed_values import FixedValues
from skyfx.solver.errors import StageError
from tests.support import unsplit_reference
from tests.support.models import Case

BATCH, TARGETS = torch.linspace(-1, 1, 32).reshape(4, 8), torch.linspace(1, -1, 32).reshape(4, 8)

NESTED: dict[str, dict[str, float]] = {"model": {"scale": 1.0}}
ITEMS, SPACE = [1.0], SimpleNamespace(inner=SimpleNamespace(scale=1.0))
DEEP, temperature = 1.0, 0
FACTOR, LOCAL = ContextVar("FACTOR", default=1.0), threading.local()


class Countless(list[float]):
    """Refuses to tell its length, as irreps of e3nn."""

    def __len__(self) -> int:
        raise NotImplementedError


COUNTLESS = Countless([1.0])


class Schedule:
    def __init__(self) -> None:
        self.now = 1.0

    def value(self) -> float:
        return self.now


SCHEDULE = Schedule()


def deep_1(h: Tensor) -> Tensor:
    return deep_2(h)


def deep_2(h: Tensor) -> Tensor:
    return deep_3(h)


def deep_3(h: Tensor) -> Tensor:
    return deep_4(h)


def deep_4(h: Tensor) -> Tensor:
    return deep_5(h)


def deep_5(h: Tensor) -> Tensor:
    return h * DEEP * SCHEDULE.value() * COUNTLESS[0]


def with_gain(h: Tensor, *, gain: list[float]) -> Tensor:
    return h * gain[0] * getattr(with_gain, "factor", 1.0)


@dataclass(slots=True)
class Slotted:
    scale: float = 1.0


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.temperature = nn.Linear(8, 8), 1.0

    def encode(self, h: Tensor) -> Tensor:
        return self.linear(h) * self.temperature


class Child(nn.Module):
    def __init__(self, parent: nn.Module) -> None:
        super().__init__()
        self.parent = [parent]

    def forward(self, h: Tensor) -> Tensor:
        return h * self.parent[0].progress


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.spare = (nn.Linear(8, 8) for _ in range(3))
        self.encoder, self.child, self.act = Encoder(), Child(self), nn.ReLU()
        self.progress: Any = 1.0
        self.last.gain = 1.0  # type: ignore[assignment]
        self.gain, self.scale_0 = 1.0, 1.0
        self.slotted, self.functions = Slotted(), {"act": torch.tanh}
        self.tensors, self.on, self.window = [torch.ones(8)], {"x"}, deque([1.0])
        self.array, self.options = numpy.ones(8), SimpleNamespace(act=torch.tanh)
        self.route = {"way": self.last}
        self.bound = partial(with_gain, gain=[1.0])

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = (
            self.child(self.encoder.encode(self.act(self.first(x))))
            * self.gain
            * float(self.last.gain)
        )
        h = h * self.slotted.scale * self.tensors[0] * self.window[0] * float(self.array[0])
        h = self.functions["act"](h) * NESTED["model"]["scale"] * ITEMS[0] * SPACE.inner.scale
        h = self.bound(deep_1(h)) * getattr(self, f"scale_{0}")
        h = self.options.act(self.route["way"](h) if "x" in self.on else h)
        return h * FACTOR.get() * LOCAL.scale * float(os.environ.get("SKYFX_TEST_SCALE", "1"))


class Net(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def put(name: str, value: Any = 0.5) -> Callable[[Any], None]:
    path, _, key = name.rpartition(".")
    return lambda model: setattr(model.get_submodule(path), key, value)


@pytest.fixture(autouse=True)
def as_at_first() -> None:
    NESTED["model"]["scale"] = ITEMS[0] = COUNTLESS[0] = SPACE.inner.scale = SCHEDULE.now = 1.0
    globals()["DEEP"] = LOCAL.scale = 1.0
    FACTOR.set(1.0)
    os.environ.pop("SKYFX_TEST_SCALE", None)
    vars(with_gain).clear()


CHANGES: dict[str, Callable[[Any], Any]] = {
    "gain": put("gain"),
    "last.gain": put("last.gain"),
    "encoder.temperature": put("encoder.temperature"),
    "progress": put("progress"),
    "act": lambda model: setattr(model, "act", nn.GELU()),
    "slotted": lambda model: setattr(model.slotted, "scale", 0.5),
    "tensors": lambda model: model.tensors.__setitem__(0, torch.full((8,), 0.5)),
    "functions": lambda model: model.functions.update(act=torch.sigmoid),
    "options": lambda model: setattr(model.options, "act", torch.relu),
    "route": lambda model: model.route.update(way=model.spare),
    "window": lambda model: model.window.__setitem__(0, 0.5),
    "array": lambda model: model.array.fill(0.5),
    "bound": lambda model: model.bound.keywords["gain"].__setitem__(0, 0.5),
    "scale_0": put("scale_0"),
    "on": lambda model: model.on.discard("x"),
    "NESTED": lambda _: NESTED["model"].update(scale=0.5),
    "ITEMS": lambda _: ITEMS.__setitem__(0, 0.5),
    "COUNTLESS": lambda _: COUNTLESS.__setitem__(0, 0.5),
    "SPACE": lambda _: setattr(SPACE.inner, "scale", 0.5),
    "DEEP": lambda _: globals().update(DEEP=0.5),
    "SCHEDULE": lambda _: setattr(SCHEDULE, "now", 0.5),
    "FACTOR": lambda _: FACTOR.set(0.5),
    "LOCAL": lambda _: setattr(LOCAL, "scale", 0.5),
    "os.environ: SKYFX_TEST_SCALE": lambda _: os.environ.update(SKYFX_TEST_SCALE="0.5"),
    "with_gain": lambda _: setattr(with_gain, "factor", 0.5),
}


def plain_step(model: nn.Module) -> Tensor:
    return unsplit_reference.step(Case(model, BATCH, TARGETS, functional.mse_loss), 2)


def pipeline_of(model: nn.Module) -> Pipeline:
    return skyfx.partition(
        model, ["cpu", "cpu"], example_inputs=BATCH, num_microbatches=2, strategy="even"
    )


def step_both(pipeline: Pipeline, model: nn.Module, plain: nn.Module) -> None:
    model.zero_grad()
    plain.zero_grad()
    expected = plain_step(plain)
    assert torch.equal(pipeline.train_step(BATCH, TARGETS, functional.mse_loss), expected)
    for found, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert (found.grad is None) == (other.grad is None)
        assert found.grad is None or torch.equal(found.grad, other.grad)  # type: ignore[arg-type]


def test_each_change_is_seen() -> None:
    model = Net()
    fixed = FixedValues(model)
    for name, change in CHANGES.items():
        before = fixed.values()
        model.first.count = len(name)  # type: ignore[assignment]
        globals()["temperature"] = len(name)  # as an attribute is called, such as in a loop
        assert fixed.values() == before  # no code reads them
        change(model)
        after = fixed.values()
        changed = [x for x in {**before, **after} if before.get(x) != after.get(x)]
        assert name in changed[0]


NUM_CALLS = {"forward": 0, "backward": 0}


class Scaling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, model: nn.Module) -> Tensor:
        NUM_CALLS["forward"] += 1
        ctx.model = model
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        NUM_CALLS["backward"] += 1
        return gradients[0] * ctx.model.strength, None


class Reverses(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = Scaling.apply(super().forward(x), self)  # type: ignore[no-untyped-call]
        return made * 2 if self[0].weight.requires_grad else made


def test_what_a_backward_reads_may_change() -> None:
    torch.manual_seed(0)
    model = Reverses(nn.Linear(8, 8))
    model.strength = 1.0  # type: ignore[assignment]
    before = dict(NUM_CALLS)
    with skyfx.partition(model, ["cpu"], example_inputs=BATCH, num_microbatches=1) as pipeline:
        assert before == NUM_CALLS
        norms = []
        for strength in (1.0, 1.0, 0.5):
            model.strength = strength  # type: ignore[assignment]
            model.zero_grad()
            pipeline.train_step(BATCH, TARGETS, functional.mse_loss)
            norms.append(model[0].weight.grad)
        assert {key: x - before[key] for key, x in NUM_CALLS.items()} == dict.fromkeys(before, 3)
        for is_trained in (True, False):  # which forward asks for
            model[0].weight.requires_grad_(is_trained)
            assert torch.equal(pipeline(BATCH), model(BATCH))
    assert torch.equal(norms[0], norms[1])
    assert torch.equal(norms[2], 0.5 * norms[0])


def test_values_hold_wherever_they_are(caplog: pytest.LogCaptureFixture) -> None:
    plain = Net()
    model = copy.deepcopy(plain)
    with caplog.at_level(logging.WARNING), pipeline_of(model) as pipeline:
        for change in CHANGES.values():
            change(model)
            change(plain)
        step_both(pipeline, model, plain)
        (said,) = caplog.messages
        assert "captured again" in said
        step_both(pipeline, model, plain)
        assert len(caplog.messages) == 1


class Steer:
    def __init__(self) -> None:
        self.alpha = 0.0

    def __call__(self, module: nn.Module, given: Any, output: Tensor) -> Tensor | None:
        return output + self.alpha if self.alpha else None


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))


def test_hooks_may_change_between_steps() -> None:
    def scaled(model: nn.Module, by: float) -> Any:
        return model[0].register_forward_hook(lambda module, given, output: output * by)  # type: ignore[index]

    model, plain = layers(), layers()
    factors = [1.0]
    own = [(each, each[1].forward) for each in (model, plain)]
    for each, forward in own:
        each[1].forward = lambda h, forward=forward: forward(h) * factors[0]
    steers = [Steer(), Steer()]
    handles = []
    for each, steer in zip((model, plain), steers, strict=True):
        each[2].register_forward_hook(steer)
        handles.append(scaled(each, 1.0))
    with pipeline_of(model) as pipeline:
        step_both(pipeline, model, plain)
        for alpha in (0.5, 0.25):  # it only observes before
            steers[0].alpha = steers[1].alpha = alpha
            step_both(pipeline, model, plain)
        factors[0] = 0.5
        step_both(pipeline, model, plain)
        for by in (0.5, 0.25):  # another hook may get the `id` of one that is removed
            for handle in handles:
                handle.remove()
            handles = [scaled(model, by), scaled(plain, by)]
            step_both(pipeline, model, plain)
        for each in (model, plain):
            each[2].register_full_backward_hook(
                lambda module, given, got: (given[0] * 0.5,)  # type: ignore[index]
            )
        step_both(pipeline, model, plain)


def test_a_hook_that_begins_to_intervene_is_an_error() -> None:
    calls = []

    def late(module: nn.Module, given: Any, output: Tensor) -> Tensor | None:
        calls.append(1)
        return output * 0.5 if len(calls) > 4 else None

    model = layers()
    model[0].register_forward_hook(late)
    with pipeline_of(model) as pipeline:
        for _ in range(2):
            pipeline.train_step(BATCH, TARGETS, functional.mse_loss)
        with pytest.raises(StageError, match=r"late at .* returns a value now"):
            pipeline.train_step(BATCH, TARGETS, functional.mse_loss)


def test_hooks_of_all_modules_are_refused() -> None:
    model, plain = layers(), layers()
    with pipeline_of(model) as pipeline:
        handle = register_module_forward_hook(lambda module, given, output: output * 2)
        try:
            with pytest.raises(ValueError, match="a hook of all modules is registered"):
                pipeline.train_step(BATCH, TARGETS, functional.mse_loss)
            with pytest.raises(ValueError, match="a hook of all modules is registered"):
                pipeline_of(layers())
        finally:
            handle.remove()
        for each in (model, plain):  # the cure
            each[0].register_forward_hook(lambda module, given, output: output * 2)
        step_both(pipeline, model, plain)
