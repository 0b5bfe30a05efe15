"""Recomputed segments: the unsplit model's losses, gradients, buffers and random numbers."""

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import skyfx
from skyfx.devices.resolve import resolve
from skyfx.measurement.measure import measure
from skyfx.runtime.recomputation import Recomputed
from skyfx.solver import Assumptions, solve
from skyfx.solver.errors import PlanError
from tests.support import models, unsplit_reference
from tests.support.models import BATCH, CASES, Case
from tests.support.plans import (
    NUM_MICROBATCHES,
    SIZE,
    capture_first,
    even_plan,
    graph_of,
    recomputing,
)


class Everything(nn.Module):
    """In-place writes, batch norm, dropout, random numbers and a counter, in a few lines."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm, self.again = nn.BatchNorm1d(8), nn.BatchNorm1d(8, momentum=None)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        x = functional.relu_(self.norm(self.first(x)))
        x = functional.dropout(x, 0.3) * (1 + self.count / 10)
        a, b = self.again(self.second(x)).chunk(2, dim=1)
        x = torch.cat([a.exp(), b.tanh() + torch.rand_like(b)], dim=1)
        return self.norm(x) + functional.dropout(x, 0.1)


def everything() -> Case:
    torch.manual_seed(0)
    return Case(Everything(), torch.randn(BATCH, 8), torch.randn(BATCH, 8), functional.mse_loss)


MADE: dict[str, Callable[[], Case]] = {
    **{name: CASES[name] for name in ("bert", "t5", "resnet")},
    "bert with dropout": lambda: models.bert(dropout=0.1),
    "everything": everything,
}


@pytest.mark.parametrize("name", MADE)
def test_two_steps_with_recomputed_segments_are_the_unsplit_models(name: str) -> None:
    torch.manual_seed(0)
    case = MADE[name]()
    alone, graph = unsplit_reference.unsplit(case), graph_of(case)
    plan = recomputing(even_plan(graph, 2), graph, Random(name))
    assert sum(map(len, plan.segments())) > len(graph.nodes) / 2
    with skyfx.partition(
        case.model, ["cpu"] * 2, example_inputs=case.batch, plan=plan, check="off"
    ) as pipeline:
        for step in range(2):
            torch.manual_seed(step)
            found = pipeline.train_step(case.batch, case.targets, case.loss_fn)
            after = torch.get_rng_state()
            torch.manual_seed(step)
            assert torch.equal(found, unsplit_reference.train_step(alone, SIZE))
            assert torch.equal(after, torch.get_rng_state())
        state = pipeline.state_dict()
    for key, value in alone.model.state_dict().items():
        assert torch.equal(state[key], value), key
    expected = dict(alone.model.named_parameters())
    for key, parameter in case.model.named_parameters():
        theirs = expected[key].grad
        assert (parameter.grad is None) == (theirs is None), key
        assert theirs is None or torch.equal(parameter.grad, theirs), key


@pytest.mark.slow
def test_a_plan_within_limits_recomputes_and_trains_as_the_unsplit_model() -> None:
    torch.manual_seed(0)
    case = models.bert(dropout=0.1, layers=1)
    alone = unsplit_reference.unsplit(case)
    free, places = resolve(["cpu"])
    graph = measure(capture_first(case.model, case.batch), places.values())
    asked = Assumptions(microbatches=NUM_MICROBATCHES, schedule="gpipe", recompute="auto")
    usual = solve(graph, free, asked).plan
    limit = 0.85 * 1.1 * usual.stages[0].peak_bytes
    limited = replace(free, devices=(replace(free.devices[0], memory_bytes=limit),))
    plan = solve(graph, limited, asked).plan
    assert plan.segments()
    assert not usual.segments()
    with skyfx.partition(case.model, ["cpu"], example_inputs=case.batch, plan=plan) as pipeline:
        assert pipeline.verified
        torch.manual_seed(1)
        found = pipeline.train_step(case.batch, case.targets, case.loss_fn)
    torch.manual_seed(1)
    assert torch.equal(found, unsplit_reference.train_step(alone, SIZE))


def test_what_a_segment_saves_is_dropped_until_its_backward() -> None:
    """Of three tensors that are saved, the second run brings back those that it made."""
    kept = list[int]()

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.nbytes)
        return tensor

    def body(x: Tensor) -> tuple[Tensor]:
        return (x.sin().exp().cos(),)

    x = torch.randn(1000, requires_grad=True)
    segment = Recomputed(torch.fx.symbolic_trace(body))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        (y,) = segment(x)
    assert sum(kept) <= 4000  # the input alone
    y.sum().backward()
    again = x.detach().requires_grad_()
    body(again)[0].sum().backward()
    assert torch.equal(x.grad, again.grad)


def test_a_plan_with_a_segment_that_cannot_be_recomputed_is_refused() -> None:
    case = everything()
    graph = graph_of(case)
    plan = even_plan(graph, 1)
    (stage,) = plan.stages

    def refused(*segments: tuple[str, ...]) -> str:
        wrong = replace(plan, stages=(replace(stage, recompute=segments),))
        with pytest.raises(PlanError) as error:
            skyfx.partition(case.model, ["cpu"], example_inputs=case.batch, plan=wrong)
        return str(error.value)

    relu = next(node for node in graph.nodes if "relu_" in node.op)
    before = graph.nodes[graph.nodes.index(relu) - 1].id
    assert "has to be in the segment" in refused((relu.id,))
    assert "neighbours" in refused((relu.id, before))
    assert "cannot be recomputed" in refused((graph.nodes[0].id,))
