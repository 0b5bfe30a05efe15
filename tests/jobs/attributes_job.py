"""Trains models that leave something on their modules: see `test_assigned_attributes`."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import skyfx
from skyfx.runtime.distributed.process_group import ProcessGroup
from skyfx.solver.core.plan import Plan
from skyfx.tracing.capture import Capture, capture
from tests.support import attribute_models
from tests.support.attribute_models import (
    BATCH,
    NUM_MICROBATCHES,
    SIZE,
    Layers,
)
from tests.support.plans import even_plan


def main(folder: str) -> None:
    torch.set_num_threads(1)
    cluster, group = skyfx.Cluster.from_environment(), ProcessGroup.join()
    said = {
        kind.__name__: trained(kind(), cluster, group)
        for kind in attribute_models.kinds_over_processes()
    }
    said["lengths"] = lengths(cluster, group)
    Path(folder, f"{group.rank}.json").write_text(json.dumps(said))


def lengths(cluster: skyfx.Cluster, group: ProcessGroup) -> list[Any]:
    """What a model returns whose outputs are as long as the values say."""
    model = attribute_models.Stretching().eval()
    plan = planned(capture(model, BATCH, training=False), cluster, group, 1)
    with skyfx.partition(
        model, cluster, example_inputs=BATCH, plan=plan, num_microbatches=1, mode="inference"
    ) as pipeline:
        return [pipeline(batch).tolist() for batch in (BATCH, BATCH - 0.5)]


def planned(
    captured: Capture, cluster: skyfx.Cluster, group: ProcessGroup, num_microbatches: int
) -> Plan:
    """As many nodes for each process."""
    plan = even_plan(captured, group.size)
    names = [device.name for device in cluster.devices]
    stages = [replace(s, device=name) for s, name in zip(plan.stages, names, strict=True)]
    assumptions = replace(plan.assumptions, microbatches=num_microbatches)
    return replace(plan, stages=tuple(stages), assumptions=assumptions)


def trained(model: Layers, cluster: skyfx.Cluster, group: ProcessGroup) -> dict[str, Any]:
    plan = planned(capture(model, BATCH[:SIZE]), cluster, group, NUM_MICROBATCHES)
    with skyfx.partition(model, cluster, example_inputs=BATCH, plan=plan) as pipeline:
        steps = attribute_models.pipeline_steps(pipeline, model, 2)
        trained = attribute_models.attributes(model)
        pipeline(BATCH)
        inferred = attribute_models.attributes(model)
    return {"steps": steps, "trained": trained, "inferred": inferred}


if __name__ == "__main__":
    main(*sys.argv[1:])
