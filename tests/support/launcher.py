"""Jobs of several processes: as torchrun starts them, or forked from one that has torch already."""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from tests.support import ROOT

__all__ = ["TORCHRUN", "Forked", "fork", "forked", "free_port", "launch", "ranks", "torchrun"]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


TORCHRUN = ("-m", "torch.distributed.run", "--start-method=fork", "--run-path")
"""Torch's launcher, forked; so are the processes that it starts, which run a file."""


def torchrun(
    num_processes: int, program: str, *arguments: str, timeout_s: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run a file as each of so many processes, by torch's launcher; else as `launch`."""
    of_torch = (*TORCHRUN, "--standalone", f"--nproc-per-node={num_processes}")
    with forked([{}], *of_torch, str(ROOT / program), *arguments) as (agent,):
        code = agent.wait(timeout_s)
        return subprocess.CompletedProcess(arguments, code, "", agent.said)


def launch(
    num_processes: int, *arguments: str, timeout_s: float = 240
) -> subprocess.CompletedProcess[str]:
    """The same without torch's launcher; one process is told nothing, as a script that is run.

    Returns:
        What all of them print to either stream is `stderr`; the code is the first that is not 0.
    """
    with forked(ranks(num_processes), *arguments) as processes:
        codes = _codes(processes, timeout_s)
        code = next((code for code in codes if code != 0), 0)
        return subprocess.CompletedProcess(arguments, code, "", processes[0].said)


def ranks(num_processes: int) -> list[dict[str, str]]:
    """What a launcher tells each process of a job on this host."""
    if num_processes == 1:
        return [{}]
    size = str(num_processes)
    of_job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": size}
    of_job |= {"LOCAL_WORLD_SIZE": size, "GLOO_SOCKET_IFNAME": "lo"}
    return [of_job | {"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(num_processes)]


@dataclass(frozen=True)
class Forked:
    """A process that was forked, the first of a session of its own.

    `output` is a file with what it and those beside it print.
    """

    pid: int
    output: Path

    @property
    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def wait(self, timeout_s: float = 120) -> int:
        """Its exit code; it is killed when it takes too long."""
        return _codes([self], timeout_s)[0]

    def is_running(self) -> bool:
        return bool(_ask(running=self.pid))

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def session(self) -> list[psutil.Process]:
        """This process and those that it has started, whoever their parents are."""
        found = []
        for process in psutil.process_iter():
            with suppress(ProcessLookupError):
                if os.getsid(process.pid) == self.pid:
                    found.append(process)
        return found


def fork(
    environment_of: dict[str, str],
    *arguments: str,
    output: Path,
    host: str | None = None,
    cores: Sequence[int] | None = None,
) -> Forked:
    """Run a program as one process, which whoever calls this ends.

    Args:
        environment_of: what it has beside the environment of this process.
        arguments: a file or `-m` and a module, and the arguments of that program.
        output: the file that it prints to, behind what is there.
        host: the name of its host, if it is to have one of its own: see `may_name_hosts`.
        cores: those that it may use; by default all of this process.
    """
    output.touch()
    known = {"environment": environment() | environment_of, "output": str(output)}
    pid: int = _ask(start=arguments, host=host, cores=cores, **known)
    return Forked(pid, output)


@contextmanager
def forked(environments: Sequence[dict[str, str]], *arguments: str) -> Iterator[list[Forked]]:
    """Run a program as several processes, each with an environment of its own: see `fork`.

    None of them is left in the end.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "output")
        processes = [fork(own, *arguments, output=output) for own in environments]
        try:
            yield processes
        finally:
            _codes(processes, 0.0)


def _codes(processes: Sequence[Forked], timeout_s: float) -> list[int]:
    codes: list[int] = _ask(wait=[x.pid for x in processes], timeout_s=timeout_s)
    return codes


def _ask(**request: Any) -> Any:
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


@cache
def _server() -> subprocess.Popen[str]:
    """The process that the jobs of this worker are forked from."""
    started = subprocess.Popen(
        [sys.executable, "-X", "frozen_modules=off", "-m", "tests.support.fork_server"],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(started.communicate)  # the end of its input ends it
    return started
