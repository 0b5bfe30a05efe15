"""Starts jobs by forking: a process that has imported torch and skyfx, and has used neither.

It reads a job per line of its standard input, as JSON, and answers with the exit code of each
process. When its input ends, so do it and all that it has started.
"""

import json
import os
import runpy
import signal
import sys
import threading
import time
from typing import Any

import torch._dynamo
import torch.distributed
import torch.export._trace
import transformers

import skyfx
import skyfx.api
import skyfx.solver.planning.planner
from tests.support import models

PRELOADED = (skyfx.partition, models.CASES, torch._dynamo, torch.distributed, torch.export._trace)
MODELS = (
    transformers.BertForSequenceClassification,
    transformers.GPT2LMHeadModel,
    transformers.T5ForConditionalGeneration,
)
GRACE_S = 30.0
"""How long the others may take to end once one has failed."""


def main() -> None:
    assert threading.active_count() == len(os.listdir("/proc/self/task")) == 1
    for line in sys.stdin:
        job = json.loads(line)
        children = {}
        for rank in range(job["num_processes"]):
            pid = os.fork()
            if pid == 0:
                run(job, rank)
            children[pid] = rank
        codes = ended(children, job["timeout_s"])
        sys.stdout.write(json.dumps(codes) + "\n")
        sys.stdout.flush()


def run(job: dict[str, Any], rank: int) -> None:
    """Be this process of a job; never returns."""
    output = os.open(job["output"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for old, new in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(old, new)
    os.environ.clear()
    os.environ.update(job["environment"], RANK=str(rank), LOCAL_RANK=str(rank))
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(i, "r" if i == 0 else "w") for i in range(3))
    first, *others = job["arguments"]
    if first == "-m":
        sys.argv = others
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = job["arguments"]
        runpy.run_path(first, run_name="__main__")
    sys.exit()


def ended(children: dict[int, int], timeout_s: float) -> list[int]:
    """The exit codes of processes, by rank; all are killed when they take too long."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + timeout_s
    while len(codes) < len(children):
        for pid, rank in children.items():
            if rank in codes:
                continue
            found, status = os.waitpid(pid, os.WNOHANG)
            if found == pid:
                codes[rank] = os.waitstatus_to_exitcode(status)
                if codes[rank] != 0:
                    deadline = min(deadline, time.monotonic() + GRACE_S)
            elif time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[rank] for rank in sorted(codes)]


if __name__ == "__main__":
    main()
