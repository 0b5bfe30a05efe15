"""Stages compute what the model computes, for any plan of any program."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import skyfx
from skyfx.devices.resolve import resolve
from skyfx.passes.gradient_order import with_readers_in_order
from skyfx.passes.planner_graph import to_planner_graph
from skyfx.solver import Assumptions, Plan, solve, validate
from skyfx.tracing.capture import capture
from tests.support import unsplit_reference
from tests.support.independent_validator import referee_faults
from tests.support.models import BATCH, Case
from tests.support.plans import NUM_MICROBATCHES, SIZE
from tests.support.tiers import cases

WIDTH = 4


@dataclass(frozen=True)
class Line:
    """One line of a random program: an operator on earlier values."""

    op: str
    first: int
    second: int


class Program(nn.Module):
    """Random operators on a growing list of values: skips, views, ties and writes in place."""

    def __init__(self, lines: tuple[Line, ...]) -> None:
        super().__init__()
        self.lines = lines
        self.linears = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in lines)
        self.norms = nn.ModuleList(nn.BatchNorm1d(WIDTH) for _ in lines)
        self.shared = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values = [x]
        for line, linear, norm in zip(self.lines, self.linears, self.norms, strict=True):
            a, b = (values[i % len(values)] for i in (line.first, line.second))
            values.append(self.run(line.op, a, b, linear, norm))
        return values[-1] * 2, torch.stack(values).sum(0)

    def run(self, op: str, a: Tensor, b: Tensor, linear: nn.Module, norm: nn.Module) -> Tensor:
        match op:
            case "linear":
                return linear(a)
            case "norm":
                return norm(a)
            case "add":
                return a + b
            case "tied":
                return a * self.shared
            case "view":
                return a.t().reshape(WIDTH, -1).t()
            case "write":  # through a view of it, after somebody has read it
                copy = a * 1
                read = copy + b
                copy.view(-1).mul_(0.5)
                return copy + read
            case "halves":
                left, right = a.split(WIDTH // 2, dim=1)
                return torch.cat([right, left], 1)
        raise AssertionError(op)


OPS = ["linear", "linear", "norm", "add", "tied", "view", "write", "halves"]


@st.composite
def programs(draw: st.DrawFn) -> tuple[Line, ...]:
    index = st.integers(0, 8)
    lines = st.builds(Line, st.sampled_from(OPS), index, index)
    drawn = draw(st.lists(lines, min_size=1, max_size=7))
    return (Line("linear", 0, 0), *drawn)  # so that there is something to train


def loss_fn(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    return functional.mse_loss(outputs[0], targets) + outputs[1].square().mean()


def random_plan(model: nn.Module, batch: Tensor, draw: st.DrawFn, num_devices: int) -> Plan:
    """The best plan for times drawn at random: in effect, a random valid plan."""
    captured = capture(model, batch[:SIZE])
    computed = set(captured.ids) - set(captured.module.graph.find_nodes(op="placeholder"))
    graph = with_readers_in_order(to_planner_graph(captured), captured, computed.__contains__)
    nodes = tuple(
        node if node.op in ("input", "get_attr") else replace(node, forward_s={"cpu": seconds})
        for node in graph.nodes
        for seconds in [draw(st.integers(1, 9)) * 1.0]
    )
    cluster, _ = resolve(["cpu"] * num_devices)
    drawn = replace(graph, nodes=nodes)
    plan = solve(drawn, cluster, Assumptions(microbatches=NUM_MICROBATCHES)).plan
    assert validate(drawn, cluster, plan) == ()
    assert referee_faults(drawn, cluster, plan) == []
    return plan


@pytest.mark.slow
@cases(100)
@given(programs(), st.integers(2, 4), st.data())
def test_any_plan_of_any_program_computes_what_the_program_computes(
    lines: tuple[Line, ...], num_devices: int, data: st.DataObject
) -> None:
    torch.manual_seed(0)
    model, batch = Program(lines), torch.randn(BATCH, WIDTH)
    case = Case(model, batch, torch.randn(BATCH, WIDTH), loss_fn)
    alone = replace(case, model=Program(lines))
    alone.model.load_state_dict(model.state_dict())
    plan = random_plan(model, batch, data.draw, num_devices)
    devices = ["cpu"] * num_devices
    with skyfx.partition(model, devices, example_inputs=batch, plan=plan) as pipeline:
        loss = pipeline.train_step(batch, case.targets, loss_fn)
        assert torch.equal(loss, unsplit_reference.train_step(alone, SIZE))
        expected = {name: p.grad for name, p in alone.model.named_parameters()}
        for name, parameter in pipeline.named_parameters():
            assert (parameter.grad is None) == (expected[name] is None), name
            assert parameter.grad is None or torch.equal(parameter.grad, expected[name]), name
        for name, value in pipeline.state_dict().items():
            assert torch.equal(value, alone.model.state_dict()[name]), name
        found = unsplit_reference.tensors(pipeline(batch))
    inferred = unsplit_reference.infer(alone, SIZE)
    assert all(torch.equal(f, e) for f, e in zip(found, inferred, strict=True))
