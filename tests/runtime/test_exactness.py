"""Fifty steps of training: every loss and every gradient is the unsplit model's, bit for bit."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests.support import models, unsplit_reference
from tests.support.models import Case, mixture
from tests.support.plans import SIZE, split_evenly

STEPS = 50

pytestmark = pytest.mark.slow


def frozen() -> Case:
    case = models.bert(layers=2)
    case.model.bert.embeddings.requires_grad_(False)
    case.model.bert.encoder.layer[1].attention.requires_grad_(False)
    return replace(case, name="frozen bert")


def dropping(make: Callable[[], Case]) -> Callable[[], Case]:
    """The same with dropout, wherever the model has one."""

    def made() -> Case:
        case = make()
        for module in case.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.1
        return replace(case, name=f"{case.name} with dropout")

    return made


CASES = {
    **models.CASES,
    "bert-dropout": dropping(models.bert),
    "gpt2-dropout": dropping(models.gpt2),
    "t5-dropout": dropping(models.t5),
    "frozen": frozen,
    "mixture": mixture,
}


@pytest.mark.parametrize("name", CASES)
def test_fifty_steps_are_the_unsplit_models(name: str) -> None:
    torch.manual_seed(0)
    case = CASES[name]()
    alone = unsplit_reference.unsplit(case)
    with split_evenly(case, 3, check="full") as pipeline:
        ours = torch.optim.AdamW(pipeline.parameters(), lr=1e-3)
        theirs = torch.optim.AdamW(alone.model.parameters(), lr=1e-3)
        torch.manual_seed(1)
        before = torch.get_rng_state()
        for _ in range(STEPS):
            torch.set_rng_state(before)
            found = pipeline.train_step(case.batch, case.targets, case.loss_fn)
            after = torch.get_rng_state()
            torch.set_rng_state(before)
            assert torch.equal(found, unsplit_reference.train_step(alone, SIZE))
            assert torch.equal(after, torch.get_rng_state())
            before = after
            assert_equal_gradients(case, alone)
            for optimizer in (ours, theirs):
                optimizer.step()
                optimizer.zero_grad()
        state = pipeline.state_dict()
    for key, value in alone.model.state_dict().items():
        assert torch.equal(state[key], value), key


def assert_equal_gradients(case: Case, alone: Case) -> None:
    expected = dict(alone.model.named_parameters())
    for name, parameter in case.model.named_parameters():
        theirs = expected[name].grad
        assert (parameter.grad is None) == (theirs is None), name
        assert parameter.grad is None or torch.equal(parameter.grad, theirs), name
