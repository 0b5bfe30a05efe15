"""The same models on this machine as it is: `python -m benchmarks.fidelity.alone --rows FILE`.

Four CPU devices of one process and one micro-batch, so that one stage computes at a time, on one
core: what is left of the error when hosts are not emulated.
"""

import argparse
import copy
import json
import os
from pathlib import Path
from statistics import median
from typing import Any

import torch

import skyfx
from benchmarks.fidelity.models import CASES, Case
from benchmarks.fidelity.table import compute_errors, median_and_p95
from benchmarks.fidelity.worker import captured_first
from skyfx.devices.resolve import resolve
from skyfx.measurement.measure import measure
from skyfx.runtime import pytree
from skyfx.solver import Assumptions, Cluster, Graph, Plan, evaluate, solve

WARM, STEPS = 2, 9
NAMES = ("cpu", "cpu", "cpu", "cpu")


def main() -> None:
    """Print a line for each plan, and keep all figures in a file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fidelity.alone", description=__doc__
    )
    parser.add_argument("--rows", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--only", default="", help="models whose name holds this text")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    rows = []
    for name, make in ((x, make) for x, make in CASES.items() if arguments.only in x):
        torch.manual_seed(0)
        case = make()
        cluster, places = resolve(NAMES)
        graph = measure(captured_first(copy.deepcopy(case.model), case), places.values())
        for label, plan in plans(graph, cluster).items():
            row = {"model": name, "plan": label, **run(graph, cluster, plan, case)}
            rows.append(row)
            told = " ".join(f"{100 * e:+.1f}" for e in compute_errors(row))
            print(f"{name}, {label}: {told} %", flush=True)
            arguments.rows.write_text(json.dumps(rows, indent=1))
    errors = [error for row in rows for error in compute_errors(row)]
    middle, p95 = median_and_p95(errors)
    print(f"{len(errors)} stages: median {100 * middle:.1f} %, p95 {100 * p95:.1f} %")


def plans(graph: Graph, cluster: Cluster) -> dict[str, Plan]:
    """The whole model on one device, and two ways to cut it in four."""
    assumptions = Assumptions(microbatches=1)
    one = Cluster(devices=cluster.devices[:1])
    return {
        "whole": solve(graph, one, assumptions).plan,
        "even": solve(graph, cluster, assumptions, strategy="even").plan,
        "dynamic": solve(graph, cluster, assumptions, strategy="dynamic").plan,
    }


def run(graph: Graph, cluster: Cluster, plan: Plan, case: Case) -> dict[str, Any]:
    """Predict and measure what each stage computes."""
    placement = [(stage.device, stage.nodes) for stage in plan.stages]
    first = slice(graph.microbatch_size)
    part = pytree.tree_map(lambda x: x[first], case.batch)
    targets = case.targets[first]
    busy = []
    with skyfx.partition(
        copy.deepcopy(case.model), NAMES, example_inputs=part, plan=plan
    ) as pipeline:
        for i in range(WARM + STEPS):
            pipeline.train_step(part, targets, case.loss_fn)
            assert pipeline.measured is not None
            if i >= WARM:
                busy.append(pipeline.measured.stage_s)
    return {
        "compute_s": evaluate(graph, cluster, placement, plan.assumptions).compute_s,
        "busy_s": [median(column) for column in zip(*busy, strict=True)],
    }


if __name__ == "__main__":
    main()
