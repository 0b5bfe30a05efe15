"""A plan that was made offline fits where it is run, by the rules of `partition`."""

from dataclasses import replace

import torch
from torch import nn

import skyfx
from skyfx.devices.resolve import resolve
from skyfx.measurement.measure import measure
from skyfx.solver import Assumptions, solve
from skyfx.tracing.capture import capture


def test_an_offline_plan_fits_where_it_is_run() -> None:
    model, batch = nn.Sequential(*(nn.Linear(16, 16) for _ in range(6))), torch.randn(16, 16)
    described, places = resolve(["cpu", "cpu"])
    graph = measure(capture(model, batch[:4]), places.values())
    first, second = (device.name for device in described.devices)
    asked = Assumptions(microbatches=4, pins=(f"0={first}", f"5={second}"))
    most = max(stage.peak_bytes for stage in solve(graph, described, asked).plan.stages)
    devices = tuple(replace(d, memory_bytes=1.05 * most) for d in described.devices)
    limited = replace(described, devices=devices)
    plan = solve(graph, limited, asked).plan
    assert all(1.1 * s.peak_bytes <= (s.limit_bytes or 0.0) * (1 + 1e-9) for s in plan.stages)
    by_formula = solve(graph, limited, asked, enforce_peaks=False).plan
    assert any(1.1 * s.peak_bytes > (s.limit_bytes or 0.0) for s in by_formula.stages)
    with skyfx.partition(model, described, example_inputs=batch, plan=plan) as pipeline:
        loss = pipeline.train_step(batch, torch.zeros(16, 16), nn.functional.mse_loss)
    assert torch.isfinite(loss)
    assert pipeline.plan.stages == plan.stages
