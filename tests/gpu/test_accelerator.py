"""A GPU beside the CPU; skipped where there is no GPU."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import skyfx
from tests.support import models, unsplit_reference
from tests.support.models import Case
from tests.support.plans import SIZE

needs_accelerator = pytest.mark.skipif(
    not torch.accelerator.is_available(), reason="there is no accelerator on this machine"
)
TOLERANCE = 1e-3


def on_both(case: Case, **options: Any) -> skyfx.Pipeline:
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None
    devices = [f"{accelerator.type}:0", "cpu"]
    return skyfx.partition(
        case.model, devices, example_inputs=case.batch, num_microbatches=4, **options
    )


def furthest(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().cpu() - expected.cpu()).abs().max())


@needs_accelerator
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "resnet", "unet"])
def test_a_stage_on_each_trains_and_infers_like_the_unsplit_model(name: str) -> None:
    case = models.CASES[name]()
    alone = unsplit_reference.unsplit(case)
    with on_both(case, strategy="even") as pipeline:
        assert len({p.device.type for p in pipeline.parameters()}) == 2
        for _ in range(2):
            found = pipeline.train_step(case.batch, case.targets, case.loss_fn)
            expected = unsplit_reference.train_step(alone, SIZE)
            assert furthest(found, expected) < TOLERANCE
        gradients = {k: p.grad for k, p in alone.model.named_parameters()}
        largest = max(float(g.abs().max()) for g in gradients.values() if g is not None)
        for key, parameter in pipeline.named_parameters():
            if parameter.grad is not None:
                assert furthest(parameter.grad, gradients[key]) < TOLERANCE * largest, key
        outputs = unsplit_reference.tensors(pipeline(case.batch))
        for one, other in zip(outputs, unsplit_reference.infer(alone, SIZE), strict=True):
            assert furthest(one, other) < TOLERANCE * max(1.0, float(other.abs().max()))
        assert pipeline.measured is not None
        assert all(seconds > 0 for seconds in pipeline.measured.stage_s)


@needs_accelerator
def test_its_memory_limit_is_what_it_has_free_and_it_is_measured_by_its_model() -> None:
    case = models.bert()
    with on_both(case) as pipeline:
        plan = copy.deepcopy(pipeline.plan)
    assert plan.alternatives.best_single_device is not None
    assert {stage.device for stage in plan.stages} <= {"cuda:0", "cpu"}


@needs_accelerator
def test_going_on_from_a_checkpoint_draws_what_would_have_been_drawn(tmp_path: Path) -> None:
    torch.manual_seed(0)
    case = models.bert(dropout=0.2)

    def trained(until: int) -> list[float]:
        with on_both(case, strategy="even") as pipeline:
            optimizer = torch.optim.AdamW(pipeline.parameters(), lr=1e-3)
            checkpoints = pipeline.checkpoints(tmp_path, optimizer=optimizer)
            found, losses = checkpoints.load(), []
            for step in range(found.step if found else 0, until):
                losses.append(pipeline.train_step(case.batch, case.targets, case.loss_fn).item())
                optimizer.step()
                optimizer.zero_grad()
                if step == 1:
                    checkpoints.save(2)
            return losses

    undisturbed = trained(4)
    torch.manual_seed(1)
    assert trained(4) == pytest.approx(undisturbed[2:], rel=1e-5)
    assert len(undisturbed) == 4
