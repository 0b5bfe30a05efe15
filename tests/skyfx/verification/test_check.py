"""`partition` hands over nothing that does otherwise than the model, and leaves no trace."""

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import skyfx
from skyfx.partitioning import splitter
from skyfx.runtime.execution.hook_calls import HookCalls
from skyfx.runtime.execution.stage import StagedModel
from skyfx.runtime.model_state import ModelState
from skyfx.runtime.state.contents import equal
from skyfx.solver.errors import CaptureError, VerificationError
from skyfx.tracing.capture import capture
from skyfx.verification import capacity
from tests.support.attribute_models import Layers
from tests.support.plans import even_plan

TWO, WIDTH = ["cpu", "cpu"], 8
BATCH = torch.linspace(-1, 1, 8 * WIDTH).reshape(8, WIDTH)


class Net(nn.Module):
    """Two linear layers, and between them what a test says."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def between(self, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(torch.tanh(self.first(x))))


def partitioned(model: nn.Module, **options: Any) -> skyfx.Pipeline:
    example = BATCH[:2]
    plan = even_plan(capture(model, example, training=True), 2)
    plan = replace(plan, assumptions=replace(plan.assumptions, microbatches=4))
    return skyfx.partition(model, TWO, example_inputs=BATCH, plan=plan, **options)


def refusal(model: nn.Module) -> str:
    with pytest.raises((VerificationError, CaptureError)) as refused:
        partitioned(model).close()
    text = str(refused.value)
    assert len(text.splitlines()) <= 3
    return text


class Counts(Net):
    def __init__(self) -> None:
        super().__init__()
        self.counts = {"calls": 0}

    def between(self, h: Tensor) -> Tensor:
        self.counts["calls"] += 1
        return h * (1 + self.counts["calls"])


class Seeds(Net):
    def between(self, h: Tensor) -> Tensor:
        torch.manual_seed(3)
        return h + torch.randn(WIDTH)


class MakesGenerator(Net):
    """The same noise in each call."""

    def between(self, h: Tensor) -> Tensor:
        return h + torch.randn(h.shape, generator=torch.Generator().manual_seed(5))


class HoldsPython(Net):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = random.Random(1)

    def between(self, h: Tensor) -> Tensor:
        return h * self.numbers.random()


class HoldsNumpy(Net):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = np.random.default_rng(1)

    def between(self, h: Tensor) -> Tensor:
        return h * float(self.numbers.random())


class KeepsTensor(Net):
    def between(self, h: Tensor) -> Tensor:
        self.seen: Any = h.detach()
        return h


class KeepsArray(KeepsTensor):
    def between(self, h: Tensor) -> Tensor:
        self.seen = super().between(h).detach().numpy()
        return h


SITUATIONS = {
    KeepsArray: "'seen'",
    Counts: "'counts'",
    Seeds: "torch's generator",
    MakesGenerator: "output 0",
    HoldsPython: "'numbers'",
    HoldsNumpy: "'numbers'",
}


@pytest.mark.parametrize("kind", SITUATIONS)
def test_what_stages_would_do_otherwise_is_refused(kind: type[Net]) -> None:
    text = refusal(kind())
    assert SITUATIONS[kind] in text
    if kind is not MakesGenerator:  # refused as a batch that cannot be cut
        assert f" at {__file__}:" in text


class StopsEarly(Net):
    """Within a checkpoint, plain torch computes again what backward needs, and nothing after it."""

    is_inside = True

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def bounded(self, h: Tensor) -> Tensor:
        h = torch.tanh(h)
        if self.is_inside:
            self.calls.add_(1)  # type: ignore[operator]
        return h

    def between(self, h: Tensor) -> Tensor:
        if not self.is_inside:
            self.calls.add_(1)  # type: ignore[operator]
        return checkpoint(self.bounded, h, use_reentrant=False)  # type: ignore[no-any-return]


def test_a_buffer_that_differs_has_a_cure_of_its_own() -> None:
    model = StopsEarly()
    text = refusal(model)
    assert "forward changes 'calls'" in text
    assert "Keep what writes it out of the checkpoint" in text
    model.is_inside = False
    with partitioned(model) as pipeline:
        assert pipeline.verified.largest == 0


class Leaks(Net):
    """A random slope for each negative number."""

    def between(self, h: Tensor) -> Tensor:
        return functional.rrelu(h, training=self.training)


def test_other_random_numbers_than_those_of_plain_torch_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with partitioned(Leaks(), check="outputs") as pipeline:
        assert "whose random numbers are others" in str(pipeline.verified)
    told = [record for record in caplog.records if record.levelname == "WARNING"]
    assert [record.getMessage() for record in told] == [
        "Leaks draws other random numbers than plain torch, the same under any plan: in 'rrelu', "
        "which draws as values say or stays whole"
    ]


class Moves(Net):
    """Changes all that can be put back."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.ema, self.norm = torch.ones(WIDTH), nn.BatchNorm1d(WIDTH)

    def between(self, h: Tensor) -> Tensor:
        self.mean.mul_(0.5).add_(h.detach().mean(0))  # type: ignore[operator]
        self.ema.mul_(0.9)
        return functional.dropout(self.norm(h) * self.ema, 0.5)


def test_all_is_as_before_when_it_is_handed_over() -> None:
    model = Moves()
    model.first.weight.grad = gradient = torch.ones(WIDTH, WIDTH)
    ema = model.ema
    torch.manual_seed(5)
    before = ModelState.of(model)
    with partitioned(model):
        after = ModelState.of(model)
        assert before.generators == after.generators
        assert equal(dict(before.values), dict(after.values))
        assert model.ema is ema
        assert model.first.weight.grad is gradient
        assert torch.equal(gradient, torch.ones(WIDTH, WIDTH))
        assert model.last.weight.grad is None


def test_a_refused_model_is_as_before() -> None:
    model = Counts()
    model.counts["calls"] = 7
    before = ModelState.of(model)
    refusal(model)
    assert equal(dict(before.values), dict(ModelState.of(model).values))


def test_an_optimizer_that_steps_in_backward_is_refused_and_a_step_after_it_is_the_cure() -> None:
    """Other micro-batches of the step still need the parameters."""
    model = Net()
    optimizers = {x: torch.optim.SGD([x], lr=0.1) for x in model.parameters()}
    hooks = [
        x.register_post_accumulate_grad_hook(lambda x: optimizers[x].step()) for x in optimizers
    ]
    before = copy.deepcopy(model.state_dict())
    refused = refusal(model)
    assert "'first.weight'" in refused
    assert "call optimizer.step() after train_step" in refused
    assert equal(dict(model.state_dict()), before)
    for hook in hooks:
        hook.remove()
    with partitioned(model) as pipeline:
        pipeline.train_step(BATCH, BATCH, functional.mse_loss)
        for optimizer in optimizers.values():
            optimizer.step()
    assert not torch.equal(model.first.weight, before["first.weight"])


def test_a_generator_that_the_model_holds_is_right() -> None:
    class Holds(Net):
        def __init__(self) -> None:
            super().__init__()
            self.noise = torch.Generator().manual_seed(5)

        def between(self, h: Tensor) -> Tensor:
            return h + torch.randn(h.shape, generator=self.noise)

    model = Holds()
    state = model.noise.get_state()
    with partitioned(model):
        assert torch.equal(model.noise.get_state(), state)


def test_the_tensor_is_the_cure_for_an_array_on_an_attribute() -> None:
    model = KeepsTensor()
    expected = torch.tanh(model.first(BATCH[-2:]))
    with partitioned(model) as pipeline:
        pipeline.train_step(BATCH, BATCH, functional.mse_loss)
        assert torch.equal(model.seen, expected)


def test_who_knows_better_gets_the_pipeline() -> None:
    with partitioned(Seeds(), check="off") as pipeline:
        pipeline.train_step(BATCH, BATCH, functional.mse_loss)
    with pytest.raises(ValueError, match="check is 'all', expected 'full', 'outputs' or 'off'"):
        skyfx.partition(Net(), TWO, example_inputs=BATCH, check="all")  # type: ignore[arg-type]


class Retains(Net):
    def between(self, h: Tensor) -> Tensor:
        if h.requires_grad:
            h.retain_grad()
        self.kept = h
        return h


def test_a_gradient_that_forward_retains_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    with partitioned(Retains()):
        assert "retains the gradient of 'kept'" in caplog.text
    caplog.clear()
    with partitioned(Net()):
        assert "retains" not in caplog.text


class WritesInputs(Net):
    """Writes to its first input at once, and to its second one late, as to a cache."""

    def forward(self, x: Tensor, cache: Tensor) -> Tensor:
        h = super().forward(x.mul_(2))
        cache[:, :3] = h[:, :3].detach()
        return h * cache


def test_a_model_that_writes_to_its_inputs_is_right() -> None:
    """Its caller has what it has written, as in plain torch, and not before the first step."""
    model, given = WritesInputs(), (BATCH.clone(), BATCH.flip(0))
    plain, expected = copy.deepcopy(model), (BATCH.clone(), BATCH.flip(0))
    example = (BATCH[:2], BATCH[:2])
    plan = even_plan(capture(model, example, training=True), 2)
    plan = replace(plan, assumptions=replace(plan.assumptions, microbatches=4))
    with skyfx.partition(model, TWO, example_inputs=given, plan=plan) as pipeline:
        assert equal(given, expected)
        assert pipeline.verified.tensors["inputs that forward writes to"] == 4
        for _ in range(2):
            pipeline.train_step(given, BATCH, functional.mse_loss)
            for *parts, target in zip(*(x.split(2) for x in (*expected, BATCH)), strict=True):
                (functional.mse_loss(plain(*parts), target) / 4).backward()  # type: ignore[no-untyped-call]
            assert equal(given, expected)
        pipeline(*given)
        with torch.no_grad():
            plain(*expected)
        assert equal(given[0], expected[0])
    assert torch.equal(model.last.weight.grad, plain.last.weight.grad)  # type: ignore[arg-type]


class Centres(Net):
    def between(self, h: Tensor) -> Tensor:
        return h - h.mean(0)


class Pairs(Net):
    """Similarities of each sample with each other, as CLIP has them."""

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) @ self.last(x).T


class TimeFirst(Net):
    """Torch's default for an LSTM: the samples are in dimension 1."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.recurrent(x)[0]


@pytest.mark.parametrize("mode", ["training", "inference"])
@pytest.mark.parametrize("kind", [Centres, Pairs, TimeFirst])
def test_a_batch_that_cannot_be_cut_is_refused(kind: type[Net], mode: Any) -> None:
    batch = BATCH[:, None].expand(8, 3, WIDTH) if kind is TimeFirst else BATCH
    model = kind()
    with pytest.raises(VerificationError, match="cannot be computed in micro-batches: output 0"):
        skyfx.partition(model, ["cpu"], example_inputs=batch, num_microbatches=4, mode=mode)
    with skyfx.partition(model, ["cpu"], example_inputs=batch, num_microbatches=1, mode=mode):
        pass


def test_outputs_without_samples_are_not_compared() -> None:
    class Loss(Net):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = super().forward(x)
            return y.pow(2).mean(), y

    with skyfx.partition(Loss(), ["cpu"], example_inputs=BATCH, num_microbatches=4):
        pass


# Ten ways to split a model wrongly.


class Whole(nn.Module):
    """Has all that the mutations break."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.relu(self.norm(self.first(x)))
        h = functional.dropout(h, 0.5) * 2.0 - h
        return self.last(h), torch.sigmoid(h)


Target = Callable[..., Any]


def replaced(staged: StagedModel, name: str, function: Callable[[Target], Target]) -> None:
    """Each operator whose name has this becomes what `function` makes of it."""
    found = 0
    for stage in staged.stages.values():
        for node in stage.module.graph.nodes:
            if node.op == "call_function" and name in node.name:
                node.target = function(node.target)
                found += 1
        stage.module.recompile()
    assert found


def drop_gradient(staged: StagedModel) -> None:
    replaced(staged, "relu", lambda of: lambda *args: of(*args).detach() + 0 * args[0])


def scale_gradient(staged: StagedModel) -> None:
    def scaled(of: Target) -> Target:
        return lambda *args: 2 * of(*args) - of(*args).detach()

    replaced(staged, "sigmoid", scaled)


def forget_buffer(staged: StagedModel) -> None:
    def without_writing(of: Target) -> Target:
        def run(x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, *rest: Any) -> Any:
            return of(x, weight, bias, mean.clone(), var.clone(), *rest)

        return run

    replaced(staged, "batch_norm", without_writing)


def other_operator(staged: StagedModel) -> None:
    replaced(staged, "relu", lambda of: functional.gelu)


def other_constant(staged: StagedModel) -> None:
    replaced(staged, "mul", lambda of: lambda x, y: of(x, 1.001 * y))


def swap_arguments(staged: StagedModel) -> None:
    replaced(staged, "sub", lambda of: lambda x, y: of(y, x))


def other_mask(staged: StagedModel) -> None:
    def of_another_sample(draw: Target) -> Target:
        return lambda of, node, x, *rest: x * draw(of, node, torch.ones_like(x), *rest).flip(0)

    replaced(staged, "draw", of_another_sample)


def no_mask(staged: StagedModel) -> None:
    replaced(staged, "draw", lambda draw: lambda of, node, x, *rest: x)


def copied_parameter(staged: StagedModel) -> None:
    replaced(staged, "linear", lambda of: lambda x, w, b: of(x, w.detach(), b))


def other_sample(staged: StagedModel) -> None:
    """The value of another micro-batch, as if messages had changed places."""
    replaced(staged, "sigmoid", lambda of: lambda x: of(x.flip(0)))


def shared_mask(staged: StagedModel) -> None:
    """All micro-batches drop the same."""
    masks: list[Tensor] = []

    def of_the_first(draw: Target) -> Target:
        def run(of: Any, node: Any, x: Tensor, *rest: Any) -> Tensor:
            masks.append(draw(of, node, torch.ones_like(x), *rest))
            return x * masks[0]

        return run

    replaced(staged, "draw", of_the_first)


def other_microbatch(staged: StagedModel) -> None:
    """The value of the micro-batch before."""
    values: list[Tensor] = []

    def of_the_one_before(of: Target) -> Target:
        def run(x: Tensor) -> Tensor:
            values.append(of(x).detach())
            return values[-2:][0] + 0 * of(x)

        return run

    replaced(staged, "sigmoid", of_the_one_before)


WAYS = [
    drop_gradient,
    scale_gradient,
    forget_buffer,
    other_operator,
    other_constant,
    swap_arguments,
    other_mask,
    no_mask,
    copied_parameter,
    other_sample,
]

BETWEEN_MICROBATCHES = [shared_mask, other_microbatch]


@pytest.fixture(params=["the model", "its parts"])
def against(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the stages are held against: parts, where the machine has no memory left."""
    if request.param == "its parts":
        monkeypatch.setattr(capacity, "free_bytes", lambda _: -1.0)


def break_each_split(
    monkeypatch: pytest.MonkeyPatch, break_it: Callable[[StagedModel], None]
) -> None:
    right = splitter.split

    def wrong(*args: Any) -> StagedModel:
        staged = right(*args)
        break_it(staged)
        return staged

    monkeypatch.setattr(splitter, "split", wrong)


@pytest.mark.usefixtures("against")
@pytest.mark.parametrize("break_it", WAYS, ids=lambda way: way.__name__)
def test_a_wrong_split_is_refused(
    break_it: Callable[[StagedModel], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_each_split(monkeypatch, break_it)
    refusal(Whole())


@pytest.mark.parametrize("break_it", BETWEEN_MICROBATCHES, ids=lambda way: way.__name__)
@pytest.mark.parametrize("check", ["full", "outputs"])
def test_micro_batches_that_meet_are_refused(
    break_it: Callable[[StagedModel], None], check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_each_split(monkeypatch, break_it)
    with pytest.raises(VerificationError, match="of micro-batch 1"):
        partitioned(Whole(), check=check)


def test_hooks_that_are_called_in_another_order_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def other_way(self: HookCalls, tensors: Any) -> None:
        pairs = zip(self.hooks, self.form.restore(tensors), strict=True)
        make(*HookCalls.of([(*hook, values) for hook, values in pairs][::-1], self.changes))

    make = HookCalls.make
    model = Whole()
    for layer in (model.first, model.last):
        layer.register_forward_hook(lambda module, args, output: None)
    with partitioned(model):
        monkeypatch.setattr(HookCalls, "make", other_way)
    assert "forward hooks are called otherwise" in refusal(model)


def test_stages_that_fail_where_plain_torch_does_not_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(staged: StagedModel) -> None:
        replaced(staged, "sigmoid", lambda of: lambda x: of(x.reshape(7)))

    break_each_split(monkeypatch, fail)
    assert "fail where plain torch does not: shape '[7]' is invalid" in refusal(Whole())


def test_outputs_are_the_models_where_only_a_backward_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A forward takes 512 bytes beside the model, and its gradients 640."""
    monkeypatch.setattr(capacity, "free_bytes", lambda _: 1000.0)
    with partitioned(Whole()) as pipeline:
        found = pipeline.verified
    assert found.tensors["outputs"] == 4
    assert found.tensors["gradients"] == 6
    assert found.remark.startswith("that gradients are the model's, as plain torch would take")
    break_each_split(monkeypatch, drop_gradient)
    assert "another gradient" in refusal(Whole())


IN_BACKWARD = {drop_gradient, scale_gradient, copied_parameter}


@pytest.mark.usefixtures("against")
@pytest.mark.parametrize("break_it", WAYS, ids=lambda way: way.__name__)
def test_outputs_alone_show_what_is_wrong_in_forward(
    break_it: Callable[[StagedModel], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_each_split(monkeypatch, break_it)
    if break_it in IN_BACKWARD:
        with partitioned(Whole(), check="outputs") as pipeline:
            assert "gradients" not in pipeline.verified.tensors
    else:
        with pytest.raises(VerificationError):
            partitioned(Whole(), check="outputs")


@pytest.mark.usefixtures("against")
def test_a_pipeline_says_what_was_verified() -> None:
    with partitioned(Whole()) as pipeline:
        assert pipeline.verified.tensors["gradients"] == 6
        assert pipeline.verified.largest == 0
        assert "equal to the last bit" in str(pipeline)


def test_a_module_in_a_list_is_refused_where_it_gets_a_gradient() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.others = nn.Linear(WIDTH, WIDTH), [nn.Linear(WIDTH, WIDTH)]
            self.is_trained = True

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            with torch.set_grad_enabled(self.is_trained):
                noted = self.others[0](h)
            return h + noted

    model = Listed()
    with pytest.raises(VerificationError, match=r"'others.0.weight' belongs to a .*\n.*ModuleList"):
        skyfx.partition(model, TWO, example_inputs=BATCH, num_microbatches=2)
    assert model.others[0].weight.grad is None
    model.is_trained = False
    skyfx.partition(model, TWO, example_inputs=BATCH, num_microbatches=2).close()


def test_layers_that_are_dropped_by_chance_may_be_others_than_in_plain_torch() -> None:
    class Drops(Layers):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList(nn.BatchNorm1d(WIDTH) for _ in range(3))

        def between(self, h: Tensor) -> Tensor:
            for norm in self.norms:
                if not self.training or torch.rand([]) < 0.5:
                    h = norm(h)
            return h

    with partitioned(Drops()) as pipeline:
        assert "not verified: that outputs are the model's, whose" in str(pipeline.verified)
