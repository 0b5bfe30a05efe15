"""Trains a model with dropout as every process of a job, and writes what it saw: see `test_random`.

The processes are seeded unlike each other: the first one's seed counts.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

import skyfx
from skyfx.runtime.distributed.process_group import ProcessGroup
from skyfx.runtime.execution.microbatch import Batch
from skyfx.tracing.capture import capture
from tests.support import random_models
from tests.support.plans import SIZE, even_plan


def main(name: str, steps: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    case = random_models.CASES[name]()
    cluster, group = skyfx.Cluster.from_environment(), ProcessGroup.join()
    plan = even_plan(capture(case.model, Batch.of(case.batch).split(SIZE)[0]), group.size)
    names = [device.name for device in cluster.devices]
    stages = [replace(s, device=name) for s, name in zip(plan.stages, names, strict=True)]
    plan = replace(plan, stages=tuple(stages))
    torch.manual_seed(random_models.SEED + group.rank)
    with skyfx.partition(case.model, cluster, example_inputs=case.batch, plan=plan) as pipeline:
        said = random_models.trained(pipeline, case, int(steps))
    Path(folder, f"{group.rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
