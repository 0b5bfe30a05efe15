"""Starts jobs by forking a process that has used torch and skyfx once, and has one thread.

It reads a request per line of its standard input, as JSON, and answers each:

    start, environment, output, host, cores   the id of the process
    wait, timeout_s                           the exit codes of these processes
    running                                   whether this process still runs

When its input ends, so do it and all that it has started.
"""

import ctypes
import inspect
import json
import os
import random
import runpy
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch._dynamo
import torch.distributed
import torch.distributed.run
import torch.export._trace
import transformers
from tqdm import tqdm

import skyfx
import skyfx.api
import skyfx.solver.planning.planner
from tests.support import models, tiers

PRELOADED = (skyfx.partition, models.CASES, torch._dynamo, torch.distributed, torch.export._trace)
MODELS = (
    transformers.BertForSequenceClassification,
    transformers.GPT2LMHeadModel,
    transformers.T5ForConditionalGeneration,
)
CLONE_NEWUTS, CLONE_NEWUSER = 0x04000000, 0x10000000
"""Of Linux: a namespace for the host's name, and one for users, in which anyone may name it."""

GRACE_S = 30.0
"""How long the others may take to end once one has failed."""


def main() -> None:
    # Torch's agents do so over and over. It looks at all modules, which takes seconds, where it has
    # not done so, and for each frame without a file: so Python's own modules are not frozen here.
    inspect.stack()
    use_once()
    assert threading.active_count() == len(os.listdir("/proc/self/task")) == 1
    codes: dict[int, int] = {}
    all_started: list[int] = []
    for line in sys.stdin:
        request = json.loads(line)
        answer: Any
        if "start" in request:
            answer = started(request)
            all_started.append(answer)
        elif "wait" in request:
            wait(request["wait"], request["timeout_s"], codes)
            answer = [codes[pid] for pid in request["wait"]]
        else:
            answer = not has_ended(request["running"], codes)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    wait(all_started, 0.0, codes)


def use_once() -> None:
    """Have loaded what a first call loads, without which each process would do so by itself.

    What is measured is remembered, so the layers have a width that no test has.
    """
    tiers.measure_briefly()
    tqdm.monitor_interval = 0  # its thread would stay
    with torch.random.fork_rng():
        model = torch.nn.Sequential(*(torch.nn.Linear(13, 13) for _ in range(3)))
        x, devices = torch.ones(4, 13), [skyfx.Device("cpu"), skyfx.Device("cpu")]
        with skyfx.partition(model, devices, example_inputs=x, num_microbatches=2) as pipeline:
            pipeline.train_step(x, x, torch.nn.functional.mse_loss)
    deadline = time.monotonic() + GRACE_S
    while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < deadline:
        time.sleep(0.01)  # a thread that was joined is gone soon after


def started(request: dict[str, Any]) -> int:
    """Fork a process; returns its id."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        random.seed()  # torch's agents wait at random, so that they do not always meet
        if request["host"]:
            be_on_host(request["host"])
        if request["cores"]:
            os.sched_setaffinity(0, request["cores"])
        run(request["start"], request["environment"], request["output"])
    return pid


def be_on_host(name: str) -> None:
    """Give this process a host's name of its own, as `unshare --uts` does."""
    user, group = os.geteuid(), os.getegid()
    own_user = 0 if user == 0 else CLONE_NEWUSER
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUTS | own_user) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    if own_user:
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    socket.sethostname(name)


def run(arguments: list[str], environment: dict[str, str], printed: str) -> None:
    """Be this process of a job; never returns."""
    output = os.open(printed, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for old, new in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(old, new)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(i, "r" if i == 0 else "w") for i in range(3))
    first, *others = arguments
    if first == "-m":
        sys.argv = others
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(first, run_name="__main__")
    sys.exit()


def has_ended(pid: int, codes: dict[int, int]) -> bool:
    """Whether a process has ended; its exit code is then noted."""
    if pid not in codes:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found == pid:
            codes[pid] = os.waitstatus_to_exitcode(status)
    return pid in codes


def wait(pids: list[int], timeout_s: float, codes: dict[int, int]) -> None:
    """Until these processes have ended; those that take too long are killed."""
    deadline = time.monotonic() + timeout_s
    while left := [pid for pid in pids if not has_ended(pid, codes)]:
        if any(codes.get(pid) for pid in pids):
            deadline = min(deadline, time.monotonic() + GRACE_S)
        if time.monotonic() >= deadline:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


if __name__ == "__main__":
    main()
