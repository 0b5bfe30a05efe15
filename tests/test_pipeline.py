"""The pipeline computes what the unsplit model computes."""

import copy

import pytest
import torch

import skyfx
from tests import reference
from tests.models import BATCH, CASES, Case

CLOSE = 1e-6
torch.set_num_threads(1)
SCHEDULES = ["1f1b", "gpipe"]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


def split_evenly(case: Case, num_devices: int = 3, **options: object) -> skyfx.Pipeline:
    """A pipeline with a stage on every device, whatever would be fastest."""
    return skyfx.partition(
        case.model,
        ["cpu"] * num_devices,
        example_inputs=case.batch,
        strategy="even",
        num_microbatches=4,
        **options,
    )


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


def test_outputs_equal_the_unsplit_model_bit_for_bit(case: Case) -> None:
    expected = reference.infer(case, BATCH // 4)
    with split_evenly(case) as pipeline:
        assert len(pipeline.plan.stages) == 3
        found = reference.tensors(pipeline(case.batch))
    assert len(found) == len(expected)
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_training_step_equals_the_unsplit_model(case: Case, schedule: str) -> None:
    unsplit = Case(copy.deepcopy(case.model), case.batch, case.targets, case.loss_fn)
    with split_evenly(case, schedule=schedule) as pipeline:
        for _ in range(2):
            expected = reference.train_step(unsplit, BATCH // 4)
            found = pipeline.train_step(case.batch, case.targets, case.loss_fn)
            assert torch.equal(found, expected)
        gradients = {name: p.grad for name, p in unsplit.model.named_parameters()}
        for name, parameter in pipeline.named_parameters():
            assert relative(parameter.grad, gradients[name]) <= CLOSE, name
        state = pipeline.state_dict()
    for name, value in unsplit.model.state_dict().items():
        assert torch.equal(state[name], value), name
