"""One host of a cluster: measures, plans and runs with the others; the first writes what came out.

What prepares a run (imports, captures, prices of single operators, from a cache) has whole cores;
what is measured (links, calibration segments, steps) has the host's share of one.
"""

import copy
import json
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

import skyfx
from benchmarks.common.emulated_hosts import enter_quota, leave_quota
from benchmarks.fidelity.heap_usage import measured_peak
from benchmarks.fidelity.models import CASES, Case
from skyfx.devices.cluster_probe import probed
from skyfx.devices.inventory import DeviceInventory
from skyfx.measurement.distributed import measure_distributed
from skyfx.measurement.measure import price
from skyfx.runtime.batches.microbatch import Batch
from skyfx.solver import Assumptions, Cluster, Graph, Plan, evaluate, solve
from skyfx.solver.core import files
from skyfx.solver.costs.cost_model import in_flight_at
from skyfx.solver.costs.peak_memory import peak_bytes
from skyfx.solver.costs.simulator import simulate
from skyfx.tracing.capture import Capture, capture

MICROBATCHES, WARM, STEPS = 6, 1, 2
PACE_S = 0.5
ASSUMED = Assumptions(microbatches=MICROBATCHES, overlap="full", optimizer_state_ratio=2.0)


@dataclass(frozen=True, slots=True)
class Setting:
    """A model on a cluster, measured."""

    hosts: DeviceInventory
    cluster: Cluster
    graph: Graph
    assumptions: Assumptions
    pace: tuple[float, ...]


def main(names: list[str], report: str) -> None:
    """Measure and run these models; the first process appends to the report."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ["RANK"]) % len(cores)]})
    torch.set_num_threads(1)
    hosts = DeviceInventory.join()
    enter_quota()
    cluster = probed(hosts)
    leave_quota()
    for name in names:
        torch.manual_seed(0)
        case = CASES[name]()
        setting = measured(hosts, cluster, case)
        for label, plan in plans(setting):
            found = run(setting, plan, case)
            if hosts.group.rank == 0:
                _keep(setting, plan, Path(report).with_name(f"{name}-{label}"))
                with Path(report).open("a") as lines:
                    lines.write(json.dumps({"model": name, "plan": label, **found}) + "\n")


def measured(hosts: DeviceInventory, cluster: Cluster, case: Case) -> Setting:
    """Measure the model on all hosts."""
    captured = captured_first(copy.deepcopy(case.model), case)
    graph, known = measured_in_quotas(hosts, cluster, captured)
    enter_quota()
    noted = hosts.group.all_gather_json(pace(), float)
    leave_quota()
    return Setting(hosts, known, graph, ASSUMED, tuple(noted))


def measured_in_quotas(
    hosts: DeviceInventory, cluster: Cluster, captured: Capture
) -> tuple[Graph, Cluster]:
    """The graph, and the cluster with this model's slowdowns; single operators on whole cores."""
    if hosts.group.rank == 0:  # into the cache
        price(captured, next(iter(hosts.local.values())), lambda _: lambda *_: None)
    hosts.group.sum(torch.zeros(1))
    enter_quota()
    found = measure_distributed(captured, hosts, cluster)
    leave_quota()
    return found


def pace() -> float:
    """Seconds of a fixed piece of work: how fast this host is just now, whatever else goes on."""
    x, y = torch.ones(256, 256), torch.ones(1_000_000)
    turns, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < PACE_S:
        for _ in range(4):
            torch.mm(x, x)
        torch.add(y, 1.0)
        turns += 1
    return took / turns


def _keep(setting: Setting, plan: Plan, path: Path) -> None:
    """The files that a prediction is made from."""
    for kind, document in (("graph", setting.graph), ("cluster", setting.cluster), ("plan", plan)):
        files.write(document, path.with_suffix(f".{kind}.json"))


def captured_first(model: torch.nn.Module, case: Case) -> Capture:
    """The model captured for its micro-batches."""
    whole = Batch.of(case.batch)
    return capture(model, whole.split(whole.batch_size // MICROBATCHES)[0])


def plans(setting: Setting) -> Iterator[tuple[str, Plan]]:
    """Good plans and bad ones, the same in all processes."""
    for label in ("optimal", "dynamic", "shuffled", "lopsided"):

        def make(label: str = label) -> str:
            return files.encode(_plan(setting, label)).decode()

        raw = setting.hosts.group.broadcast_from_first(make)
        yield label, files.decode(raw.encode(), Plan, label)


def _plan(setting: Setting, label: str) -> Plan:
    cluster, graph, assumptions = setting.cluster, setting.graph, setting.assumptions
    rng = random.Random(label + graph.name)
    names = [device.name for device in cluster.devices]
    if label in ("optimal", "dynamic"):
        return solve(graph, cluster, assumptions, strategy=label, gap=0.01, time_limit_s=15).plan
    # What somebody would do who does not measure: equal parts of the operators, in any order.
    order = rng.sample(names, len(names))
    devices = {device.name: replace(device, slowdown=1.0) for device in cluster.devices}
    if label == "lopsided":
        devices = {n: replace(d, slowdown=rng.choice((1.0, 3.0))) for n, d in devices.items()}
    blind = replace(cluster, devices=tuple(devices[name] for name in order), links=())
    made = solve(graph, blind, assumptions, strategy="dynamic" if label == "lopsided" else "even")
    return made.plan


def run(setting: Setting, plan: Plan, case: Case) -> dict[str, Any]:
    """Predict the plan, run it, and say both."""
    placement = [(stage.device, stage.nodes) for stage in plan.stages]
    cost = evaluate(setting.graph, setting.cluster, placement, setting.assumptions)
    timeline = simulate(setting.graph, setting.cluster, placement, setting.assumptions)
    model = copy.deepcopy(case.model)
    with skyfx.partition(model, setting.cluster, example_inputs=case.batch, plan=plan) as pipeline:
        optimizer = torch.optim.AdamW(pipeline.parameters(), lr=1e-4)

        def step() -> None:
            pipeline.train_step(case.batch, case.targets, case.loss_fn)

        enter_quota()
        paces = [setting.hosts.group.all_gather_json(pace(), float)]
        steps, busy = [], []
        for i in range(WARM + STEPS):
            setting.hosts.group.sum(torch.zeros(1))
            step()
            assert pipeline.measured is not None
            if i >= WARM:
                steps.append(pipeline.measured.step_s)
                busy.append(pipeline.measured.stage_s)
            optimizer.step()
            optimizer.zero_grad()
        paces.append(setting.hosts.group.all_gather_json(pace(), float))
        leave_quota()
        memory = measured_peak(step, [*optimizer.state.values()], model)
    drift = {
        device.name: sum(found) / len(found) / before
        for device, before, *found in zip(setting.hosts.devices, setting.pace, *paces, strict=True)
    }
    told = setting.hosts.group.all_gather(json.dumps(memory).encode())
    ranks = [setting.hosts.owner_rank[stage.device] for stage in plan.stages]
    peaks: list[float] = [json.loads(told[rank]) for rank in ranks]
    peaks[0] += _kept_inputs_bytes(setting, len(ranks))
    return {
        "stages": len(plan.stages),
        "compute_s": cost.compute_s,
        "busy_s": [median(column) for column in zip(*busy, strict=True)],
        "step_s": timeline.step_s,
        "formula_s": cost.step_s,
        "measured_s": median(steps),
        "drift": [drift[stage.device] for stage in plan.stages],
        "drifted_s": simulate(
            setting.graph, _drifted(setting.cluster, drift), placement, setting.assumptions
        ).step_s,
        "spread": (max(steps) - min(steps)) / median(steps),
        "memory": peak_bytes(setting.graph, setting.cluster, placement, setting.assumptions),
        "plan_memory": cost.memory_bytes,
        "peak": peaks,
        "fit": [msg.forward.error if msg.forward else None for msg in setting.graph.measured or ()],
        "slowdowns": [round(device.slowdown, 3) for device in setting.cluster.devices],
    }


def _kept_inputs_bytes(setting: Setting, num_stages: int) -> float:
    """What the first stage keeps of the batch, which was there before the step."""
    live = in_flight_at(setting.assumptions, num_stages)
    return live * sum(node.output_bytes for node in setting.graph.nodes if node.is_input)


def _drifted(cluster: Cluster, drift: Mapping[str, float]) -> Cluster:
    """The cluster with its hosts as fast as they were found beside the steps."""
    devices = (replace(d, slowdown=d.slowdown * drift[d.name]) for d in cluster.devices)
    return replace(cluster, devices=tuple(devices))


if __name__ == "__main__":
    main(sys.argv[1].split(","), sys.argv[2])
