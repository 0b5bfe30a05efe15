"""A process that is killed, stopped, hangs or fails: all others say so within ten seconds."""

import json
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from skyfx.runtime.distributed.heartbeat import SILENT_S
from tests.support.launcher import Forked, forked, ranks

PROCESSES, NOTICED_S = 3, 10.0


@contextmanager
def job(*arguments: str) -> Iterator[list[Forked]]:
    """Processes that no launcher watches over; none is left in the end."""
    with forked(ranks(PROCESSES), "tests/jobs/faults_job.py", *arguments) as processes:
        yield processes


# How, in which process, whether that one can still tell, and what the others say.
FAULTS = {
    "kill": (1, False, "WorkerLostError: rank 1 (stage 1 on '{}/cpu:1') has not been heard of for"),
    "stop": (2, False, "WorkerLostError: rank 2 (stage 2 on '{}/cpu:2') has not been heard of for"),
    "leave": (1, False, "WorkerLostError: rank 1 (stage 1 on '{}/cpu:1') has left"),
    "hang": (2, False, "StageError: rank 2 (stage 2 on '{0}/cpu:2'): stage 2 on '{0}/cpu:2' hangs"),
    "fail": (2, True, "StageError: rank 2 (stage 2 on '{0}/cpu:2'): stage 2 on '{0}/cpu:2' failed"),
}


@pytest.mark.parametrize("how", FAULTS)
def test_all_others_notice_and_say_who_it_was(how: str, tmp_path: Path) -> None:
    who, tells, expected = FAULTS[how]
    with job(how, str(who), str(tmp_path)) as processes:
        others = [p for rank, p in enumerate(processes) if rank != who]
        for process in others:
            assert process.wait() == 3
        if tells:
            assert processes[who].wait(timeout_s=30) == 3
    began = float((tmp_path / "fault").read_text())
    for rank in set(range(PROCESSES)) - {who}:
        said = json.loads((tmp_path / f"{rank}.json").read_text())
        assert said["error"].startswith(expected.format(socket.gethostname())), said["error"]
        assert said["at"] - began < NOTICED_S


def test_all_can_be_stopped_together_and_go_on(tmp_path: Path) -> None:
    """In the middle of a stage's action: it has not computed meanwhile, so it does not hang."""
    with job("slow", "-1", str(tmp_path)) as processes:  # no process is at fault
        wait_for(tmp_path / "0.step")
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        time.sleep(2 * SILENT_S)
        for process in processes:
            process.send_signal(signal.SIGCONT)
        (tmp_path / "0.step").unlink()
        time.sleep(SILENT_S + 2)
        wait_for(tmp_path / "0.step")
        assert all(process.is_running() for process in processes)
        assert not list(tmp_path.glob("*.json"))


def wait_for(path: Path) -> None:
    """Until a file is there."""
    end = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_the_process_that_keeps_the_jobs_store_may_be_the_one(tmp_path: Path) -> None:
    with job("stop", "0", str(tmp_path)) as processes:
        for process in processes[1:]:
            assert process.wait() == 3
        ended = time.time()
    began = float((tmp_path / "fault").read_text())
    for rank in (1, 2):
        error = json.loads((tmp_path / f"{rank}.json").read_text())["error"]
        assert "rank 0 (stage 0 on " in error
    assert ended - began < 2 * NOTICED_S  # none of them hangs on its way out
