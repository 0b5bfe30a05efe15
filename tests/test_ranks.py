"""Pipelines over several processes, as a launcher starts them, equal to the unsplit model."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.models import CASES

ROOT = Path(__file__).parent.parent


def launch(num_processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*command, f"--nproc-per-node={num_processes}", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def reports(name: str, folder: Path, num_processes: int) -> list[dict[str, Any]]:
    done = launch(num_processes, "tests/ranks_script.py", name, str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(num_processes)]


@pytest.mark.parametrize("name", CASES)
def test_each_rank_has_its_stage_and_all_see_the_unsplit_models_losses(
    name: str, tmp_path: Path
) -> None:
    found = reports(name, tmp_path, 2)
    for said in found:
        assert said["equal"] == [True] * 4  # three losses, and the tensors held in the end
        assert said["inferred"]
    assert all(0 < said["held"] < said["all"] for said in found)
