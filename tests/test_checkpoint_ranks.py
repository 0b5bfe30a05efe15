"""Checkpoints of several processes: saved by three, gone on with by two and by one."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint_script import END, SAVED, alone
from tests.test_ranks import launch

JOBS = ["bert", "gpt2", "unet", "resnet@apart"]
BACK = "bert@one"
Reports = dict[str, dict[str, Any]]


def processes(folder: Path, phase: str, num_processes: int, jobs: list[str]) -> list[Reports]:
    done = launch(num_processes, "tests/checkpoint_script.py", str(folder), phase, *jobs)
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
    return processes(folder, "resume", 2, [*JOBS, BACK])


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
