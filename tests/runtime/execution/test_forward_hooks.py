"""What hooks, globals and classes collect is as in plain torch, and what they change as well."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from skyfx.solver.errors import CaptureError
from tests.runtime.execution.test_assigned_attributes import partitioned
from tests.support import attribute_models
from tests.support.attribute_models import Layers

Told = Callable[[], Any]


class Collector:
    """An object whose methods are hooks."""

    def __init__(self) -> None:
        self.features: dict[str, Tensor] = {}

    def keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.features["kept"] = output.detach()

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.features["called"] = output


def collect(model: Layers) -> Told:
    seen: list[Tensor] = []
    for layer in (model.first, model.inner):
        layer.register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    model.last.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    return lambda: seen


def collect_for_the_loss(model: Layers) -> Told:
    """Distillation reads features like that."""
    features: dict[str, Tensor] = {}
    model.inner.register_forward_hook(lambda _, __, output: features.update(inner=output))
    model.kept = lambda: [features["inner"].pow(2).mean()]  # type: ignore[method-assign]
    return lambda: features


def collect_in_objects(model: Layers) -> Told:
    collector = Collector()
    model.first.register_forward_hook(collector.keep)
    model.last.register_forward_hook(collector)
    model.inner.register_forward_hook(lambda *args: collector.keep(*args))
    return lambda: collector.features


def add_up(model: Layers) -> Told:
    sums = {"sum": torch.zeros(())}

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        sums["sum"] += output.detach().sum()

    model.inner.register_forward_hook(hook)
    return lambda: sums


def change(model: Layers) -> Told:
    """No observer: it scales."""
    model.first.register_forward_hook(lambda _, __, output: output * 2)
    model.last.register_forward_pre_hook(lambda _, args: (args[0] - 1,))
    return lambda: 0


@pytest.mark.parametrize(
    "attach", [collect, collect_for_the_loss, collect_in_objects, add_up, change]
)
def test_hooks_are_as_in_plain_torch(attach: Callable[[Layers], Told]) -> None:
    model, plain = Layers(), Layers()
    told, expected = attach(model), attach(plain)
    with partitioned(model) as pipeline:
        assert attribute_models.copy_of(told()) == attribute_models.copy_of(attach(Layers())())
        found = attribute_models.pipeline_steps(pipeline, model, 2)
        assert found == attribute_models.plain_steps(plain, 2)
        assert attribute_models.copy_of(told()) == attribute_models.copy_of(expected())


CALLS = 0
SEEN: list[Tensor] = []


class CountsGlobally(Layers):
    def between(self, h: Tensor) -> Tensor:
        global CALLS
        CALLS += 1
        return h * CALLS


class LogsGlobally(Layers):
    log: list[Tensor] = []  # noqa: RUF012

    def between(self, h: Tensor) -> Tensor:
        SEEN.append(h.detach().mean())
        self.log.append(h.detach().std())
        return h


def test_a_global_counter_is_refused_with_the_line() -> None:
    with pytest.raises(CaptureError, match=r"changes '.*: CALLS' \(1, then 2\)"):
        partitioned(CountsGlobally())
    assert CALLS == 0


def test_lists_of_the_class_and_of_the_file_are_as_in_plain_torch() -> None:
    model = LogsGlobally()
    plain = attribute_models.unsplit(model)
    with partitioned(model) as pipeline:
        assert not SEEN
        assert not LogsGlobally.log
        found = attribute_models.pipeline_steps(pipeline, model, 1)
    ours = [attribute_models.copy_of(list(x)) for x in (SEEN, LogsGlobally.log)]
    SEEN.clear()
    LogsGlobally.log.clear()
    assert found == attribute_models.plain_steps(plain, 1)
    assert ours == [attribute_models.copy_of(x) for x in (SEEN, LogsGlobally.log)]
