"""A loss may do to outputs what it may do in plain torch."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from skyfx.solver.errors import StageError
from tests.support import unsplit_reference
from tests.support.models import BATCH, Case
from tests.support.plans import SIZE, split_evenly

WIDTH = 6


class Net(nn.Module):
    """Returns outputs, and what comes before the last layer."""

    def __init__(self, end: Callable[[Tensor], Tensor] = lambda y: y) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.end = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), end

    def forward(self, x: Tensor) -> list[Tensor]:
        h = torch.tanh(self.first(x))
        return [self.end(self.last(h)), h * 1]


def case(model: nn.Module, loss_fn: Callable[..., Tensor]) -> Case:
    x = torch.linspace(-1, 1, BATCH * WIDTH).reshape(BATCH, WIDTH)
    return Case(model, x, x.flip(0), loss_fn)


def writes(outputs: list[Tensor], targets: Tensor) -> Tensor:
    outputs[0] /= 2
    outputs[0][:, :2].sigmoid_()
    outputs[1].view(-1).masked_fill_(targets.reshape(-1) > 0, 0.5)
    return mse_loss(outputs[0], targets) + outputs[1].pow(2).mean()


def goes_backward(outputs: list[Tensor], targets: Tensor) -> Tensor:
    (outputs[0].pow(2).sum() / BATCH).backward(retain_graph=True)  # type: ignore[no-untyped-call]
    return mse_loss(outputs[0], targets)


@pytest.mark.parametrize("loss_fn", [writes, goes_backward])
def test_gradients_are_those_of_plain_torch(loss_fn: Callable[..., Tensor]) -> None:
    ours = case(Net(), loss_fn)
    alone = unsplit_reference.unsplit(ours)
    expected = unsplit_reference.train_step(alone, SIZE)
    with split_evenly(ours, 2) as pipeline:
        assert torch.equal(pipeline.train_step(ours.batch, ours.targets, loss_fn), expected)
        unsplit_reference.assert_equal_gradients(pipeline, alone.model)


def test_parameters_that_the_loss_reads_have_the_bits_of_plain_torch() -> None:
    def decayed(model: nn.Module, scale: nn.Parameter) -> Callable[..., Tensor]:
        def loss_fn(outputs: list[Tensor], targets: Tensor) -> Tensor:
            decay = torch.stack([x.pow(2).sum() for x in model.parameters()]).sum()
            return mse_loss(outputs[0] * scale, targets) + decay / 10

        return loss_fn

    ours, others = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))
    ours_case, alone = case(Net(), mse_loss), case(Net(), mse_loss)
    ours_case = replace(ours_case, loss_fn=decayed(ours_case.model, ours))
    alone = replace(alone, loss_fn=decayed(alone.model, others))
    expected = unsplit_reference.train_step(alone, SIZE)
    with split_evenly(ours_case, 2) as pipeline:
        found = pipeline.train_step(ours_case.batch, ours_case.targets, ours_case.loss_fn)
        assert torch.equal(found, expected)
        both = zip([ours, *pipeline.parameters()], [others, *alone.model.parameters()], strict=True)
        for one, other in both:
            assert one.grad is not None
            assert other.grad is not None
            assert torch.equal(one.grad, other.grad)


def test_what_backward_needs_may_not_be_written_to() -> None:
    ours = case(Net(torch.sigmoid), writes)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        unsplit_reference.train_step(unsplit_reference.unsplit(ours), SIZE)
    with split_evenly(ours, 2) as pipeline, pytest.raises(StageError, match="modified by an inpl"):
        pipeline.train_step(ours.batch, ours.targets, ours.loss_fn)


def test_a_derivative_by_the_last_layer_is_refused_and_the_cure_is_right() -> None:
    def balanced(model: nn.Module, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = mse_loss(outputs, targets), outputs.abs().mean()
        norms = [torch.autograd.grad(x, model.last.weight, retain_graph=True)[0] for x in losses]  # type: ignore[arg-type]
        return losses[0] + losses[1] * (norms[0].norm() / norms[1].norm()).detach()

    ours = case(Net(), lambda y, targets: balanced(ours.model, y[0], targets))
    alone = case(Net(), lambda y, targets: balanced(alone.model, y[0], targets))
    expected = unsplit_reference.train_step(alone, SIZE)
    with split_evenly(ours, 2) as pipeline:
        with pytest.raises(StageError, match="apply them in loss_fn"):
            pipeline.train_step(ours.batch, ours.targets, ours.loss_fn)
        ours.model.zero_grad()

        def applied(y: list[Tensor], targets: Tensor) -> Tensor:
            return balanced(ours.model, ours.model.last(y[1]), targets)  # type: ignore[operator]

        found = pipeline.train_step(ours.batch, ours.targets, applied)
        assert torch.allclose(found, expected)
        unsplit_reference.assert_equal_gradients(pipeline, alone.model)
