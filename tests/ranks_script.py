"""Trains and infers as every process of a job, and writes what it saw: run by `test_ranks`."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

import skyfx
from skyfx.captures import capture
from skyfx.runtime.group import Group
from skyfx.runtime.microbatch import Batch
from tests import models, reference
from tests.plans import SIZE, even_plan


def main(name: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    case = models.CASES[name]()
    alone = reference.unsplit(case)
    cluster = skyfx.Cluster.from_environment()
    group = Group.joined()
    names = [device.name for device in cluster.devices]
    captured = capture(case.model, Batch.of(case.batch).split(SIZE)[0])
    plan = even_plan(captured, len(names))
    # The last rank has the first stage: a device's name counts, not when its process came.
    stages = [replace(s, device=name) for s, name in zip(plan.stages, names[::-1], strict=True)]
    plan = replace(plan, stages=tuple(stages))
    found = []
    with skyfx.partition(case.model, cluster, example_inputs=case.batch, plan=plan) as pipeline:
        optimizer = torch.optim.SGD(pipeline.parameters(), lr=0.1)
        others = torch.optim.SGD(alone.model.parameters(), lr=0.1)
        for _ in range(3):
            for each in (optimizer, others):
                each.zero_grad()
            loss = pipeline.train_step(case.batch, case.targets, case.loss_fn)
            found.append(torch.equal(loss, reference.train_step(alone, SIZE)))
            optimizer.step()
            others.step()
        ours = {k: x for k, x in pipeline.state_dict().items() if not x.is_meta}
        theirs = alone.model.state_dict()
        found.append(all(torch.equal(x, theirs[k]) for k, x in ours.items()))
        inferred = pipeline(case.batch)
    expected = reference.infer(alone, SIZE)
    said = {
        "stages": [stage.device for stage in plan.stages],
        "equal": found,
        "held": len(ours),
        "all": len(theirs),
        "inferred": all(map(torch.equal, reference.tensors(inferred), expected)),
    }
    Path(folder, f"{group.rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
