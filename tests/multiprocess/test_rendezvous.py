"""Processes that come together one after the other, and those that do not."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from tests.support import ROOT

JOIN = """
import sys
from skyfx.runtime.distributed import rendezvous
from skyfx.runtime.distributed.process_group import ProcessGroup
rendezvous.COMING_S, rendezvous.MEETING_S = map(float, sys.argv[1:])
ProcessGroup.join()
"""


@contextmanager
def store() -> Iterator[dist.TCPStore]:
    """The job's store where torchrun's agent keeps it: no process takes it away when it ends."""
    yield dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def join(port: int, rank: int, size: int, coming_s: float, **known: str) -> subprocess.Popen[str]:
    known |= {"RANK": str(rank), "WORLD_SIZE": str(size), "PYTHONPATH": str(ROOT)}
    known |= {"GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    known = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"} | known
    return subprocess.Popen(
        [sys.executable, "-c", JOIN, str(coming_s), "2"],
        env=os.environ | known,
        stderr=subprocess.PIPE,
        text=True,
    )


def last_line(process: subprocess.Popen[str]) -> str:
    _, said = process.communicate(timeout=120)
    return said.strip().splitlines()[-1]


def test_who_does_not_come_is_named() -> None:
    with store() as kept:
        alone = join(kept.port, 0, 3, coming_s=1)
        assert last_line(alone).endswith(
            "WorkerLostError: rank 1, 2 of 3 have not come within 1 s of rank 0, or ended before "
            "all were there. Start the job again"
        )
    assert alone.returncode == 1


def test_who_ends_while_it_waits_for_others_is_named() -> None:
    with store() as kept:
        first, second = (join(kept.port, rank, 3, coming_s=300) for rank in (0, 1))
        kept.wait([f"attempt 0/here {rank}" for rank in (0, 1)], timedelta(minutes=2))
        second.kill()
        second.communicate()
        third = join(kept.port, 2, 3, coming_s=300)
        for rank, process in ((0, first), (2, third)):
            assert (
                f"WorkerLostError: rank 1 of 3 has not come within 2 s of rank {rank}, or ended"
            ) in last_line(process)


def test_a_restart_does_not_meet_those_before() -> None:
    """They have left what they said in the store of torchrun's agent."""
    with store() as kept:
        for attempt in ("0", "1"):
            again = [
                join(kept.port, rank, 2, coming_s=300, TORCHELASTIC_RESTART_COUNT=attempt)
                for rank in (0, 1)
            ]
            for process in again:
                assert process.communicate(timeout=120) == (None, "")
                assert process.returncode == 0


def test_agents_that_have_restarted_unequally_often_start_one_job() -> None:
    """One has restarted because its worker failed, the other because that one had to."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    own = {"TORCHELASTIC_USE_AGENT_STORE": "False"}
    both = [
        join(port, rank, 2, coming_s=300, TORCHELASTIC_RESTART_COUNT=str(rank), **own)
        for rank in (0, 1)
    ]
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said


def test_a_store_that_is_gone_is_named() -> None:
    with store() as kept:
        port = str(kept.port)
        waiting = join(kept.port, 1, 2, coming_s=300)
        kept.wait(["attempt 0/here 1"], timedelta(minutes=2))
    del kept
    expected = f"WorkerLostError: rank 1 cannot reach the job's store at 127.0.0.1:{port}"
    assert expected in last_line(waiting)


def test_restarts_over_several_hosts_are_warned_of() -> None:
    with store() as kept:
        known = {"GROUP_WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "3"}
        process = join(kept.port, 0, 1, coming_s=300, **known)
        assert "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on each of them" in last_line(process)
    assert process.returncode == 0
