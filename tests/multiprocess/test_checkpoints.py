"""Checkpoints of several processes: saved by three, gone on with by two and by one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import skyfx
from tests.jobs.checkpoint_job import END, SAVED, alone, case_of
from tests.support.launcher import launch
from tests.support.models import CASES
from tests.support.plans import SIZE
from tests.support.unsplit_reference import train_step

JOBS = ["bert", "gpt2", "unet", "resnet@apart"]
BACK = "bert@one"
DAMAGED = "bert@damaged"
ELSEWHERE = "resnet@elsewhere"
Reports = dict[str, dict[str, Any]]


def processes(folder: Path, phase: str, num_processes: int, jobs: list[str]) -> list[Reports]:
    done = launch(num_processes, "tests/jobs/checkpoint_job.py", str(folder), phase, *jobs)
    assert done.returncode == 0, done.stderr[-3000:]
    files = [folder / f"{phase}-{rank}.json" for rank in range(num_processes)]
    return [json.loads(file.read_text()) for file in files]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def begun(folder: Path) -> list[Reports]:
    return processes(folder, "begin", 3, JOBS)


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Any]:
    return alone("bert", folder / BACK, "begin", 3)


@pytest.fixture(scope="module")
def resumed(folder: Path, begun: list[Reports], one: dict[str, Any]) -> list[Reports]:
    shutil.copytree(folder / "bert", folder / DAMAGED)
    path = folder / DAMAGED / f"step-{SAVED:08d}" / "model-00002.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    shutil.copytree(folder / "0" / "resnet@apart", folder / "1" / ELSEWHERE)
    return processes(folder, "resume", 2, [*JOBS, BACK, DAMAGED, ELSEWHERE])


@pytest.mark.parametrize("job", JOBS)
def test_two_go_on_where_three_were_as_if_nothing_had_been(
    job: str, begun: list[Reports], resumed: list[Reports]
) -> None:
    undisturbed = begun[0][job]["losses"]
    assert len(undisturbed) == END
    for said in resumed:
        assert said[job]["extra"] == {"seen": 8 * SAVED}
        assert said[job]["losses"] == {
            step: loss for step, loss in undisturbed.items() if int(step) > SAVED
        }


def test_two_go_on_where_one_was(one: dict[str, Any], resumed: list[Reports]) -> None:
    for said in resumed:
        assert list(said[BACK]["losses"].values()) == list(one["losses"].values())[SAVED:]


@pytest.mark.parametrize(("job", "num_stages"), [("bert", 2), ("gpt2", 1), ("unet", 3)])
def test_one_goes_on_where_three_were(
    job: str, num_stages: int, folder: Path, begun: list[Reports]
) -> None:
    found = alone(job, folder / job, "resume", num_stages)
    assert list(found["losses"].values()) == list(begun[0][job]["losses"].values())[SAVED:]


@pytest.mark.parametrize("job", ["gpt2", "unet"])
def test_the_unsplit_model_loads_what_three_saved(
    job: str, folder: Path, begun: list[Reports]
) -> None:
    case = case_of(job, seed=3)
    case.model.load_state_dict(skyfx.saved_state(folder / job, SAVED))
    assert train_step(case, SIZE).item() == begun[0][job]["losses"][str(SAVED + 1)]


@pytest.mark.parametrize("job", ["bert", "gpt2", "unet"])
def test_each_saves_what_it_holds(job: str, folder: Path, begun: list[Reports]) -> None:
    path, names = folder / job / f"step-{SAVED:08d}", list[str]()
    for rank, said in enumerate(begun):
        with safe_open(path / f"model-{rank:05d}.safetensors", "pt") as file:
            own = list(file.keys())
        assert set(own) <= set(said[job]["held"])
        names += own
    assert len(names) == len(set(names))
    record = json.loads((path / "checkpoint.json").read_text())
    assert record["tied"] == ({"lm_head.weight": "transformer.wte.weight"} if job == "gpt2" else {})
    assert {*names, *record["tied"]} == set(CASES[job]().model.state_dict())


def test_without_a_common_folder_the_first_process_has_all(
    folder: Path, begun: list[Reports], resumed: list[Reports]
) -> None:
    job = "resnet@apart"
    assert [said[job]["latest"] for said in begun + resumed] == [SAVED] * 5
    kept = sorted(path.name for path in (folder / "0" / job).iterdir())
    assert kept == ["step-00000001", "step-00000002"]
    for rank in (1, 2):  # they have sent what they had, and keep nothing
        assert not list((folder / str(rank) / job).iterdir())


def test_without_a_common_folder_the_first_process_has_to_have_the_latest(
    folder: Path, resumed: list[Reports]
) -> None:
    """Else another host than before is the first one now, and would begin anew."""
    for said in resumed:
        assert said[ELSEWHERE]["error"].endswith(
            f"in its own folder of this name, rank 1 has a checkpoint of step {SAVED}, and the "
            "first process has none: take a folder that all hosts see, or copy that checkpoint to "
            "the first host"
        )


def test_what_fails_in_one_process_fails_in_all(resumed: list[Reports]) -> None:
    """The last stage's tensor was damaged, which one of the two has to load."""
    own, other = sorted((said[DAMAGED]["error"] for said in resumed), key=len)
    assert "model-00002.safetensors is damaged: '" in own
    assert other in [f"rank {rank}: {own}" for rank in range(2)]


def test_killed_at_any_moment_they_go_on_together(tmp_path: Path) -> None:
    losses = []
    for size, lives in ((2, 2), (1, 0)):
        run = tmp_path / str(size)
        run.mkdir()
        done = launch(1, "-m", "tests.jobs.kills_job", *map(str, (run, size, lives, 0)))
        assert done.returncode == 0, done.stderr
        codes = json.loads(done.stderr.splitlines()[-1])
        # The one that is left ends by itself, with an error.
        assert codes == [[-9] + [1] * (size - 1)] * lives + [[0] * size]
        latest = max((run / "run").iterdir()) / "checkpoint.json"
        losses.append(json.loads(latest.read_text())["extra"]["losses"])
    assert len(losses[0]) == 60
    assert losses[0] == losses[1]
