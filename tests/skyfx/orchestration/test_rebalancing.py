"""A device that becomes slower gets less to do, while training goes on as it would have."""

import json
from pathlib import Path

import pytest

import skyfx
from tests.jobs.rebalancing_job import MICROBATCHES, nodes_on, slow_down, trained
from tests.support import models, unsplit_reference
from tests.support.launcher import launch


def test_a_device_that_became_slower_gets_less() -> None:
    case = models.bert()
    alone = unsplit_reference.unsplit(case)
    with skyfx.partition(
        case.model, ["cpu", "cpu"], example_inputs=case.batch, num_microbatches=MICROBATCHES
    ) as pipeline:
        slow = pipeline.plan.stages[-1].device
        before = nodes_on(pipeline, slow)
        said = trained(pipeline, case, alone, lambda: slow_down(pipeline, slow))
        assert said["moved"].index(True) >= 4  # late five times in a row
        assert nodes_on(pipeline, slow) < before
    assert said["equal"]


def test_it_stays_where_the_stages_take_what_was_planned() -> None:
    case = models.bert()
    with skyfx.partition(
        case.model, ["cpu", "cpu"], example_inputs=case.batch, num_microbatches=MICROBATCHES
    ) as pipeline:
        for _ in range(3):
            pipeline.train_step(case.batch, case.targets, case.loss_fn)
            for parameter in pipeline.parameters():
                parameter.grad = None
            assert not pipeline.rebalance(above=1000.0, steps=1)


def test_over_processes_parameters_and_optimizer_state_move(tmp_path: Path) -> None:
    done = launch(2, "tests/jobs/rebalancing_job.py", str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for said in found:
        assert said["moved"].index(True) >= 4  # late five times in a row
        assert said["equal"]
    nodes = [said["nodes"] for said in found]
    assert nodes[0][0] < nodes[0][1]  # the first process, which stayed as it was, has more of it
    assert nodes[1][0] > nodes[1][1]
    before, after = zip(*(said["held"] for said in found), strict=True)
    assert before != after  # a stage with fewer nodes may hold more parameters
    assert sum(before) == sum(after)


def test_it_says_what_it_needs() -> None:
    case = models.bert()
    with skyfx.partition(case.model, ["cpu"], example_inputs=case.batch) as pipeline:
        plan = pipeline.plan
        pipeline.train_step(case.batch, case.targets, case.loss_fn)
        with pytest.raises(ValueError, match=r"after optimizer\.zero_grad"):
            pipeline.rebalance()
    given = skyfx.partition(case.model, ["cpu"], example_inputs=case.batch, plan=plan)
    with given, pytest.raises(ValueError, match="without plan="):
        given.rebalance()
