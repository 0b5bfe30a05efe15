"""A job that loses a host or a worker, or is joined by one, goes on as if nothing had been.

The hosts are of this machine, each with a name, an address, a core and an agent of its own.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch.distributed as dist

from tests.support import ROOT
from tests.support.launcher import TORCHRUN, Forked, fork

EXAMPLE = (str(ROOT / "examples/elastic.py"), "--layers=1")
RENDEZVOUS = "is_host=0,last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=5"
PATIENCE_S, NOTICED_S = 120.0, 10.0
STEPS, ALONE, MANY = 40, 60, 100_000
"""Steps of a job, of the one in one process, and more than any test waits for."""

CORES = sorted(os.sched_getaffinity(0))

STEP = re.compile(r"^step (\d+)  loss \S+  stages (\d+)$", re.M)


def may_name_hosts() -> bool:
    own_user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    tried = ["unshare", *own_user, "--uts", "hostname", "node0"]
    return bool(shutil.which("unshare")) and not subprocess.run(tried, check=False).returncode


needs_hosts = pytest.mark.skipif(
    not may_name_hosts(), reason="the kernel lets this user give no names to hosts (unshare --uts)"
)


@dataclass
class Job:
    """Agents and what they and their workers say, all in one log."""

    folder: Path
    cache: Path
    agents: dict[str, Forked] = field(default_factory=dict)
    sessions: list[Forked] = field(default_factory=list)
    """All agents, also those that were lost."""

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    @property
    def run(self) -> str:
        return str(self.folder / "run")

    def start(self, name: str, *command: str, cores: list[int], host: str | None = None) -> None:
        known = {"GLOO_SOCKET_IFNAME": "lo", "SKYFX_CACHE": str(self.cache)}
        known |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if host else {}
        log = self.folder / "log"
        self.agents[name] = fork(known, *command, output=log, host=host, cores=cores)
        self.sessions.append(self.agents[name])

    def worker_of(self, host: str) -> psutil.Process:
        found: psutil.Process = psutil.Process(self.agents[host].pid).children()[0]
        return found

    def until(self, pattern: str, since: int = 0) -> float:
        """Wait until the log has this; returns when, on the clock."""
        end = time.monotonic() + PATIENCE_S
        while not re.search(pattern, self.log[since:], re.M):
            assert time.monotonic() < end, self.log[-3000:]
            assert any(agent.is_running() for agent in self.agents.values()), self.log[-3000:]
            time.sleep(0.02)
        return time.monotonic()

    def codes(self) -> dict[str, int]:
        """How the agents end."""
        return {host: agent.wait(PATIENCE_S) for host, agent in self.agents.items()}

    def left(self) -> list[psutil.Process]:
        """The processes of the job, whoever their parents are."""
        return [process for agent in self.sessions for process in agent.session()]

    def losses(self) -> list[float]:
        """Of all steps until the latest checkpoint."""
        latest = max(Path(self.run).glob("step-" + "[0-9]" * 8))
        extra: dict[str, Any] = json.loads((latest / "checkpoint.json").read_text())["extra"]
        return list(extra["losses"])


@contextmanager
def job(folder: Path, cache: Path) -> Iterator[Job]:
    """A job of which no process is left in the end."""
    folder.mkdir()
    made = Job(folder, cache)
    try:
        yield made
    finally:
        for process in made.left():
            process.kill()
        for agent in made.sessions:
            agent.wait(0.0)


@dataclass
class DeviceInventory:
    """A job on several hosts; where they find each other is none of theirs to lose."""

    job: Job
    nodes: str
    steps: int
    meeting: Any = field(
        default_factory=lambda: dist.TCPStore(
            "127.0.0.1", 0, is_master=True, wait_for_workers=False
        )
    )

    def start(self, number: int) -> None:
        """Have an agent on a host; the first host has the first address, and so the first rank."""
        self.job.start(
            f"node{number}",
            *(*TORCHRUN, "--monitor-interval=0.5"),
            *(f"--nnodes={self.nodes}", "--nproc-per-node=1", "--max-restarts=3"),
            *("--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{self.meeting.port}"),
            *("--rdzv-id=job", f"--rdzv-conf={RENDEZVOUS}", f"--local-addr=127.0.0.{number}"),
            *(*EXAMPLE, self.job.run, f"--steps={self.steps}"),
            cores=[CORES[number % len(CORES)]],
            host=f"node{number}",
        )

    def lose(self, number: int) -> None:
        """Agent and worker at once, as if the host had no power."""
        worker = self.job.worker_of(f"node{number}")
        agent = self.job.agents.pop(f"node{number}")
        agent.send_signal(signal.SIGKILL)
        worker.kill()
        agent.wait()


def steps_of(text: str) -> list[tuple[int, int]]:
    """The number of each step that was made, and of its stages."""
    return [(int(step), int(stages)) for step, stages in STEP.findall(text)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What operators take, measured once for all jobs."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Job]:
    """The script in one process, without a launcher, on one core as everywhere here."""
    with job(tmp_path_factory.mktemp("alone") / "job", cache) as made:
        made.start("here", *EXAMPLE, made.run, f"--steps={ALONE}", cores=CORES[:1])
        yield made


def assert_equal(losses: list[float], alone: Job) -> None:
    """In every digit, as far as both have come."""
    assert alone.codes() == {"here": 0}, alone.log
    assert losses[:ALONE] == alone.losses()[: len(losses)]


def assert_goes_on(before: str, after: str, num_stages: int) -> None:
    """At most one step is made again; the plan is for the devices that are there."""
    last, _ = steps_of(before)[-1]
    again = steps_of(after)
    assert again[0][0] in (last, last + 1)
    assert {stages for _, stages in again} == {num_stages}


@needs_hosts
def test_the_hosts_that_are_left_go_on_when_one_is_lost(
    tmp_path: Path, cache: Path, alone: Job
) -> None:
    """The one that is lost has the first stage, the job's store, and puts checkpoints together."""
    with job(tmp_path / "job", cache) as lost:
        hosts = DeviceInventory(lost, "2:3", STEPS)
        for number in (1, 2, 3):
            hosts.start(number)
        lost.until("^step 5 ")
        hosts.lose(1)
        since, began = len(lost.log), time.monotonic()
        assert lost.until("has not (been heard of|answered) for", since) - began < NOTICED_S
        before = lost.log[:since]
        assert lost.codes() == {"node2": 0, "node3": 0}, lost.log
        assert not lost.left()
        assert {stages for _, stages in steps_of(before)} == {3}
        assert_goes_on(before, lost.log[since:], num_stages=2)
        assert len(lost.losses()) == STEPS
        assert_equal(lost.losses(), alone)


def test_a_worker_that_is_killed_comes_back(tmp_path: Path, cache: Path, alone: Job) -> None:
    with job(tmp_path / "job", cache) as killed:
        agent = (*TORCHRUN, "--standalone", "--nproc-per-node=2", "--max-restarts=3")
        command = (*agent, "--monitor-interval=0.5", *EXAMPLE, killed.run, f"--steps={STEPS}")
        killed.start("here", *command, cores=CORES[:2])
        killed.until("^step 5 ")
        killed.worker_of("here").kill()
        since = len(killed.log)
        before = killed.log[:since]
        assert killed.codes() == {"here": 0}, killed.log
        assert not killed.left()
        assert_goes_on(before, killed.log[since:], num_stages=2)
        assert len(killed.losses()) == STEPS
        assert_equal(killed.losses(), alone)


@needs_hosts
def test_a_host_that_comes_is_taken_in(tmp_path: Path, cache: Path, alone: Job) -> None:
    with job(tmp_path / "job", cache) as joined:
        hosts = DeviceInventory(joined, "1:2", MANY)
        hosts.start(1)
        joined.until("^step 2 ")
        since = len(joined.log)
        hosts.start(2)
        joined.until(r"^step \d+ .* stages 2$", since)
        for agent in joined.agents.values():
            agent.send_signal(signal.SIGTERM)
        joined.codes()
        assert not joined.left()
        assert_equal(joined.losses(), alone)
