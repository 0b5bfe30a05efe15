"""Plans within memory limits, run under them: `python -m benchmarks.fidelity.limits`, minutes.

Each model is planned for four hosts of which none may hold what the best plan without limits takes.
Each worker then trains in a control group that the kernel kills when it takes more than its device
may. Needs root, as `benchmarks.emulated` does.
"""

import copy
import ctypes
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

import skyfx
from benchmarks.emulated import Host, Running, emulated
from benchmarks.fidelity.models import CASES, Case
from benchmarks.fidelity.worker import Setting, measured
from skyfx.hosts import Hosts
from skyfx.probe import probed
from skyfx.solver import Plan, files, solve
from skyfx.solver.errors import InfeasibleError, NoPlanError
from skyfx.solver.peak import peak_bytes
from skyfx.solver.within import solve_within

MEMORY = Path("/sys/fs/cgroup/memory")
HOSTS = [Host(name, 1.0, 1000) for name in "abcd"]
SHARES, STEPS = (0.9, 0.75), 3
OTHERS_BYTES = 8 * 2**20
"""What the interpreter, gloo and threads' stacks may take in a step beside tensors."""


def main() -> None:
    """Run all models at all limits, and print a line for each."""
    with tempfile.TemporaryDirectory() as folder, emulated(HOSTS) as running, _groups(running):
        command = [sys.executable, "-m", "benchmarks.fidelity.limits", folder]
        workers = running.start(command, {"SKYFX_CACHE": f"{folder}/cache"})
        try:
            ended = [worker.wait() for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        rows = Path(folder) / "rows.txt"
        print(rows.read_text() if rows.exists() else "")
        if any(ended):
            raise SystemExit(f"workers ended with {ended}: the last plan took more than it may")


@contextmanager
def _groups(running: Running) -> Iterator[None]:
    """A control group for the memory of each host."""
    folders = [MEMORY / f"{running.prefix}{i}" for i in range(len(running.hosts))]
    for folder in folders:
        folder.mkdir()
    try:
        yield
    finally:
        for folder in folders:
            folder.rmdir()


def work(folder: str) -> None:
    """One host: measures and trains with the others; the first one writes."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ["RANK"]) % len(cores)]})
    torch.set_num_threads(1)
    hosts = Hosts.joined()
    cluster = probed(hosts)
    for name, make in CASES.items():
        torch.manual_seed(0)
        case = make()
        setting = measured(hosts, cluster, case)
        for share in SHARES:
            told = json.loads(hosts.group.first(partial(_planned, setting, share)))
            line = f"{name}, limit {share} of the largest peak, {told['limit'] / 1e6:.0f} MB: "
            if told["plan"] is None:
                line += told["why"]
            else:
                plan = files.decode(told["plan"].encode(), Plan, name)
                peaks = hosts.group.told(_peak_within(setting, plan, case, told["limit"]), float)
                line += f"{len(plan.stages)} stages, peaks " + ", ".join(
                    f"{p / 1e6:.0f}" for p in peaks
                )
            if hosts.group.rank == 0:
                print(line, flush=True)
                with (Path(folder) / "rows.txt").open("a") as lines:
                    lines.write(line + "\n")


def _planned(setting: Setting, share: float) -> bytes:
    """A plan within a share of what the best one without limits takes, as JSON."""
    search = partial(solve, gap=0.01, time_limit_s=15)
    free = search(setting.graph, setting.cluster, setting.assumptions).plan
    placement = [(stage.device, stage.nodes) for stage in free.stages]
    limit = share * max(peak_bytes(setting.graph, setting.cluster, placement, setting.assumptions))
    devices = tuple(replace(device, memory_bytes=limit) for device in setting.cluster.devices)
    limited = replace(setting.cluster, devices=devices)
    try:
        plan = solve_within(setting.graph, limited, setting.assumptions, search).plan
    except (InfeasibleError, NoPlanError) as error:
        return json.dumps({"plan": None, "limit": limit, "why": str(error)}).encode()
    return json.dumps({"plan": files.encode(plan).decode(), "limit": limit}).encode()


def _peak_within(setting: Setting, plan: Plan, case: Case, limit: float) -> float:
    """Train by the plan in a control group with the device's limit; the bytes it has charged."""
    group = MEMORY / Path(os.environ["QUOTA"]).name
    model = copy.deepcopy(case.model)
    with skyfx.partition(model, setting.cluster, example_inputs=case.batch, plan=plan) as pipeline:
        there = sum(p.nbytes for p in pipeline.parameters())
        ctypes.CDLL(None).malloc_trim(0)  # what is free would be used without being charged
        _set(group, "memory.limit_in_bytes", round(limit - there + OTHERS_BYTES))
        _set(group, "cgroup.procs", os.getpid())
        try:
            optimizer = torch.optim.AdamW(pipeline.parameters(), lr=1e-4)
            for _ in range(STEPS):
                pipeline.train_step(case.batch, case.targets, case.loss_fn)
                optimizer.step()
                optimizer.zero_grad(set_to_none=False)
            return there + float((group / "memory.max_usage_in_bytes").read_text())
        finally:
            _set(MEMORY, "cgroup.procs", os.getpid())
            _set(group, "memory.force_empty", 0)
            _set(group, "memory.max_usage_in_bytes", 0)


def _set(group: Path, what: str, value: int) -> None:
    (group / what).write_text(str(value))


if __name__ == "__main__":
    work(sys.argv[1]) if len(sys.argv) > 1 else main()
