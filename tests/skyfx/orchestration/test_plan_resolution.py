"""A plan that was made offline fits where it is run, by the rules of `partition`."""

from dataclasses import replace

import torch
from torch import nn

import skyfx
from skyfx.devices.resolve import resolve
from skyfx.measurement.measure import measure
from skyfx.solver import Assumptions, solve
from skyfx.solver.costs.peak_memory import peak_bytes
from skyfx.tracing.capture import capture

ASKED = Assumptions(microbatches=4)


def test_an_offline_plan_fits_where_it_is_run() -> None:
    """The limit is what the best of all cuts into two stages needs at its peak."""
    model, batch = nn.Sequential(*(nn.Linear(16, 16) for _ in range(6))), torch.randn(16, 16)
    described, places = resolve(["cpu", "cpu"])
    graph = measure(capture(model, batch[:4]), places.values())
    first, second = (device.name for device in described.devices)
    ids = [node.id for node in graph.nodes]
    cuts = [[(first, ids[:k]), (second, ids[k:])] for k in range(1, len(ids))]
    limit = 1.1001 * min(max(peak_bytes(graph, described, cut, ASKED)) for cut in cuts)
    devices = tuple(replace(d, memory_bytes=limit) for d in described.devices)
    plan = solve(graph, replace(described, devices=devices), ASKED).plan
    assert all(1.1 * stage.peak_bytes <= limit for stage in plan.stages)
    with skyfx.partition(model, described, example_inputs=batch, plan=plan) as pipeline:
        loss = pipeline.train_step(batch, torch.zeros(16, 16), nn.functional.mse_loss)
    assert torch.isfinite(loss)
    assert pipeline.plan.stages == plan.stages
