"""What hooks, globals and classes collect is as in plain torch, and what they change as well."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import skyfx
from skyfx.solver.errors import CaptureError
from tests.support import attribute_models
from tests.support.attribute_models import BATCH, NUM_MICROBATCHES, TARGETS, Layers, partitioned

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


def collect_numbers(model: Layers) -> Told:
    """What a hook is given is written to afterwards."""
    seen: list[float] = []
    model.extra = nn.Identity()  # type: ignore[assignment]
    model.between = lambda h: model.extra(h + 1).mul_(2)  # type: ignore[method-assign, operator]
    model.extra.register_forward_hook(lambda _, __, output: seen.append(output.sum().item()))
    return lambda: seen


def feed(model: Layers) -> Told:
    """Forward reads what the hook keeps."""
    kept: dict[str, Tensor] = {}
    model.first.register_forward_hook(lambda _, __, output: kept.update(first=output))
    model.between = lambda h: h + kept["first"]  # type: ignore[method-assign]
    return lambda: kept


def change(model: Layers) -> Told:
    """No observer: it scales."""
    model.first.register_forward_hook(lambda _, __, output: output * 2)
    model.last.register_forward_pre_hook(lambda _, args: (args[0] - 1,))
    return lambda: 0


def install(model: Layers) -> Told:
    """The first call registers the hook, as models of transformers do."""
    held: Any = model

    def between(h: Tensor) -> Tensor:
        held.seen = []
        if not getattr(held, "is_installed", False):
            held.inner.register_forward_hook(lambda _, __, output: held.seen.append(output))
            held.is_installed = True
        return h

    held.between, held.kept = between, lambda: [x.pow(2).mean() for x in held.seen]
    return lambda: 0


@pytest.mark.parametrize(
    "attach",
    [
        *(collect, collect_for_the_loss, collect_in_objects, add_up, collect_numbers, feed),
        *(change, install),
    ],
)
def test_hooks_are_as_in_plain_torch(attach: Callable[[Layers], Told]) -> None:
    model, plain = Layers(), Layers()
    told, expected = attach(model), attach(plain)
    with partitioned(model) as pipeline:
        assert attribute_models.copy_of(told()) == attribute_models.copy_of(attach(Layers())())
        found = attribute_models.pipeline_steps(pipeline, model, 2)
        assert found == attribute_models.plain_steps(plain, 2)
        assert attribute_models.copy_of(told()) == attribute_models.copy_of(expected())


def test_hooks_come_and_go() -> None:
    seen: list[str] = []
    model = Layers()
    gone = model.first.register_forward_hook(lambda *_: seen.append("gone"))
    with partitioned(model) as pipeline:
        model.last.register_forward_hook(lambda *_: seen.append("late"))
        pipeline.train_step(BATCH, TARGETS, model.loss)
        assert seen == ["gone", "late"] * NUM_MICROBATCHES
        gone.remove()
        seen.clear()
        pipeline(BATCH)
        assert seen == ["late"] * NUM_MICROBATCHES


def test_hooks_inside_of_what_stays_whole_are_called() -> None:
    class Whole(attribute_models.PickingMixture):
        pass

    told = []
    for model in (Whole(), Whole()):
        seen: list[float] = []
        model.moe.expert.register_forward_hook(
            lambda _, __, output, seen=seen: seen.append(output.sum().item())
        )
        told.append((model, seen))
    (model, seen), (plain, expected) = told
    measured = skyfx.partition(model, ["cpu"], example_inputs=BATCH, num_microbatches=4)
    measured.close()
    assert not seen
    with partitioned(model) as pipeline:
        assert not seen
        attribute_models.pipeline_steps(pipeline, model, 1)
    attribute_models.plain_steps(plain, 1)
    assert seen == expected


class Inside(Layers):
    """A submodule with a submodule, which stays whole where that has a backward hook."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

    def between(self, h: Tensor) -> Tensor:
        return self.block(h)


def test_backward_hooks_are_called_in_steps_alone_and_for_each_micro_batch() -> None:
    told = []
    for model in (Inside(), Inside()):
        of_module: list[Any] = []
        of_parameter: list[Any] = []
        of_both: list[Any] = []

        def note(_: Any, __: Any, given: Any, own: Any = of_module, both: Any = of_both) -> None:
            own.append(given[0].sum().item())
            both.append(given[0].sum().item())

        def keep(g: Tensor, own: Any = of_parameter, both: Any = of_both) -> None:
            own.append(g.clone())
            both.append(g.sum().item())

        model.block[0].register_full_backward_hook(note)
        model.last.weight.register_hook(keep)
        model.first.weight.register_post_accumulate_grad_hook(lambda x, own=of_both: own.append(1))
        told.append((model, of_module, of_parameter, of_both))
    (model, *ours), (plain, *theirs) = told
    options: Any = {"example_inputs": BATCH, "num_microbatches": NUM_MICROBATCHES}
    with skyfx.partition(model, ["cpu", "cpu"], pins=["last=cpu:1", "first=cpu:0"], **options) as p:
        assert ours == [[], [], []]
        assert "gradients" in p.verified.tensors
        attribute_models.pipeline_steps(p, model, 1)
    attribute_models.plain_steps(plain, 1)
    assert attribute_models.copy_of(ours[:2]) == attribute_models.copy_of(theirs[:2])
    assert sorted(ours[2]) == sorted(theirs[2])


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
