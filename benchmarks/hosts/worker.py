"""One host of the comparison: measures, plans and trains with the others, cluster after cluster.

What prepares a run (imports, captures, prices of single operators, plans) has whole cores; what is
measured (links, calibration segments, steps) has the host's share of one.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.emulated_hosts import become, enter_quota, leave_quota
from benchmarks.fidelity.worker import measured_in_quotas
from benchmarks.hosts import clusters
from benchmarks.hosts.block_times import MICROBATCHES, States, states_of, weighed
from benchmarks.hosts.competitors import SCHEDULES, Alone, Engine, Planned
from benchmarks.hosts.interleaved_runs import Entry, Record, run
from benchmarks.hosts.manual_splits import Weights, rules
from benchmarks.hosts.models import SUBJECTS, Subject
from skyfx.devices.cluster_probe import probed
from skyfx.devices.inventory import DeviceInventory
from skyfx.runtime.batches.microbatch import Batch
from skyfx.solver import Assumptions, Cluster, Graph, Plan, solve
from skyfx.solver.core import files
from skyfx.solver.core.plan import Schedule
from skyfx.solver.costs.cost_model import evaluate
from skyfx.solver.costs.peak_memory import peak_bytes
from skyfx.solver.costs.recomputation import with_recomputation
from skyfx.solver.costs.simulator import simulate
from skyfx.tracing.capture import Capture, capture

__all__: list[str] = ["Phases", "cores"]

SCHEDULE: Schedule = "generated"
"""The one that skyfx runs its plan by."""

GAP, PLANNING_S = 0.01, 60.0

ASSUMED = Assumptions(
    objective="step",
    microbatches=MICROBATCHES,
    overlap="full",
    optimizer_state_ratio=0.0,
)
"""Of the even split, which runs by 1F1B as a plan made by hand would."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model with what does not depend on the cluster."""

    subject: Subject
    captured: Capture
    states: States
    weights: Weights


@dataclass(frozen=True, slots=True)
class Plans:
    """Three plans of a cluster, and skyfx's own simulated."""

    skyfx: Plan
    even: Plan
    original: Plan
    simulated_s: float


@dataclass(slots=True)
class Phases:
    """How long each part of a cluster's run takes; told as it ends."""

    cluster: str
    tells: bool
    seconds: dict[str, float] = field(default_factory=dict)
    began_s: float = field(default_factory=time.monotonic)

    def ended(self, phase: str) -> None:
        """What went on until now was this."""
        now_s = time.monotonic()
        self.seconds[phase], self.began_s = now_s - self.began_s, now_s
        if self.tells:
            print(f"{self.cluster}: {phase} {self.seconds[phase]:.0f} s", file=sys.stderr)


def main(names: Sequence[str], report: Path) -> None:
    """Run these clusters; the first process appends a line for each to the report."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    hosts = DeviceInventory.join()
    chosen = {one.name: one for one in clusters.clusters()}
    prepared: dict[str, Prepared] = {}
    for cluster in (chosen[name] for name in names):
        began = time.monotonic()
        if cluster.model not in prepared:
            prepared[cluster.model] = _prepared(cluster.model, hosts)
            gc.freeze()  # see `Heartbeat.start`: these hosts have as little as 4 % of a core
        row = _run(cluster, prepared[cluster.model], hosts)
        if hosts.group.rank == 0:
            with report.open("a") as lines:
                lines.write(json.dumps({**row, "wall_s": time.monotonic() - began}) + "\n")


def _prepared(name: str, hosts: DeviceInventory) -> Prepared:
    torch.manual_seed(0)
    subject = SUBJECTS[name]()
    states = states_of(subject)
    part = Batch.of(subject.batch).split(len(subject.batch) // MICROBATCHES)[0]
    found = hosts.group.broadcast_from_first(lambda: asdict(weighed(subject, states)))
    return Prepared(subject, capture(subject.model, part), states, Weights(**found))


def _run(cluster: clusters.Cluster, prepared: Prepared, hosts: DeviceInventory) -> dict[str, Any]:
    """Measure the cluster, plan for it, let all rivals train; what came out."""
    rank = hosts.group.rank
    os.sched_setaffinity(0, {cores([host.share for host in cluster.hosts])[rank]})
    become(cluster.hosts[rank])
    hosts.group.sum(torch.zeros(1))
    phases = Phases(cluster.name, tells=rank == 0)
    enter_quota()
    known = probed(hosts)
    leave_quota()
    phases.ended("probing")
    graph, known = measured_in_quotas(hosts, known, prepared.captured)
    phases.ended("measuring")
    free = _with_memory(known, None)
    nodes = [node.id for node in graph.nodes]
    whole = peak_bytes(graph, free, [(free.devices[0].name, nodes)], ASSUMED)
    fastest = min(free.devices, key=lambda device: device.slowdown)
    limits = cluster.limits and [share * whole[0] for share in cluster.limits]
    limited = _with_memory(free, limits)
    plans = _plans(hosts, graph, free, limited)
    phases.ended("planning")
    entries, cuts = _entries(cluster, prepared, hosts, (free, limited), plans)
    phases.ended("splitting")
    try:
        records = run(entries, hosts.group, limited=limits is not None)
    finally:
        for entry in entries.values():
            entry.rival.close()
    phases.ended("training")
    return {
        "cluster": cluster.name,
        "model": cluster.model,
        "spread": cluster.spread,
        "shares": [host.share for host in cluster.hosts],
        "mbit": [host.mbit for host in cluster.hosts],
        "limits": limits,
        "one_device_s": evaluate(graph, free, [(fastest.name, nodes)], ASSUMED).step_s,
        "slowdowns": [device.slowdown for device in known.devices],
        "plan": {
            "stages": [[stage.device, len(stage.nodes)] for stage in plans.skyfx.stages],
            "value_s": plans.skyfx.objective_value,
            "bound_s": plans.skyfx.lower_bound,
            "simulated_s": plans.simulated_s,
        },
        "cuts": cuts,
        "rivals": {name: _said(record) for name, record in records.items()},
        "seconds": phases.seconds,
    }


def _said(record: Record) -> dict[str, Any]:
    return {**asdict(record), "step_s": record.step_s}


def cores(shares: Sequence[float]) -> list[int]:
    """The core of each worker: the largest share first, where least has been given away."""
    cores = dict.fromkeys(range(os.cpu_count() or 1), 0.0)
    found = [0] * len(shares)
    for rank in sorted(range(len(shares)), key=lambda rank: -shares[rank]):
        found[rank] = min(cores, key=lambda core: cores[core])
        cores[found[rank]] += shares[rank]
    return found


def _with_memory(cluster: Cluster, limits: Sequence[float] | None) -> Cluster:
    every = [None] * len(cluster.devices) if limits is None else limits
    devices = (replace(d, memory_bytes=x) for d, x in zip(cluster.devices, every, strict=True))
    return replace(cluster, devices=tuple(devices))


def _plans(hosts: DeviceInventory, graph: Graph, free: Cluster, limited: Cluster) -> Plans:
    """The same in all processes; the plans that one would make by hand know of no limits."""

    def make() -> dict[str, Any]:
        asked = replace(ASSUMED, schedule=SCHEDULE, recompute="auto")
        best = solve(graph, limited, asked, gap=GAP, time_limit_s=PLANNING_S).plan
        even = solve(graph, free, ASSUMED, strategy="even").plan
        placement = [(stage.device, stage.nodes) for stage in best.stages]
        planned = with_recomputation(graph, best.segments())
        return {
            "skyfx": files.encode(best).decode(),
            "even": files.encode(even).decode(),
            "simulated_s": simulate(planned, limited, placement, asked, best.live).step_s,
        }

    told = hosts.group.broadcast_from_first(make)
    best, even = (files.decode(told[x].encode(), Plan, x) for x in ("skyfx", "even"))
    original = replace(even, assumptions=replace(even.assumptions, microbatches=1))
    return Plans(best, even, original, told["simulated_s"])


def _entries(
    cluster: clusters.Cluster,
    prepared: Prepared,
    hosts: DeviceInventory,
    known: tuple[Cluster, Cluster],
    plans: Plans,
) -> tuple[dict[str, Entry], Mapping[str, Sequence[int]]]:
    """All rivals, and where the ones that are cut by hand are cut."""
    subject, (free, limited) = prepared.subject, known
    rank, shares = hosts.group.rank, [host.share for host in cluster.hosts]
    entries = {
        "skyfx": Entry(Planned(subject, limited, plans.skyfx), keeps_limits=True),
        "even": Entry(Planned(subject, free, plans.even)),
        "original": Entry(Planned(subject, free, plans.original), once=True),
        "one device": Entry(Alone(subject, here=rank == shares.index(max(shares)))),
    }
    cuts = {}
    for cut, name in rules(prepared.weights, cluster.limits or [1.0] * len(shares)).items():
        for schedule in SCHEDULES:
            cuts[f"{name} ({schedule})"] = cut
            engine = Engine(subject, prepared.states, cut, schedule)
            entries[f"{name} ({schedule})"] = Entry(engine, by_hand=True)
    return entries, cuts


if __name__ == "__main__":
    main(sys.argv[2:], Path(sys.argv[1]))
