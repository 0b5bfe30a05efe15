"""One host of `benchmarks.fidelity.limits`: plans within limits and trains under them."""

import copy
import json
import os
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

import skyfx
from benchmarks.common.cgroup_memory import OTHERS_BYTES, most_charged
from benchmarks.fidelity.models import CASES, Case
from benchmarks.fidelity.worker import ASSUMED, Setting, measured
from skyfx.devices.cluster_probe import probed
from skyfx.devices.inventory import DeviceInventory
from skyfx.runtime.pipeline import Pipeline
from skyfx.solver import Cluster, Graph, Plan, solve
from skyfx.solver.core import files
from skyfx.solver.errors import InfeasibleError, NoPlanError
from skyfx.solver.refinement.peak_excess import RESERVE

STEPS = 3


def main(folder: Path, tasks: list[str]) -> None:
    """Do each task, a model and a limit; the first host reports."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ["RANK"]) % len(cores)]})
    torch.set_num_threads(1)
    hosts = DeviceInventory.join()
    cluster = probed(hosts)
    rows: list[dict[str, Any]] = []
    for task in tasks:
        name, _, share = task.partition("@")
        torch.manual_seed(0)
        case = CASES[name]()
        setting = _setting(hosts, cluster, case, folder / name)
        told = hosts.group.broadcast_from_first(partial(_planned, setting, float(share)))
        plan = told.pop("plan")
        if plan is not None:
            told |= _run(setting, files.decode(plan.encode(), Plan, name), case, told["limit"])
        rows.append({"task": task, **told})
        if hosts.group.rank == 0:
            lines = [json.dumps(row) + "\n" for row in rows]
            (folder / "report.jsonl").write_text("".join(lines))


def _setting(hosts: DeviceInventory, cluster: Cluster, case: Case, path: Path) -> Setting:
    """The model as measured now, or by those who came this far before."""
    graph, known = path.with_suffix(".graph.json"), path.with_suffix(".cluster.json")
    if not any(hosts.group.all_gather_json(graph.exists(), bool)):
        setting = measured(hosts, cluster, case)
        if hosts.group.rank == 0:
            files.write(setting.cluster, known)
            files.write(setting.graph, graph)
        return setting
    return Setting(hosts, files.read(known, Cluster), files.read(graph, Graph), ASSUMED, ())


def _planned(setting: Setting, share: float) -> dict[str, Any]:
    """A plan within a share of what the best one without limits takes, as JSON."""
    search = partial(solve, gap=0.01, time_limit_s=15)
    free = search(setting.graph, setting.cluster, setting.assumptions).plan
    limit = share * _peak(free)
    try:
        limited = _limited(setting.cluster, limit)
        asked = replace(setting.assumptions, recompute="auto")
        plan = search(setting.graph, limited, asked).plan
    except (InfeasibleError, NoPlanError):
        return {"plan": None, "limit": limit}
    found = {
        "limit": limit,
        "stages": len(plan.stages),
        "gap": plan.gap,
        "predicted": _peak(plan) / limit,
        "slower": plan.objective_value / free.objective_value,
        "recomputed": sum(x.recompute_s for x in plan.stages)
        / sum(x.compute_s for x in plan.stages),
    }
    return {"plan": files.encode(plan).decode(), **found}


def _peak(plan: Plan) -> float:
    """The largest of the stages' peaks, with the reserve."""
    return (1 + RESERVE) * max(stage.peak_bytes for stage in plan.stages)


def _limited(cluster: Cluster, limit: float | None) -> Cluster:
    devices = tuple(replace(device, memory_bytes=limit) for device in cluster.devices)
    return replace(cluster, devices=devices)


def _run(setting: Setting, plan: Plan, case: Case, limit: float) -> dict[str, float]:
    """Train without limits, then with them."""
    took_s = {}
    for name, allowed in (("free_s", None), ("limited_s", limit)):
        model, cluster = copy.deepcopy(case.model), _limited(setting.cluster, allowed)
        with skyfx.partition(model, cluster, example_inputs=case.batch, plan=plan) as pipeline:
            _steps(pipeline, case, 1)
            for parameter in pipeline.parameters():
                parameter.grad = None
            there = sum(p.nbytes for p in pipeline.parameters() if not p.is_meta)
            if allowed is None:
                took_s[name] = _steps(pipeline, case, STEPS)
            else:
                took_s[name], most = most_charged(partial(_steps, pipeline, case, STEPS))
    charged = (there + most - OTHERS_BYTES) / limit
    told = setting.hosts.group.all_gather_json(charged, float)
    return {**took_s, "charged": max(told)}


def _steps(pipeline: Pipeline, case: Case, steps: int) -> float:
    """Train; the median seconds of a step, the first apart where there are several."""
    optimizer, took_s = torch.optim.AdamW(pipeline.parameters(), lr=1e-4), []
    for _ in range(steps):
        began = time.perf_counter()
        pipeline.train_step(case.batch, case.targets, case.loss_fn)
        took_s.append(time.perf_counter() - began)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    return median(took_s[1:] or took_s)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
