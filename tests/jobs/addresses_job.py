"""Says which part of a model each process of a job has come to hold.

Run by `test_faults_of_sky_computing`: the plan puts layer i on the process of rank `order[i]`.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

import skyfx
from skyfx.devices.inventory import DeviceInventory
from skyfx.runtime.batches.microbatch import Batch
from skyfx.tracing.capture import capture
from tests.support.plans import even_plan


def main(folder: str, *order: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    hosts = DeviceInventory.join()
    name_of = {rank: name for name, rank in hosts.owner_rank.items()}
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in order))
    batch = torch.randn(4, 4)
    expected = model(batch)
    plan = even_plan(capture(model, Batch.of(batch).split(2)[0]), len(order), microbatches=2)
    first, *others = (name for stage in plan.stages for name in stage.nodes)  # the input, layers
    parts = [(first, others[0]), *((layer,) for layer in others[1:])]
    stages = [
        replace(stage, device=name_of[int(rank)], nodes=nodes)
        for stage, rank, nodes in zip(plan.stages, order, parts, strict=True)
    ]
    plan = replace(plan, stages=tuple(stages))
    cluster = skyfx.Cluster(devices=hosts.devices)
    with skyfx.partition(model, cluster, example_inputs=batch, plan=plan) as pipeline:
        held = [name for name, x in model.named_parameters() if not x.is_meta]
        loss = pipeline.train_step(batch, torch.zeros(4, 4), functional.mse_loss)
        ran = [hosts.owner_rank[stage.device] for stage in pipeline.plan.stages]
    alone = functional.mse_loss(expected, torch.zeros(4, 4))
    said = {"held": held, "stages": ran, "close": torch.allclose(loss, alone)}
    Path(folder, f"{hosts.group.rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
