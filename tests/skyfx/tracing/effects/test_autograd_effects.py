"""What a forward asks of autograd itself trains as in plain torch."""

import copy
import itertools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.nn import functional
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

import skyfx
from skyfx.devices.resolve import resolve
from skyfx.measurement.measure import measure
from skyfx.solver.errors import CaptureError
from skyfx.tracing.capture import Capture, capture
from skyfx.tracing.effects.backward_values import is_for_backward
from skyfx.tracing.leaves.leaf_calls import leaf_of
from tests.support import unsplit_reference
from tests.support.models import BATCH, Case
from tests.support.plans import SIZE, split_evenly
from tests.support.unsplit_reference import assert_equal_gradients

WIDTH = 6


class Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float = 1.0) -> Tensor:
        return (x * scale).round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient, None


straight_through = Round.apply
"""Bound before skyfx could see a call of it, as in torch's own documents."""


class Net(nn.Module):
    """Two linear layers, and between them what a test says."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.teacher = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


class BoundEarly(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(straight_through(straight_through(self.first(x)), 3.0))


class BoundLate(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(Round.apply(self.first(x)))


class Quantiser(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return straight_through(x)


class InSubmodule(Net):
    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Sequential(Quantiser(), nn.Tanh(), Quantiser())

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))


class Inference(Net):
    """The teacher is not trained."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        with torch.inference_mode():
            told = torch.tanh(self.teacher(h))
            with torch.inference_mode(False), torch.no_grad():
                told = told + 1
        return self.last(h - told)


class Teacher(nn.Linear):
    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class DecoratedInference(Net):
    def __init__(self) -> None:
        super().__init__()
        self.teacher = Teacher(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.last(h - self.teacher(h))


class InferenceOfOne(Net):
    """A submodule in plain torch's inference mode, by a method bound early."""

    def forward(self, x: Tensor) -> Tensor:
        told = no_gradients(self.teacher)(x)
        return self.last(torch.tanh(self.first(x)) - told)


no_gradients = torch.inference_mode(True)


class Switches(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        with torch.no_grad():
            told = self.teacher(h)
            with torch.enable_grad():
                more = self.last(h)
        torch.set_grad_enabled(False)
        less = self.teacher(h)
        torch.set_grad_enabled(True)
        return self.last(h - told) + more + less


class Reentrant(Net):
    """The first value needs no gradient, the second one does."""

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(self.teacher, x, use_reentrant=True)
        h = self.first(h)
        h = checkpoint(lambda a, b: torch.tanh(self.last(a)) * b, h, 2.0, use_reentrant=True)
        return self.last(checkpoint(self.first, h, use_reentrant=False))


class WithoutGradientInside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return 2 * gradient


class NeedsNoGradient(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(WithoutGradientInside.apply(x))))


class ReadsData(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.last.weight.data.clamp_(-0.2, 0.2)
        h = self.first(x)
        h = self.last(h + h.data * self.teacher.weight.data.mean())
        self.last.weight.data.clamp_(-0.2, 0.2)  # which backward does not mind
        return h


class SetsData(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.first.weight.data = self.first.weight.data / self.first.weight.data.norm()
        return self.last(self.first(x))


class Decays(Net):
    """Each call changes a parameter, and no call before the first step counts."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        with torch.no_grad():
            self.teacher.weight.mul_(0.9)
        return self.last(h) + self.teacher(x)


class Contrasts(Net):
    """A moving average of parameters, and a queue that is written by an index, as MoCo has them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.randn(WIDTH, 2 * BATCH))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))
        self.teacher.requires_grad_(False)

    @torch.no_grad()
    def move(self) -> None:
        for own, other in zip(self.teacher.parameters(), self.first.parameters(), strict=True):
            own.data = own.data * 0.9 + other.data * 0.1

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        begin = int(self.pointer)
        self.queue.data[:, begin : begin + len(keys)] = keys.T
        self.pointer[0] = (begin + len(keys)) % self.queue.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        query = functional.normalize(self.first(x), dim=1)
        with torch.no_grad():
            self.move()
            keys = functional.normalize(self.teacher(x), dim=1)
        found = query * keys + (query @ self.queue.clone().detach())[:, :WIDTH]
        self.enqueue(keys)
        return self.last(found)


class Overwrites(Net):
    """Backward needs what the next micro-batch's forward overwrites before it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(WIDTH))
        self.previous = torch.ones(WIDTH)
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        with torch.no_grad():
            self.mean.mul_(0.9)
            self.teacher.weight.mul_(0.9)
        h = torch.tanh(self.teacher(h * self.mean)) * self.previous
        self.previous = h.detach().mean(0)
        self.inner.weight.data = self.inner.weight.data * 0.8
        return self.last(torch.tanh(self.inner(h) * self.scale))


EXACT = [
    BoundEarly,
    BoundLate,
    InSubmodule,
    Inference,
    DecoratedInference,
    InferenceOfOne,
    Switches,
    Reentrant,
    NeedsNoGradient,
    ReadsData,
    SetsData,
    Decays,
    Contrasts,
    Overwrites,
]


def case(model: nn.Module) -> Case:
    torch.manual_seed(1)
    return Case(model, torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH), functional.mse_loss)


def kept(captured: Capture) -> list[str]:
    return [captured.ids[node] for node in captured.ids if leaf_of(node)]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@pytest.mark.parametrize("kind", EXACT)
def test_it_trains_and_infers_as_in_plain_torch(kind: type[nn.Module]) -> None:
    trains_exactly(kind())


def trains_exactly(model: nn.Module) -> None:
    ours = case(model)
    alone = Case(copy.deepcopy(ours.model), ours.batch, ours.targets, ours.loss_fn)
    with split_evenly(ours, 2) as pipeline:
        for _ in range(2):
            expected = unsplit_reference.train_step(alone, SIZE)
            found = pipeline.train_step(ours.batch, ours.targets, ours.loss_fn)
            assert torch.equal(found, expected)
        assert_equal_gradients(pipeline, alone.model)
        assert torch.equal(pipeline(ours.batch), unsplit_reference.infer(alone, SIZE)[0])
    for key, value in alone.model.state_dict().items():
        assert torch.equal(ours.model.state_dict()[key], value), key


class Forces(nn.Module):
    """Minus the gradient of an energy, as force fields have it."""

    create_graph = True

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)

    def energy(self, x: Tensor) -> Tensor:
        return self.other(torch.relu(torch.tanh(self.one(x))) @ torch.ones(WIDTH, WIDTH)).sin()

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.requires_grad_() if x.is_leaf else x
            (found,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=self.create_graph)
        return -found


class DetachedForces(Forces):
    create_graph = False


class ForcesByMethods(Forces):
    """The innermost call has not all that it differentiates."""

    def differentiate(self, energy: Tensor, x: Tensor) -> Tensor:
        return torch.autograd.grad(energy.sum(), x, create_graph=True)[0]

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.requires_grad_() if x.is_leaf else x
            return self.differentiate(self.energy(x), x)


class FunctionalForces(Forces):
    def forward(self, x: Tensor) -> Tensor:
        return torch.func.grad(lambda at: self.energy(at).sum())(x)


class Directional(Forces):
    def forward(self, x: Tensor) -> Tensor:
        return torch.func.jvp(torch.tanh, (self.one(x),), (torch.ones_like(x),))[1]


class Jacobian(Forces):
    def forward(self, x: Tensor) -> Tensor:
        return torch.func.vmap(torch.func.jacrev(self.energy))(x)[:, 0]


class With(Net):
    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(torch.tanh(self.first(x))))


class OwnMethod(Forces):
    """A method of the model itself, on its input."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.forces(x))

    def forces(self, x: Tensor) -> Tensor:
        return Forces.forward(self, x)


class Physics(Net):
    """The derivative of the model's own output by its input, in its own forward."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.requires_grad_()
        h = torch.tanh(self.first(x))
        u = self.last(h)
        slope = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
        return self.teacher(u + slope)


class Released(Net):
    """By a value in the middle, and detached."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            h = torch.tanh(self.first(x))
            y = self.last(h)
            (slope,) = torch.autograd.grad(y.sum(), h, retain_graph=True)
        return self.teacher(y + slope)


class WritesItsArgument(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if (x > -9).any():
            x.mul_(2)
        return x + 1


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_all_of_them_can_be_measured() -> None:
    parts = (*(With(kind()) for kind in DERIVATIVES), Contrasts(), SetsData(), WritesItsArgument())
    model = nn.Sequential(*parts)
    before = copy.deepcopy(model.state_dict())
    captured = capture(model, case(model).batch[:SIZE])
    graph = measure(captured, resolve(["cpu"])[1].values())
    leaves = {captured.ids[node] for node in captured.ids if leaf_of(node)}
    trained = [node.id for node in graph.nodes if node.id in leaves and node.backward_s]
    assert len(trained) == len(DERIVATIVES), trained  # the forces that are detached are not
    for key, value in model.state_dict().items():
        assert torch.equal(before[key], value), key


class Backward(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.first(x).sum().backward()
        return self.last(x)


def test_backward_in_forward_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"at .*py:\d+: forward calls `backward`.*autograd.grad"):
        capture(Backward(), torch.ones(SIZE, WIDTH))


def test_a_derivative_by_the_input_needs_no_gradients_around_it() -> None:
    ours = case(Physics())
    alone = Case(copy.deepcopy(ours.model), ours.batch, ours.targets, ours.loss_fn)
    microbatches = ours.batch.split(SIZE)
    expected = torch.cat([alone.model(x.clone()) for x in microbatches]).detach()
    with skyfx.partition(ours.model, ["cpu"], example_inputs=ours.batch, num_microbatches=4) as one:
        torch.testing.assert_close(one(ours.batch), expected, rtol=0, atol=0)
        loss = one.train_step(ours.batch, ours.targets, ours.loss_fn)
        assert torch.equal(loss, unsplit_reference.train_step(alone, SIZE))
        assert_equal_gradients(one, alone.model)


DERIVATIVES = [Forces, DetachedForces, ForcesByMethods, FunctionalForces, Directional, Jacobian]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("kind", [*DERIVATIVES, OwnMethod, Released])
def test_derivatives_are_exact(kind: type[nn.Module]) -> None:
    trains_exactly(With(kind()) if kind in DERIVATIVES else kind())


class SavesHalf(Net):
    """Autograd saves fewer digits for some lines, and the same on the CPU for others."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        with saved_tensors_hooks(lambda x: x.half(), lambda x: x.float()):
            h = torch.tanh(self.teacher(h)) ** 2
        with save_on_cpu():
            h = torch.tanh(h)
        return self.last(h)


def test_lines_for_which_autograd_saves_something_else_stay_whole() -> None:
    trains_exactly(SavesHalf())
    assert len(kept(capture(SavesHalf(), torch.ones(SIZE, WIDTH)))) == 1


def sigmoid_gate(x: Tensor, slope: float = 1.7) -> Tensor:
    return x * torch.sigmoid(slope * x)


with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
    gated = torch.jit.script(sigmoid_gate)
    traced_gate = torch.jit.trace(lambda x: x * torch.tanh(x), torch.ones(2))


class Scripted(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(traced_gate(gated(gated(self.first(x)), slope=0.5)))


def test_scripted_functions_are_cut_and_have_gradients_however_often_they_were_called() -> None:
    """From its second call on torch.jit has gradients of its own, in other last digits."""
    ours = case(Scripted())
    alone = Case(copy.deepcopy(ours.model), ours.batch, ours.targets, ours.loss_fn)
    expected = unsplit_reference.train_step(alone, SIZE)
    assert len(capture(ours.model, ours.batch).ids) > 8
    with split_evenly(ours, 2) as pipeline:
        assert torch.equal(pipeline.train_step(ours.batch, ours.targets, ours.loss_fn), expected)
        assert_equal_gradients(pipeline, alone.model)


def test_copies_for_backward_are_made_where_backward_needs_them() -> None:
    def copied(model: nn.Module, x: Tensor) -> list[str]:
        found = capture(model, x).module.graph.nodes
        return [str(node.args[0]) for node in found if is_for_backward(node)]

    x = torch.ones(SIZE, WIDTH)
    assert len(copied(Overwrites(), x)) == 4
    assert copied(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)), x) == []
    assert copied(Contrasts(), x) == []
    rows = torch.zeros(SIZE, 3, dtype=torch.long)
    assert copied(nn.Sequential(nn.Embedding(9, WIDTH, max_norm=1.0), nn.Linear(6, 6)), rows) == []


class HoldsTensor(Net):
    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Module()
        self.middle.scale = torch.ones(WIDTH, requires_grad=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) * self.middle.scale)


class HoldsParameter(HoldsTensor):
    def __init__(self) -> None:
        super().__init__()
        del self.middle.scale
        self.middle.scale = nn.Parameter(torch.ones(WIDTH))


class HoldsList(HoldsTensor):
    def __init__(self) -> None:
        super().__init__()
        self.scales = [torch.ones(WIDTH, requires_grad=True)]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) * self.scales[0])


class StartsALoss(Net):
    """A buffer without use of its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("zero", torch.tensor(0.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        loss = self.zero
        if self.training:
            loss.requires_grad_()
        return self.last(self.first(x)) + loss + torch.zeros(WIDTH, requires_grad=True)


def test_a_tensor_with_a_gradient_is_a_parameter_or_refused() -> None:
    x = torch.randn(SIZE, WIDTH)
    with pytest.raises(
        CaptureError, match=r"'middle.scale' requires a gradient.*torch.nn.Parameter\("
    ):
        capture(HoldsTensor(), x)
    with pytest.raises(CaptureError, match=r"tensor in 'scales' requires a gradient"):
        capture(HoldsList(), x)
    capture(HoldsTensor(), x, training=False)
    trains_exactly(HoldsParameter())
    trains_exactly(StartsALoss())


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_compiled_script_is_refused() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU())
    scripts = [torch.jit.script(model), torch.jit.trace(model, torch.ones(2, WIDTH))]
    for script, part in itertools.product(scripts, (False, True)):
        whole = nn.Sequential(nn.Linear(WIDTH, WIDTH), script) if part else script
        said = "'1', a part of the model," if part else "the model"
        with pytest.raises(CaptureError, match=rf"{said} is compiled by torch.jit.* without"):
            skyfx.partition(whole, ["cpu"], example_inputs=torch.ones(2, WIDTH))


@pytest.mark.parametrize("norm_type", [2.0, float("inf")])
def test_sparse_gradients_are_clipped_as_dense_ones(norm_type: float) -> None:
    def build(*, sparse: bool) -> nn.Module:
        torch.manual_seed(0)
        bag = nn.EmbeddingBag(9, WIDTH, sparse=sparse)
        return nn.Sequential(bag, nn.Linear(WIDTH, WIDTH))

    batch, targets = torch.randint(0, 9, (BATCH, 3)), torch.randn(BATCH, WIDTH)
    alone = Case(build(sparse=False), batch, targets, functional.mse_loss)
    unsplit_reference.train_step(alone, SIZE)
    expected = nn.utils.clip_grad_norm_(alone.model.parameters(), 0.01, norm_type)
    ours = Case(build(sparse=True), batch, targets, functional.mse_loss)
    with split_evenly(ours, 2) as pipeline:
        pipeline.train_step(batch, targets, functional.mse_loss)
        assert ours.model[0].weight.grad.is_sparse
        torch.testing.assert_close(pipeline.clip_grad_norm_(0.01, norm_type), expected)
        for found, other in zip(pipeline.parameters(), alone.model.parameters(), strict=True):
            torch.testing.assert_close(found.grad.to_dense(), other.grad)


class Flexible(Net):
    """Has no backward on CPUs. Its mask cannot cross between stages, so the lines stay whole."""

    def forward(self, x: Tensor) -> Tensor:
        heads = self.first(x).view(len(x), 1, 3, 2)
        mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, 3, 3, x.device)
        h = flex_attention(heads, heads, heads, lambda score, b, h, i, j: score + (j - i), mask)
        return self.last(h.reshape(len(x), WIDTH))


@pytest.mark.filterwarnings("ignore")  # of torch.compile, which flex_attention calls
def test_a_model_without_a_backward_infers() -> None:
    ours = case(Flexible().eval())
    options = {"mode": "inference", "num_microbatches": BATCH // SIZE}
    with (
        torch.no_grad(),
        skyfx.partition(ours.model, ["cpu"], example_inputs=ours.batch, **options) as pipeline,
    ):
        expected = torch.cat([ours.model(x) for x in ours.batch.split(SIZE)])
        assert torch.equal(pipeline(ours.batch), expected)
    with pytest.raises(CaptureError, match=r"does not support backward on CPU"):
        capture(ours.model, ours.batch)
