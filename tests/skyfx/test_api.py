"""The one call, whole: capture, measure, solve, split, run."""

import copy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import skyfx
from skyfx.api import capture_and_measure
from skyfx.devices.local_links import with_links
from skyfx.devices.resolve import resolve
from skyfx.solver import Assumptions, solve
from skyfx.solver.analysis.plan_sources import read_with_inputs
from skyfx.solver.analysis.validation import validate
from skyfx.solver.core import files
from skyfx.solver.core.plan import Plan
from skyfx.solver.errors import CaptureError, FormatError, InfeasibleError, PlanError
from skyfx.tracing.capture import capture
from tests.support import models, unsplit_reference
from tests.support.independent_validator import referee_faults
from tests.support.models import BATCH, Case
from tests.support.plans import NUM_MICROBATCHES, SIZE, even_plan, generated_plan

WIDTH = 256


def layers(num_layers: int = 6) -> Case:
    """Equal layers, each long enough for the planner to care."""
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(num_layers)))
    batch = torch.randn(16 * BATCH, WIDTH)
    return Case(model, batch, torch.zeros_like(batch), nn.functional.mse_loss)


def planned(case: Case, devices: list[object], **options: object) -> Plan:
    with skyfx.partition(case.model, devices, example_inputs=case.batch, **options) as pipeline:
        return pipeline.plan


def test_one_call_plans_trains_and_infers() -> None:
    case = models.bert()
    alone = Case(models.bert().model, case.batch, case.targets, case.loss_fn)
    alone.model.load_state_dict(case.model.state_dict())
    with skyfx.partition(
        case.model,
        ["cpu", skyfx.Device("cpu", slowdown=3)],
        example_inputs=case.batch,
        num_microbatches=NUM_MICROBATCHES,
    ) as pipeline:
        optimizer = torch.optim.AdamW(pipeline.parameters(), lr=3e-3)
        losses = []
        for _ in range(5):
            losses.append(pipeline.train_step(case.batch, case.targets, case.loss_fn).item())
            optimizer.step()
            optimizer.zero_grad()
        assert losses[-1] < losses[0]
        alone.model.load_state_dict(pipeline.state_dict())
        found = pipeline(case.batch)
        assert torch.equal(found.logits, unsplit_reference.infer(alone, SIZE)[0])
        assert "bottleneck" in str(pipeline)
        assert pipeline.measured is not None
        assert len(pipeline.measured.stage_s) == len(pipeline.plan.stages)


@pytest.mark.parametrize("schedule", ["generated", "tapered", "interleaved"])
def test_a_schedule_is_made_for_the_plan_and_run(schedule: str) -> None:
    case = models.resnet()
    alone = unsplit_reference.unsplit(case)
    with skyfx.partition(
        case.model,
        ["cpu", "cpu"],
        example_inputs=case.batch,
        schedule=schedule,
        strategy="even",
        num_microbatches=NUM_MICROBATCHES,
    ) as pipeline:
        found = pipeline.train_step(case.batch, case.targets, case.loss_fn)
        assert torch.equal(found, unsplit_reference.train_step(alone, SIZE))
    assert [s.device for s in pipeline.plan.stages] == ["cpu:0", "cpu:1"] * (
        2 if schedule == "interleaved" else 1
    )
    assert all(stage.live for stage in pipeline.plan.stages)
    assert "simulated step" in str(pipeline.plan)


def test_a_plan_whose_stages_would_wait_for_each_other_is_refused() -> None:
    case = models.resnet()
    plan = generated_plan(capture(case.model, case.batch), (2, 3))
    with pytest.raises(PlanError, match="would deadlock: stage 1: found 3 micro-batches in flight"):
        planned(case, ["cpu", "cpu"], plan=plan)


def test_a_slow_device_gets_less_work() -> None:
    plan = planned(layers(), ["cpu", skyfx.Device("cpu", slowdown=3)])
    work = {s.device: sum(n.endswith("linear") for n in s.nodes) for s in plan.stages}
    assert work["cpu:0"] > work.get("cpu:1", 0)


def test_a_device_that_is_too_small_gets_nothing() -> None:
    plan = planned(layers(), ["cpu", skyfx.Device("cpu", memory_bytes=1000)])
    assert [stage.device for stage in plan.stages] == ["cpu:0"]


def test_a_device_that_is_fastest_alone_is_used_alone() -> None:
    plan = planned(layers(), ["cpu", skyfx.Device("cpu", slowdown=1000)])
    assert [stage.device for stage in plan.stages] == ["cpu:0"]
    assert plan.objective_value == plan.alternatives.best_single_device


def test_devices_that_are_all_too_small_are_refused_with_both_numbers() -> None:
    small = skyfx.Device("cpu", memory_bytes=1e6)
    with pytest.raises(InfeasibleError, match=r"needs .* MiB, .* (KiB|MiB)"):
        planned(layers(), [small, small])


@pytest.mark.parametrize("mode", ["training", "inference"])
def test_a_plan_made_offline_runs_here_and_is_right(mode: str, tmp_path: Path) -> None:
    case = models.bert()
    cluster, places = resolve(["cpu", "cpu"])
    cluster = with_links(cluster, places)
    graph = capture_and_measure(
        case.model,
        places.values(),
        example_inputs=case.batch,
        mode=mode,
        num_microbatches=NUM_MICROBATCHES,
    )
    given = Assumptions(mode=mode, microbatches=NUM_MICROBATCHES)
    plan = solve(graph, cluster, given).plan
    assert referee_faults(graph, cluster, plan) == []
    files.write(plan, tmp_path / "bert.plan.json")
    expected = unsplit_reference.infer(case, SIZE)
    with skyfx.partition(
        case.model,
        ["cpu", "cpu"],
        example_inputs=case.batch,
        plan=tmp_path / "bert.plan.json",
    ) as pipeline:
        assert pipeline.plan == plan
        assert torch.equal(pipeline(case.batch).logits, expected[0])


def test_a_plan_for_another_model_mode_or_device_is_refused() -> None:
    case = models.bert()
    plan = even_plan(capture(case.model, case.batch), 2)
    with pytest.raises(PlanError, match=r"is for another graph .* nodes are in it"):
        planned(models.gpt2(), ["cpu", "cpu"], plan=plan)
    with pytest.raises(PlanError, match=r"uses device 'cpu:0', the devices given are cpu:"):
        planned(case, ["cpu"], plan=even_plan(capture(case.model, case.batch), 2))
    wide = Case(nn.Sequential(nn.Linear(3, 9), nn.Linear(9, 1)), torch.ones(8, 3), None, None)
    narrow = Case(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1)), torch.ones(8, 3), None, None)
    with pytest.raises(PlanError, match="same names as this model's, but other operators"):
        planned(narrow, ["cpu", "cpu"], plan=even_plan(capture(wide.model, wide.batch), 2))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"plan": "nowhere.json"}, FormatError, "nowhere.json: No such file"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        planned(layers(), ["cpu"], **options)


def test_inputs_that_do_not_fit_the_model_are_refused_when_they_come() -> None:
    case = models.resnet()
    with skyfx.partition(case.model, ["cpu"], example_inputs=case.batch) as pipeline:
        with pytest.raises(CaptureError, match="cannot be captured with inputs of shapes"):
            pipeline(torch.randn(BATCH, 7, 8, 8))
        with pytest.raises(TypeError, match="the batch is a str"):
            pipeline("text")
        assert pipeline(case.batch).shape == (BATCH, 5)


class TwoFaced(nn.Module):
    """Takes its layers from the other end in eval mode: no cut serves both modes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers if self.training else reversed(self.layers):
            x = layer(x)
        return x


class NormedAgain(nn.Module):
    """Batch norm within a checkpoint moves its statistics again in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(lambda z: torch.tanh(self.norm(self.first(z))), x, use_reentrant=False)
        return self.last(h)


@pytest.mark.parametrize("kind", [TwoFaced, NormedAgain])
def test_what_eval_mode_reads_in_another_order_is_sent(kind: type[nn.Module]) -> None:
    model, batch = kind(), torch.randn(BATCH, 4)
    plan = even_plan(capture(model, batch[:SIZE]), 2)
    with skyfx.partition(model, ["cpu"] * 2, example_inputs=batch, plan=plan) as pipeline:
        pipeline.train_step(batch, torch.zeros(BATCH, 4), nn.functional.mse_loss)
        found, expected = pipeline(batch), copy.deepcopy(model).eval()
    with torch.no_grad():
        assert torch.equal(found, torch.cat([expected(x) for x in batch.split(SIZE)]))


SCRIPT = """
import sys, time, torch, skyfx
from torch import nn
model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
def slow(outputs, targets):
    print("running", flush=True)
    time.sleep(float(sys.argv[1]))
    return outputs.sum()
pipeline = skyfx.partition(model, ["cpu", "cpu"], example_inputs=torch.ones(4, 4))
pipeline.train_step(torch.ones(4, 4), None, slow)
"""


def test_the_end_of_the_program_ends_the_workers() -> None:
    ended = subprocess.run([sys.executable, "-c", SCRIPT, "0"], timeout=120, check=False)
    assert ended.returncode == 0


def test_ctrl_c_ends_a_step() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"running\n"
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, errors = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in errors
    assert time.monotonic() - began < 30


@pytest.mark.slow
def test_what_a_plan_was_made_from_can_be_kept(tmp_path: Path) -> None:
    """The files are those of `capture` and `solve`: whole, found by their digests, and valid."""
    case = models.bert()
    for _ in range(2):  # the second time over the first
        with skyfx.partition(
            case.model,
            ["cpu", "cpu"],
            example_inputs=case.batch,
            num_microbatches=2,
            keep=tmp_path / "kept",
        ) as pipeline:
            plan = pipeline.plan
    assert sorted(x.name for x in (tmp_path / "kept").iterdir()) == [
        f"{plan.graph.name}.{kind}.json" for kind in ("cluster", "graph", "plan")
    ]
    path = tmp_path / "kept" / f"{plan.graph.name}.plan.json"
    kept, graph, cluster = read_with_inputs(path)
    assert kept == plan
    assert validate(graph, cluster, plan) == ()
