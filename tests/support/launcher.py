"""Jobs of several processes: as torchrun starts them, or forked from one that has torch already."""

import atexit
import json
import os
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from tests.support import ROOT

__all__: list[str] = ["launch", "torchrun"]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


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
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    of_job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(num_processes)}
    of_job |= {"LOCAL_WORLD_SIZE": str(num_processes), "GLOO_SOCKET_IFNAME": "lo"}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "output")
        output.touch()
        job = {
            "num_processes": num_processes,
            "arguments": arguments,
            "environment": environment() | of_job,
            "output": str(output),
            "timeout_s": timeout_s,
        }
        server = _server()
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        codes = json.loads(server.stdout.readline())
        code = next((code for code in codes if code != 0), 0)
        return subprocess.CompletedProcess(arguments, code, "", output.read_text(errors="replace"))


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
    assert started.stdin is not None
    atexit.register(started.stdin.close)
    return started
