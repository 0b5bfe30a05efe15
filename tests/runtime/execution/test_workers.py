"""Where stages run: in threads of their own, or in the caller's if there is one stage alone."""

import threading

import pytest
import torch
from torch import Tensor

from skyfx.solver.errors import StageError
from tests.support import models, unsplit_reference
from tests.support.plans import SIZE, split_evenly

CORES = 6


@pytest.mark.parametrize("num_stages", [1, 3])
def test_each_stage_has_its_torch_threads_and_the_caller_keeps_its_own(
    num_stages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skyfx.devices.resolve.cores", lambda: CORES)
    case, seen = models.unet(), set()

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.add((threading.current_thread() is threading.main_thread(), torch.get_num_threads()))
        return case.loss_fn(outputs, targets)

    torch.set_num_threads(3)
    try:
        with split_evenly(case, num_stages) as pipeline:
            pipeline.train_step(case.batch, case.targets, loss_fn)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
    assert seen == {(num_stages == 1, CORES // num_stages)}


@pytest.mark.parametrize("num_stages", [1, 3])
def test_a_call_from_within_a_stage_is_refused_instead_of_waiting_for_ever(num_stages: int) -> None:
    case = models.unet()
    with split_evenly(case, num_stages) as pipeline:
        with pytest.raises(StageError, match="called from inside one of its own stages"):
            pipeline.train_step(case.batch, case.targets, lambda *_: pipeline(case.batch).sum())
        pipeline.train_step(case.batch, case.targets, case.loss_fn)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_stage_alone_trains_whatever_the_callers_gradient_mode(
    mode: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skyfx.devices.resolve.cores", lambda: CORES)
    case = models.bert()
    torch.set_num_threads(CORES)  # as the stage has: torch adds up in another order on more
    try:
        expected = unsplit_reference.train_step(unsplit_reference.unsplit(case), SIZE)
        with split_evenly(case, 1) as pipeline, mode():
            found = pipeline.train_step(case.batch, case.targets, case.loss_fn)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(found, expected)
