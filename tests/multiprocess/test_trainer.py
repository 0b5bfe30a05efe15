"""Trainings over several processes: one order of data, stopped together, one log for each."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT
from tests.support.launcher import launch

SCRIPT = ("-m", "tests.jobs.trainer_job")


def reports(folder: Path, stopping: int, num_processes: int) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    done = launch(num_processes, *SCRIPT, str(folder), str(stopping))
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(num_processes)]


def test_one_process_is_asked_to_stop_all_do_and_another_number_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKYFX_CACHE", str(tmp_path / "cache"))
    first, second = reports(tmp_path / "undisturbed", -1, 2)
    assert first["losses"] == second["losses"]
    assert [each[:2] for each in first["losses"]] == [[e, b] for e in (0, 1) for b in range(1, 6)]
    assert first["stages"] == 2

    stopped = reports(tmp_path / "stopped", 1, 2)
    assert [said["losses"] for said in stopped] == [first["losses"][:3]] * 2
    (tmp_path / "stopped" / "stop-1").unlink()
    (alone,) = reports(tmp_path / "stopped", -1, 1)
    assert alone["losses"] == first["losses"][3:]

    for said in (first, second, alone):  # one module's state, got and updated
        assert said["head"] == {"weight": [3, 16], "bias": [3]}
        assert said["doubled"]
    for rank in (0, 1):
        log = (tmp_path / "undisturbed" / "logs" / f"rank-{rank}.log").read_text()
        assert f" rank {rank} " in log
        assert "epoch 0, batch 1, step 1: loss " in log
        assert "bottleneck" in log  # the plan


def test_a_process_that_is_alone_logs_as_the_first_one_and_each_line_once(tmp_path: Path) -> None:
    program = (
        "import logging, sys, skyfx\n"
        "path = skyfx.log_to(sys.argv[1])\n"
        "assert skyfx.log_to(sys.argv[1]) == path\n"
        "logging.getLogger('skyfx.any').info('said once')\n"
        "logging.getLogger('skyfx.any').debug('too fine')\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, check=True)
    (line,) = (tmp_path / "rank-0.log").read_text().splitlines()
    assert line.endswith("INFO skyfx.any: said once")
