"""Checkpoints in one process: going on is as if nothing had been, and nothing is half loaded."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.optim import lr_scheduler

import skyfx
from skyfx.solver.errors import CheckpointError
from tests.support import ROOT, models
from tests.support.launcher import launch
from tests.support.models import Case, small
from tests.support.plans import split_evenly

CASES: dict[str, Callable[[], Case]] = {
    "bert with dropout": lambda: models.bert(dropout=0.2),
    "gpt2": models.gpt2,
    "resnet": models.resnet,
}


def train(pipeline: skyfx.Pipeline, case: Case, folder: Path, until: int) -> list[float]:
    """Go on from the latest checkpoint, if there is one, saving once on the way."""
    optimizer = torch.optim.AdamW(pipeline.parameters(), lr=1e-2)
    scheduler = lr_scheduler.MultiStepLR(optimizer, [1, 3, 4])
    checkpoints = pipeline.checkpoints(folder, optimizer=optimizer, scheduler=scheduler)
    found = checkpoints.load()
    losses = []
    for step in range(found.step if found else 0, until):
        losses.append(pipeline.train_step(case.batch, case.targets, case.loss_fn).item())
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step == 1:
            checkpoints.save(2)
    return losses


@pytest.mark.parametrize("name", CASES)
def test_going_on_under_another_plan_is_as_if_nothing_had_been(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    case = CASES[name]()
    with split_evenly(case, 3) as pipeline:
        undisturbed = train(pipeline, case, tmp_path, 5)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in case.model.parameters():
            parameter.uniform_()
    with split_evenly(case, 2) as pipeline:
        assert train(pipeline, case, tmp_path, 5) == undisturbed[2:]


class Odd(nn.Module):
    """Tensors of all kinds."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        whole = torch.randn(4, 6)
        tensors = {
            "number": torch.tensor(float(seed)),
            "truths": torch.rand(3) > 0.5,
            "halves": torch.randn(3).bfloat16(),
            "whole": torch.randint(100, (2, 2)),
            "nothing": torch.zeros(0, 3),
            "turned": torch.randn(4, 6).t(),
            "image": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
            "complex": torch.randn(3, dtype=torch.complex64),
            "row": whole[0],
            "other_row": whole[1],
            "first_row": whole[:1],
        }
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        self.register_buffer("passing", torch.randn(2), persistent=False)


@pytest.mark.parametrize("wait", [True, False])
def test_tensors_of_any_kind_and_form_come_back(wait: bool, tmp_path: Path) -> None:
    model, other = Odd(1), Odd(2)
    with_all = skyfx.Checkpoints(model, tmp_path)
    with_all.save(1, wait=wait)
    with_all.close()
    passing = other.passing.clone()
    skyfx.Checkpoints(other, tmp_path).load()
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
        assert other.state_dict()[name].stride() == value.stride(), name
    assert torch.equal(other.passing, passing)


def test_what_the_user_keeps_comes_back_as_it_was(tmp_path: Path) -> None:
    extra = {
        "epoch": 3,
        "best": float("inf"),
        "shape": (1, (2, [None, True])),
        "seen": {7: "a", "$tensor": 1},
        "loss": numpy.float64(0.1),
        "weights": torch.tensor([1.0, 2.0]),
    }
    checkpoints = skyfx.Checkpoints(small(), tmp_path)
    checkpoints.save(1, extra)
    found = checkpoints.load()
    assert found is not None
    assert torch.equal(found.extra.pop("weights"), extra.pop("weights"))
    assert found.extra == extra


def test_the_unsplit_model_loads_it_and_so_does_a_pipeline_without_weights(tmp_path: Path) -> None:
    case = models.gpt2()
    with split_evenly(case, 3) as pipeline:
        pipeline.checkpoints(tmp_path).save(7)
    other = models.gpt2()
    other.model.load_state_dict(skyfx.saved_state(tmp_path))
    for name, value in case.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], value), name
    with skyfx.empty_weights():
        empty = models.gpt2().model
    with skyfx.partition(
        empty,
        ["cpu"],
        example_inputs=case.batch,
        weights=tmp_path / "step-00000007",
        mode="inference",
        strategy="even",
    ) as pipeline:
        for name, value in pipeline.state_dict().items():
            assert torch.equal(case.model.state_dict()[name], value), name


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_torchs_own_reader_reads_it(tmp_path: Path) -> None:
    model = small()
    skyfx.Checkpoints(model, tmp_path).save(1)
    folder = tmp_path / "step-00000001"
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    state = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    reader = dcp.HuggingFaceStorageReader(str(folder))
    dcp.load(state, storage_reader=reader, no_dist=True)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    model = small()
    checkpoints = skyfx.Checkpoints(model, tmp_path / "run", keep=2)
    assert checkpoints.latest() is None
    assert checkpoints.load() is None
    for step in (1, 5, 12):
        checkpoints.save(step, {"step": step}, wait=False)
    assert checkpoints.latest() == 12
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["step-00000005", "step-00000012"]
    earlier = checkpoints.load(5)
    assert earlier is not None
    assert earlier.extra == {"step": 5}
    with pytest.raises(CheckpointError, match="checkpoint of step 12, step 6 cannot follow it"):
        checkpoints.save(6)


def test_what_was_left_unfinished_is_not_seen_and_goes(tmp_path: Path) -> None:
    model = small()
    checkpoints = skyfx.Checkpoints(model, tmp_path)
    checkpoints.save(1)
    left = tmp_path / "step-00000002.0123456789abcdef.partial"
    left.mkdir()
    (left / "model-00000.safetensors").write_bytes(b"half")
    assert checkpoints.latest() == 1
    checkpoints.save(3)
    assert not left.exists()


def test_it_is_the_state_at_the_call_that_is_saved(tmp_path: Path) -> None:
    model = small()
    checkpoints = skyfx.Checkpoints(model, tmp_path)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    checkpoints.save(1, wait=False)
    with torch.no_grad():
        model[0].weight.zero_()
    checkpoints.wait()
    found = skyfx.saved_state(tmp_path)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("call", ["save", "load", "latest", "close"])
def test_what_fails_in_the_background_comes_with_the_next_call(call: str, tmp_path: Path) -> None:
    taken = tmp_path / "run"
    taken.write_text("a file")
    checkpoints = skyfx.Checkpoints(small(), taken)
    checkpoints.save(1, wait=False)
    arguments = [2] if call == "save" else []
    with pytest.raises(OSError, match="run"):
        getattr(checkpoints, call)(*arguments)
    taken.unlink()
    if call != "close":
        checkpoints.save(2)
        assert checkpoints.latest() == 2


def test_closing_the_pipeline_waits_and_says_what_failed(tmp_path: Path) -> None:
    case = models.resnet()
    with split_evenly(case, 2) as pipeline:
        pipeline.checkpoints(tmp_path / "run").save(1, wait=False)
    assert (tmp_path / "run/step-00000001/checkpoint.json").exists()
    taken = tmp_path / "taken"
    taken.write_text("a file")
    with pytest.raises(OSError, match="taken"), split_evenly(case, 2) as pipeline:
        pipeline.checkpoints(taken).save(1, wait=False)
    with pytest.raises(ZeroDivisionError), split_evenly(case, 2) as pipeline:
        saved_then_failed(pipeline, taken)


def saved_then_failed(pipeline: skyfx.Pipeline, folder: Path) -> None:
    pipeline.checkpoints(folder).save(1, wait=False)
    raise ZeroDivisionError


def test_the_end_of_the_program_waits(tmp_path: Path) -> None:
    program = """
import sys
import torch
import skyfx
model = torch.nn.Linear(3000, 3000)
skyfx.Checkpoints(model, sys.argv[1]).save(1, wait=False)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    assert skyfx.saved_state(tmp_path)["weight"].shape == (3000, 3000)


def test_killed_at_any_moment_it_goes_on_from_the_last_whole_one(tmp_path: Path) -> None:
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    for folder, lives in ((killed, 5), (undisturbed, 0)):
        folder.mkdir()
        done = launch(1, "-m", "tests.jobs.kills_job", str(folder), "1", str(lives), "0")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stderr.splitlines()[-1]) == [[-9]] * lives + [[0]]
    losses = [record(folder / "run")["extra"]["losses"] for folder in (killed, undisturbed)]
    assert len(losses[0]) == 60
    assert losses[0] == losses[1]


def record(run: Path) -> dict[str, Any]:
    """What the latest checkpoint has besides tensors."""
    found: dict[str, Any] = json.loads((max(run.iterdir()) / "checkpoint.json").read_text())
    return found
