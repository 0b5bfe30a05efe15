"""Trains models with dropout as every process of a job: see `test_step_streams`.

The processes are seeded unlike each other: the first one's seed counts.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import torch

import skyfx
from skyfx.passes.planner_graph import to_planner_graph
from skyfx.runtime.batches.microbatch import Batch
from skyfx.runtime.distributed.process_group import ProcessGroup
from skyfx.tracing.capture import capture
from tests.support import random_models
from tests.support.plans import SIZE, even_plan, recomputing


def main(folder: str, *runs: str) -> None:
    """Do one run after the other; each is a model and its number of steps: `bert-50`.

    `bert-3-again` recomputes segments in backward.
    """
    torch.set_num_threads(1)
    cluster, group = skyfx.Cluster.from_environment(), ProcessGroup.join()
    for run in runs:
        name, steps, *again = run.split("-")
        said = json.dumps(trained(name, int(steps), cluster, group, again=bool(again)))
        Path(folder, f"{run}.{group.rank}.json").write_text(said)


def trained(
    name: str, steps: int, cluster: skyfx.Cluster, group: ProcessGroup, *, again: bool
) -> dict[str, Any]:
    torch.manual_seed(0)
    case = random_models.CASES[name]()
    graph = to_planner_graph(capture(case.model, Batch.of(case.batch).split(SIZE)[0]))
    plan = even_plan(graph, group.size)
    if again:
        plan = recomputing(plan, graph, Random(0))
    names = [device.name for device in cluster.devices]
    stages = [replace(s, device=name) for s, name in zip(plan.stages, names, strict=True)]
    plan = replace(plan, stages=tuple(stages))
    torch.manual_seed(random_models.SEED + group.rank)
    with skyfx.partition(
        case.model, cluster, example_inputs=case.batch, plan=plan, check="off"
    ) as pipeline:
        return random_models.trained(pipeline, case, steps)


if __name__ == "__main__":
    main(*sys.argv[1:])
