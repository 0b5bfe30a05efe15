"""A pipeline that trains hands over no value of its first inference that plain torch has not."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import skyfx
from skyfx.partitioning import splitter
from skyfx.runtime.execution.stage import StagedModel
from skyfx.runtime.model_state import ModelState
from skyfx.runtime.state.contents import equal
from skyfx.solver.errors import CaptureError, StageError, VerificationError
from skyfx.verification import capacity
from tests.support.attribute_models import BATCH, SIZE, TARGETS, WIDTH, Layers, partitioned
from tests.support.models import failing
from tests.support.plans import split_evenly


class SeedsInEval(Layers):
    """Right in training; in eval mode a graph would draw other numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.has_noise = True

    def between(self, h: Tensor) -> Tensor:
        if self.training or not self.has_noise:
            return h
        torch.manual_seed(3)
        return h + torch.randn(WIDTH)


def outputs(model: nn.Module) -> Tensor:
    """Of plain torch in eval mode."""
    with torch.no_grad():
        found = torch.cat([model.eval()(x) for x in BATCH.split(SIZE)])
    model.train()
    return found


def test_what_only_inference_would_do_otherwise_is_refused_when_it_comes() -> None:
    model = SeedsInEval()
    with partitioned(model) as pipeline:
        assert "in inference: not verified: its first call will be" in str(pipeline.verified)
        pipeline.train_step(BATCH, TARGETS, functional.mse_loss)
        for infer in (pipeline, lambda x: next(pipeline.stream([x])), pipeline):
            with pytest.raises(VerificationError, match=r"does in inference: .*generator") as why:
                infer(BATCH)
            assert len(str(why.value).splitlines()) <= 3
            assert f" at {__file__}:" in str(why.value)
        pipeline.train_step(BATCH, TARGETS, functional.mse_loss)
        model.has_noise = False
        assert torch.equal(pipeline(BATCH), outputs(model))
    with partitioned(SeedsInEval(), check="off") as pipeline:
        assert pipeline(BATCH).isfinite().all()


@pytest.mark.parametrize("against", ["the model", "its parts"])
def test_a_wrong_split_of_inference_is_refused(
    against: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = splitter.split

    def wrong(captured: Any, *args: Any) -> StagedModel:
        staged = right(captured, *args)
        for stage in () if captured.training else staged.stages.values():
            for node in stage.module.graph.nodes:
                if node.op == "call_function" and "tanh" in node.name:
                    node.target = torch.sigmoid
            stage.module.recompile()
        return staged

    monkeypatch.setattr(splitter, "split", wrong)
    if against == "its parts":
        monkeypatch.setattr(capacity, "free_bytes", lambda _: -1.0)
    with partitioned(Layers()) as pipeline, pytest.raises(VerificationError, match="in inference"):
        pipeline(BATCH)


class AsksForGradients(Layers):
    """Takes another way where nothing needs a gradient."""

    def between(self, h: Tensor) -> Tensor:
        h = h * 2 if torch.is_grad_enabled() else h
        return h * 3 if h.requires_grad else h


def test_forward_is_asked_without_gradients_for_inference() -> None:
    model = AsksForGradients()
    with partitioned(model) as pipeline:
        pipeline.train_step(BATCH, TARGETS, functional.mse_loss)
        assert torch.equal(pipeline(BATCH), outputs(model))


class Keeps(Layers):
    """Changes state and draws in eval mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.norm = nn.BatchNorm1d(WIDTH)
        self.average = nn.Parameter(torch.eye(WIDTH), requires_grad=False)

    def between(self, h: Tensor) -> Tensor:
        self.seen.add_(1)  # type: ignore[operator]
        with torch.no_grad():
            self.average.mul_(0.9).add_(self.first.weight, alpha=0.1)
        h = functional.linear(h, self.average)
        return functional.dropout(self.norm(h), 0.5)


def test_all_but_what_inference_does_is_as_before() -> None:
    model, plain = Keeps(), Keeps()
    with partitioned(model) as pipeline:
        model.first.weight.grad = torch.ones(WIDTH, WIDTH)
        torch.manual_seed(7)
        with torch.inference_mode():
            found = pipeline(BATCH)
        ours = ModelState.of(model)
        torch.manual_seed(7)
        assert torch.equal(found, outputs(plain))
        theirs = ModelState.of(plain)
        assert equal(dict(ours.values), dict(theirs.values))
        assert ours.generators["torch"] == theirs.generators["torch"]
        assert torch.equal(model.first.weight.grad, torch.ones(WIDTH, WIDTH))
        assert model.last.weight.grad is None
    compared = pipeline.verified.inference
    assert compared is not None
    assert compared.tensors["outputs"] == 1
    assert compared.largest == 0
    assert "in inference: buffers and attributes (5), outputs (1), equal" in str(pipeline.verified)


def test_a_batch_on_which_plain_torch_fails_fails_as_always() -> None:
    case = failing()
    with split_evenly(case, 2, check="full") as pipeline:
        with pytest.raises(StageError, match="IndexError"):
            pipeline(torch.full_like(case.batch, 9))
        assert pipeline(case.batch).isfinite().all()
        assert pipeline.verified.inference is not None
        assert pipeline.verified.inference.tensors


def test_a_pipeline_for_inference_is_verified_at_once() -> None:
    options: Any = {"example_inputs": BATCH, "mode": "inference", "num_microbatches": 4}
    with skyfx.partition(Layers(), ["cpu"], **options) as pipeline:
        assert pipeline.verified.inference is None
        assert pipeline.verified.tensors["outputs"] == 2


def test_an_evaluation_within_inference_mode_may_be_the_first() -> None:
    """Its batches are made there, and autograd could not save them."""
    model = Layers()
    with torch.inference_mode():
        example = BATCH + 0
    with partitioned(model) as pipeline:
        with torch.inference_mode():
            assert torch.equal(pipeline(example + 0), outputs(model))
            assert pipeline(example[:3] + 0).shape == (3, WIDTH)
        pipeline.train_step(BATCH, TARGETS, functional.mse_loss)
    with skyfx.partition(model, ["cpu"], example_inputs=example, num_microbatches=4) as pipeline:
        pipeline.train_step(BATCH, TARGETS, functional.mse_loss)


def test_a_model_that_was_made_within_inference_mode_is_refused_with_the_cure() -> None:
    with torch.inference_mode():
        model = Layers()
    with pytest.raises(CaptureError, match=r"make it within torch\.no_grad"):
        partitioned(model)
    with torch.no_grad():
        model = Layers()
    with partitioned(model) as pipeline:
        assert torch.equal(pipeline(BATCH), outputs(model))
