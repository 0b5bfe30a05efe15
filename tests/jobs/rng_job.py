"""Trains models with dropout as every process of a job: see `test_step_streams`.

The processes are seeded unlike each other: the first one's seed counts.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import skyfx
from skyfx.runtime.distributed.process_group import ProcessGroup
from skyfx.runtime.execution.microbatch import Batch
from skyfx.tracing.capture import capture
from tests.support import random_models
from tests.support.plans import SIZE, even_plan


def main(folder: str, *runs: str) -> None:
    """Do one run after the other; each is a model and its number of steps: `bert-50`."""
    torch.set_num_threads(1)
    cluster, group = skyfx.Cluster.from_environment(), ProcessGroup.join()
    for run in runs:
        name, _, steps = run.partition("-")
        said = json.dumps(trained(name, int(steps), cluster, group))
        Path(folder, f"{run}.{group.rank}.json").write_text(said)


def trained(name: str, steps: int, cluster: skyfx.Cluster, group: ProcessGroup) -> dict[str, Any]:
    torch.manual_seed(0)
    case = random_models.CASES[name]()
    plan = even_plan(capture(case.model, Batch.of(case.batch).split(SIZE)[0]), group.size)
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
