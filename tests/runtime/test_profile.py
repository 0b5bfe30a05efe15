"""A profile puts what was measured beside the plan, and leaves the training as it was."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from skyfx.runtime.profile import Profile, StageProfile
from skyfx.solver.core.chrome_trace import read_trace
from tests.support import models
from tests.support.plans import NUM_MICROBATCHES, split_evenly


def test_it_prints_a_table() -> None:
    stages = (StageProfile("a/cuda:0", 0.1, 0.125), StageProfile("b/cpu", 0.2, 0.2))
    assert str(Profile(stages, 1.5, 1.25)) == (
        "stage  device    predicted  measured  error\n"
        "0      a/cuda:0  100 ms     125 ms    -20.0%\n"
        "1      b/cpu     200 ms     200 ms    +0.0%\n"
        "step             1500 ms    1250 ms   +20.0%"
    )


def test_it_says_how_fast_stages_compute_where_operations_are_known() -> None:
    stages = (StageProfile("a", 0.1, 0.125, 5e8), StageProfile("b", 0.2, 0.2))
    assert str(Profile(stages, 1.5, 1.25)) == (
        "stage  device  predicted  measured  error   per second\n"
        "0      a       100 ms     125 ms    -20.0%  4.0 GFLOP/s\n"
        "1      b       200 ms     200 ms    +0.0%\n"
        "step           1500 ms    1250 ms   +20.0%"
    )


def test_gradients_buffers_and_generators_stay_as_they_were() -> None:
    case = models.resnet()
    with split_evenly(case) as pipeline:
        pipeline.train_step(case.batch, case.targets, case.loss_fn)
        gradients = [p.grad.clone() for p in pipeline.parameters() if p.grad is not None]
        state = {name: x.clone() for name, x in pipeline.state_dict().items()}
        drawn_next = torch.get_rng_state()
        profile = pipeline.profile(case.batch, case.targets, case.loss_fn)
        assert [one.device for one in profile.stages] == [s.device for s in pipeline.plan.stages]
        assert all(one.measured_s > 0 for one in profile.stages)
        assert profile.measured_step_s >= max(one.measured_s for one in profile.stages)
        after = [p.grad for p in pipeline.parameters() if p.grad is not None]
        assert all(map(torch.equal, gradients, after))
        assert all(torch.equal(state[name], x) for name, x in pipeline.state_dict().items())
        assert torch.equal(drawn_next, torch.get_rng_state())


def test_a_pipeline_for_inference_infers() -> None:
    case = models.bert()
    with split_evenly(case, 2, mode="inference") as pipeline:
        profile = pipeline.profile(case.batch, steps=1)
    assert len(profile.stages) == 2
    assert "step" in str(profile)


def test_the_timeline_has_every_action_in_its_order(tmp_path: Path) -> None:
    case = models.bert()
    with split_evenly(case) as pipeline:
        profile = pipeline.profile(case.batch, case.targets, case.loss_fn, steps=1)
        plan = pipeline.plan
    done = profile.timeline
    expected = plan.orders(NUM_MICROBATCHES, training=True)
    for device, actions in expected.items():
        of_device = [one for one in done if plan.stages[one.action.stage].device == device]
        assert [one.action for one in of_device] == list(actions)
        assert all(a.ended_s <= b.began_s for a, b in pairwise(of_device))
    assert min(one.began_s for one in done) == 0
    assert max(one.ended_s for one in done) <= profile.measured_step_s
    profile.write_trace(tmp_path / "t.json")
    read = {one.action: one for one in read_trace(tmp_path / "t.json", plan)}
    assert read.keys() == {one.action for one in done}
    for one in done:
        assert read[one.action].ended_s == pytest.approx(one.ended_s, abs=1e-6)
    with pytest.raises(FileExistsError, match=r"t\.json exists"):
        profile.write_trace(tmp_path / "t.json")
