"""Processes that come together one after the other, and those that do not."""

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta

import pytest
import torch.distributed as dist

from tests.support.launcher import Forked, forked, free_port

Join = Callable[..., Forked]


@contextmanager
def store() -> Iterator[dist.TCPStore]:
    """The job's store where torchrun's agent keeps it: no process takes it away when it ends."""
    yield dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture
def join() -> Iterator[Join]:
    """Starts a process that joins a job; none is left in the end."""
    with ExitStack() as started:

        def joining(port: int, rank: int, size: int, coming_s: float, **known: str) -> Forked:
            known |= {"RANK": str(rank), "WORLD_SIZE": str(size), "GLOO_SOCKET_IFNAME": "lo"}
            known |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
            job = forked([agent | known], "tests/jobs/joining_job.py", str(coming_s), "2")
            return started.enter_context(job)[0]

        yield joining


def last_line(process: Forked) -> str:
    process.wait()
    return process.said.strip().splitlines()[-1]


def test_who_does_not_come_is_named(join: Join) -> None:
    with store() as kept:
        alone = join(kept.port, 0, 3, coming_s=1)
        assert last_line(alone).endswith(
            "WorkerLostError: rank 1, 2 of 3 have not come within 1 s of rank 0, or ended before "
            "all were there. Start the job again"
        )
        assert alone.wait() == 1


def test_who_ends_while_it_waits_for_others_is_named(join: Join) -> None:
    with store() as kept:
        first, second = (join(kept.port, rank, 3, coming_s=300) for rank in (0, 1))
        kept.wait([f"attempt 0/here {rank}" for rank in (0, 1)], timedelta(minutes=2))
        second.send_signal(signal.SIGKILL)
        second.wait()
        third = join(kept.port, 2, 3, coming_s=300)
        for rank, process in ((0, first), (2, third)):
            assert (
                f"WorkerLostError: rank 1 of 3 has not come within 2 s of rank {rank}, or ended"
            ) in last_line(process)


def test_a_restart_does_not_meet_those_before(join: Join) -> None:
    """They have left what they said in the store of torchrun's agent."""
    with store() as kept:
        for attempt in ("0", "1"):
            again = [
                join(kept.port, rank, 2, coming_s=300, TORCHELASTIC_RESTART_COUNT=attempt)
                for rank in (0, 1)
            ]
            for process in again:
                assert (process.wait(), process.said) == (0, "")


def test_agents_that_have_restarted_unequally_often_start_one_job(join: Join) -> None:
    """One has restarted because its worker failed, the other because that one had to."""
    port = free_port()
    own = {"TORCHELASTIC_USE_AGENT_STORE": "False"}
    both = [
        join(port, rank, 2, coming_s=300, TORCHELASTIC_RESTART_COUNT=str(rank), **own)
        for rank in (0, 1)
    ]
    for process in both:
        assert process.wait() == 0, process.said


def test_a_store_that_is_gone_is_named(join: Join) -> None:
    with store() as kept:
        port = str(kept.port)
        waiting = join(kept.port, 1, 2, coming_s=300)
        kept.wait(["attempt 0/here 1"], timedelta(minutes=2))
    del kept
    expected = f"WorkerLostError: rank 1 cannot reach the job's store at 127.0.0.1:{port}"
    assert expected in last_line(waiting)


def test_restarts_over_several_hosts_are_warned_of(join: Join) -> None:
    with store() as kept:
        known = {"GROUP_WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "3"}
        process = join(kept.port, 0, 1, coming_s=300, **known)
        assert "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on each of them" in last_line(process)
        assert process.wait() == 0
