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
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.support import ROOT

__all__: list[str] = ["Forked", "forked", "free_port", "launch", "ranks", "torchrun"]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def torchrun(
    num_processes: int, *arguments: str, timeout_s: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run a program as each of so many processes, by torch's launcher."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*command, f"--nproc-per-node={num_processes}", *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def launch(
    num_processes: int, *arguments: str, timeout_s: float = 240
) -> subprocess.CompletedProcess[str]:
    """The same without torch's launcher: its processes need not import torch anew.

    Returns:
        What all of them print to either stream is `stderr`; the code is the first that is not 0.
    """
    with forked(ranks(num_processes), *arguments) as processes:
        codes = _codes(processes, timeout_s)
        code = next((code for code in codes if code != 0), 0)
        return subprocess.CompletedProcess(arguments, code, "", processes[0].said)


def ranks(num_processes: int) -> list[dict[str, str]]:
    """What a launcher tells each process of a job on this host."""
    size = str(num_processes)
    of_job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": size}
    of_job |= {"LOCAL_WORLD_SIZE": size, "GLOO_SOCKET_IFNAME": "lo"}
    return [of_job | {"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(num_processes)]


@dataclass(frozen=True)
class Forked:
    """A process that was forked; `output` is a file with what it and those beside it print."""

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


@contextmanager
def forked(environments: Sequence[dict[str, str]], *arguments: str) -> Iterator[list[Forked]]:
    """Run a program as several processes, each with an environment of its own.

    None of them is left in the end.

    Args:
        environments: what each has beside the environment of this process.
        arguments: a file or `-m` and a module, and the arguments of that program.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "output")
        output.touch()
        known = [environment() | own for own in environments]
        pids = _ask(start=arguments, environments=known, output=str(output))
        processes = [Forked(pid, output) for pid in pids]
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
        [sys.executable, "-m", "tests.support.fork_server"],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(started.communicate)  # the end of its input ends it
    return started
