"""Trains over two processes, one of which becomes slower: run by `test_rebalancing`."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import skyfx
from skyfx.runtime.distributed.process_group import ProcessGroup
from tests.support import models, unsplit_reference

MICROBATCHES, STEPS = 4, 12


def slow_down(pipeline: skyfx.Pipeline, device: str) -> None:
    """From now on the device takes thirty times as long, as one does that has other work."""
    for split in pipeline.runner._splits._made.values():
        for stage in split.stages.values():
            if stage.local_device.name == device:
                stage.local_device = replace(stage.local_device, slowdown=30.0)


def nodes_on(pipeline: skyfx.Pipeline, device: str) -> int:
    return sum(len(stage.nodes) for stage in pipeline.plan.stages if stage.device == device)


def trained(
    pipeline: skyfx.Pipeline, case: models.Case, alone: models.Case, slow: Callable[[], None]
) -> dict[str, Any]:
    """Train beside the unsplit model; after two steps a device becomes slower."""
    ours = torch.optim.AdamW(pipeline.parameters(), lr=1e-2)
    theirs = torch.optim.AdamW(alone.model.parameters(), lr=1e-2)
    moved, equal, size = [], True, models.BATCH // MICROBATCHES
    for step in range(STEPS):
        if step == 2:
            slow()
        loss = pipeline.train_step(case.batch, case.targets, case.loss_fn)
        equal &= torch.equal(loss, unsplit_reference.train_step(alone, size))
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
        if True not in moved:
            moved.append(pipeline.rebalance(ours, above=3.0))
    state = pipeline.state_dict()
    equal &= all(torch.equal(state[k], x) for k, x in alone.model.state_dict().items())
    return {"moved": moved, "equal": equal}


def main(folder: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    case = models.bert()
    alone = unsplit_reference.unsplit(case)
    cluster = skyfx.Cluster.from_environment()
    rank = ProcessGroup.join().rank
    with skyfx.partition(
        case.model,
        cluster,
        example_inputs=case.batch,
        num_microbatches=MICROBATCHES,
        check="off",
    ) as pipeline:

        def held() -> int:
            return sum(x.numel() for x in case.model.parameters() if not x.is_meta)

        before, own = held(), cluster.devices[rank].name
        nodes = nodes_on(pipeline, own)
        said = trained(pipeline, case, alone, lambda: slow_down(pipeline, cluster.devices[1].name))
        said |= {"held": [before, held()], "nodes": [nodes, nodes_on(pipeline, own)]}
    Path(folder, f"{rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
