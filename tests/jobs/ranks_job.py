"""Trains and infers as every process of a job, and writes a report per model: see `test_ranks`."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import skyfx
from skyfx.runtime.distributed.process_group import ProcessGroup
from skyfx.solver import Plan
from skyfx.solver.core.files import encode
from tests.support import models, unsplit_reference
from tests.support.models import BATCH
from tests.support.plans import LIVE, SIZE, even_plan, generated_plan, graph_of, interleaved_plan


def plan_for(case: models.Case, names: list[str], how: str = "given") -> Plan:
    """Stages on each; the last rank has the first one: names count, not when a process came."""
    captured = graph_of(case)
    if how == "interleaved":
        return interleaved_plan(captured, LIVE[-2 * len(names) :], names[::-1])
    if how == "generated":
        plan = generated_plan(captured, LIVE[-len(names) :])
    else:
        plan = even_plan(captured, len(names))
    stages = [replace(s, device=name) for s, name in zip(plan.stages, names[::-1], strict=True)]
    return replace(plan, stages=tuple(stages))


def main(folder: str, *runs: str) -> None:
    """Do one run after the other; each is a model and how it is planned: `bert-interleaved`."""
    torch.set_num_threads(1)
    cluster, group = skyfx.Cluster.from_environment(), ProcessGroup.join()
    for run in runs:
        report = json.dumps(report_of(*run.rsplit("-", 1), cluster))
        Path(folder, f"{run}.{group.rank}.json").write_text(report)


def report_of(name: str, how: str, cluster: skyfx.Cluster) -> dict[str, Any]:
    torch.manual_seed(0)
    case = models.CASES[name]()
    alone = unsplit_reference.unsplit(case)
    names = [device.name for device in cluster.devices]
    options = {"strategy": "even", "num_microbatches": BATCH // SIZE}
    if how != "measured":
        options = {"plan": plan_for(case, names, how), "check": "off"}
    found = []
    with skyfx.partition(case.model, cluster, example_inputs=case.batch, **options) as pipeline:
        optimizer = torch.optim.SGD(pipeline.parameters(), lr=0.1)
        others = torch.optim.SGD(alone.model.parameters(), lr=0.1)
        for _ in range(3):
            for each in (optimizer, others):
                each.zero_grad()
            loss = pipeline.train_step(case.batch, case.targets, case.loss_fn)
            found.append(torch.equal(loss, unsplit_reference.train_step(alone, SIZE)))
            # Gradients add up over several batches, and are clipped by the norm of all.
            pipeline.train_step(case.batch, case.targets, case.loss_fn)
            unsplit_reference.train_step(alone, SIZE)
            norm = pipeline.clip_grad_norm_(0.5)
            expected_norm = torch.nn.utils.clip_grad_norm_(alone.model.parameters(), 0.5)
            found.append(torch.equal(norm, expected_norm))
            optimizer.step()
            others.step()
        held = [k for k, x in case.model.state_dict().items() if not x.is_meta]
        ours, theirs = pipeline.state_dict(), alone.model.state_dict()
        found.append(all(torch.equal(ours[k], x) for k, x in theirs.items()))
        pipeline.load_state_dict({k: torch.zeros_like(x) for k, x in theirs.items()})
        pipeline.load_state_dict(ours)
        inferred = pipeline(case.batch)
        streamed = list(pipeline.stream([case.batch] * 4))
        profile = pipeline.profile(case.batch, case.targets, case.loss_fn, steps=1)
    expected = unsplit_reference.infer(alone, SIZE)
    return {
        "stages": [s.device for s in pipeline.plan.stages],
        "plan": encode(pipeline.plan).decode(),
        "equal": found,
        "timeline": [
            [done.action.stage, done.action.kind.value, done.action.microbatch, done.began_s]
            for done in profile.timeline
        ],
        "held": len(held),
        "all": len(theirs),
        "inferred": [
            all(map(torch.equal, unsplit_reference.tensors(outputs), expected))
            for outputs in (inferred, *streamed)
        ],
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
