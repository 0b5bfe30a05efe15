"""One host of the experiment: measures, plans and trains with the others.

What prepares a run has whole cores; what is measured has the host's share of one.
"""

import gc
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common.emulated_hosts import enter_quota, leave_quota
from benchmarks.fidelity.worker import measured_in_quotas
from benchmarks.hosts.block_times import MICROBATCHES
from benchmarks.hosts.competitors import Planned, Rival
from benchmarks.hosts.interleaved_runs import Entry, run
from benchmarks.hosts.models import Subject, bert
from benchmarks.hosts.worker import Phases, cores
from benchmarks.sky.allocation_units import even, thirds
from benchmarks.sky.metrics import SEQUENTIAL, whole
from benchmarks.sky.published_code import CLASSES
from skyfx.devices.cluster_probe import probed
from skyfx.devices.inventory import DeviceInventory
from skyfx.runtime.batches.microbatch import Batch
from skyfx.solver import Assumptions, Cluster, Graph, Plan, evaluate, solve
from skyfx.solver.core import files
from skyfx.solver.methods.bounds.simple_bounds import simple_bound
from skyfx.solver.methods.method import Candidate
from skyfx.solver.planning.plan_builder import Provenance, build
from skyfx.solver.planning.schedule_adaptation import adapt_schedule, search_assumptions
from skyfx.solver.problem.problem import Problem
from skyfx.tracing.capture import capture

__all__: list[str] = ["ASKED", "Task", "even_plan", "plans"]

GAP, PLANNING_S = 0.01, 30.0

ASKED = Assumptions(
    objective="step",
    microbatches=MICROBATCHES,
    overlap="full",
    schedule="generated",
    optimizer_state_ratio=2.0,
)

TAPERED = replace(ASKED, schedule="tapered")
"""Stages made for the schedule, not by the cost model's formula of a step."""


@dataclass(frozen=True, slots=True)
class Task:
    """What to run: a cluster's shares of cores, the model's size, the number of turns."""

    name: str
    shares: tuple[float, ...]
    layers: int
    width: int
    turns: int


class WithAdamW:
    """A rival whose step goes on to the update of its parameters."""

    def __init__(self, rival: Rival) -> None:
        self._rival = rival
        own = list(rival.parameters())
        self._optimizer = torch.optim.AdamW(own, lr=1e-4) if own else None

    def step(self) -> float | None:
        """As `Rival` says, and the update."""
        loss = self._rival.step()
        if self._optimizer is not None:
            self._optimizer.step()
            self._optimizer.zero_grad()
        return loss

    def parameters(self) -> Iterator[nn.Parameter]:
        """As `Rival` says."""
        return self._rival.parameters()

    def close(self) -> None:
        """As `Rival` says."""
        self._rival.close()


def even_plan(graph: Graph, cluster: Cluster) -> Plan:
    """As many parts for each worker, as the original allocates."""
    apart = thirds(graph)
    problem = Problem(apart, cluster, ASKED)
    unit_of, placement = problem.unit_of, even(graph, cluster)
    numbers = {device.name: d for d, device in enumerate(cluster.devices)}
    stages = [(numbers[name], sorted({unit_of[v] for v in ids})) for name, ids in placement]
    usual = search_assumptions(ASKED)
    candidate = Candidate(stages, evaluate(apart, cluster, placement, usual), "even")
    solved = solve(apart, cluster, usual, strategy="even").plan
    provenance = Provenance(
        graph=solved.graph,
        cluster=solved.cluster,
        alternatives=solved.alternatives,
        strategy="even",
    )
    scheduled = adapt_schedule(problem, candidate, "even", enforce_peaks=False)
    return build(problem, scheduled, simple_bound(problem), provenance)


def plans(graph: Graph, cluster: Cluster) -> tuple[dict[str, Plan], dict[str, float]]:
    """The plans of all rivals, and the seconds that each is predicted to take."""
    made = {
        "even": even_plan(graph, cluster),
        "dynamic": solve(graph, cluster, ASKED, strategy="dynamic").plan,
        "optimal": solve(graph, cluster, ASKED, gap=GAP, time_limit_s=PLANNING_S).plan,
        "tapered": solve(graph, cluster, TAPERED, gap=GAP, time_limit_s=PLANNING_S).plan,
    }
    predicted = {name: plan.simulated_s for name, plan in made.items()}
    alone = replace(search_assumptions(ASKED), microbatches=1)
    stages = tuple(replace(stage, live=0) for stage in made["even"].stages)
    made["original"] = replace(made["even"], assumptions=alone, stages=stages, simulated_s=0.0)
    placement = [(stage.device, stage.nodes) for stage in stages]
    batch = whole(graph, MICROBATCHES)
    predicted["original"] = evaluate(batch, cluster, placement, SEQUENTIAL).latency_s
    return made, predicted


def main(task: Task, report: Path) -> None:
    """Run it; the first process writes the report."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    hosts = DeviceInventory.join()
    rank = hosts.group.rank
    os.sched_setaffinity(0, {cores(task.shares)[rank]})
    phases = Phases(task.name, tells=rank == 0)
    torch.manual_seed(0)
    subject = bert(task.layers, task.width, CLASSES)
    part = Batch.of(subject.batch).split(len(subject.batch) // MICROBATCHES)[0]
    captured = capture(subject.model, part)
    gc.freeze()  # see `Heartbeat.start`: these hosts have a small share of a core
    phases.ended("capturing")
    enter_quota()
    known = probed(hosts)
    leave_quota()
    graph, known = measured_in_quotas(hosts, known, captured)
    phases.ended("measuring")
    made, predicted = _told(hosts, graph, known)
    phases.ended("planning")
    row = _trained(task, hosts, (subject, known), made)
    phases.ended("training")
    if rank == 0:
        row |= {"predicted_s": predicted, "seconds": phases.seconds}
        row["slowdowns"] = [device.slowdown for device in known.devices]
        report.write_text(json.dumps(row))


def _told(
    hosts: DeviceInventory, graph: Graph, known: Cluster
) -> tuple[dict[str, Plan], dict[str, float]]:
    """The same in all processes."""

    def make() -> list[Any]:
        made, predicted = plans(graph, known)
        coded = {name: files.encode(plan).decode() for name, plan in made.items()}
        return [coded, predicted]

    coded, predicted = hosts.group.broadcast_from_first(make)
    return {name: files.decode(raw.encode(), Plan, name) for name, raw in coded.items()}, predicted


def _trained(
    task: Task, hosts: DeviceInventory, known: tuple[Subject, Cluster], made: Mapping[str, Plan]
) -> dict[str, Any]:
    """All rivals in turns."""
    entries = {
        name: Entry(WithAdamW(Planned(*known, plan)), once=name == "original")
        for name, plan in made.items()
    }
    try:
        records = run(entries, hosts.group, limited=False, turns=task.turns)
    finally:
        for entry in entries.values():
            entry.rival.close()
    return {
        "cluster": task.name,
        "shares": task.shares,
        "rivals": {
            name: {
                "step_s": record.step_s,
                "steps_s": record.steps_s,
                "losses": record.losses,
                "stages": len(made[name].stages),
            }
            for name, record in records.items()
        },
    }


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    main(Task(**{**given, "shares": tuple(given["shares"])}), Path(sys.argv[1]))
