"""No cut lies between a storage's creation and its last write, as real tensors share storages."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import skyfx
from skyfx.passes.planner_graph import to_planner_graph
from skyfx.solver.core.plan import Plan
from skyfx.tracing.capture import capture
from tests.support import unsplit_reference
from tests.support.models import BATCH, Case
from tests.support.plans import SIZE, even_plan

WIDTH = 6


class Written(nn.Module):
    """Writes in place to what some operator has returned, and reads what it was given."""

    def __init__(self, operator: nn.Module) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x) * 2
        y = self.operator(h)
        y.mul_(3).add_(1)
        return self.last(torch.tanh(y) + h)


class Calls(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


OPERATORS: dict[str, Callable[[], nn.Module]] = {
    "dropout of 0": lambda: nn.Dropout(0.0),
    "dropout that is off": lambda: Calls(lambda x: functional.dropout(x, 0.5, training=False)),
    "dropout": lambda: nn.Dropout(0.5),
    "channels dropped": lambda: nn.Dropout1d(0.0),
    "alpha dropout": lambda: nn.AlphaDropout(0.0),
    "identity": nn.Identity,
    "contiguous": lambda: Calls(lambda x: x.contiguous()),
    "reshape": lambda: Calls(lambda x: x.reshape(-1, WIDTH)),
    "to": lambda: Calls(lambda x: x.to(torch.float32)),
    "type_as": lambda: Calls(lambda x: x.type_as(torch.ones(1))),
    "einsum": lambda: Calls(lambda x: torch.einsum("ij->ji", x).T),
    "expand": lambda: Calls(lambda x: x.expand(x.shape)),
    "clone": lambda: Calls(torch.clone),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_gradients_and_outputs_are_exact_wherever_it_is_cut(name: str) -> None:
    torch.manual_seed(1)
    model = Written(OPERATORS[name]())
    made = Case(model, torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH), functional.mse_loss)
    devices = ["cpu", "cpu"]
    for plan in cuts(made):
        alone = unsplit_reference.unsplit(made)
        with skyfx.partition(
            model, devices, example_inputs=made.batch, plan=plan, check="off"
        ) as pipeline:
            loss = pipeline.train_step(made.batch, made.targets, made.loss_fn)
            if name != "dropout":  # which draws from another stream
                assert torch.equal(loss, unsplit_reference.train_step(alone, SIZE))
                unsplit_reference.assert_equal_gradients(pipeline, alone.model)
            model.eval()
            (expected,) = unsplit_reference.infer(alone, SIZE)
            assert torch.equal(pipeline(made.batch), expected)
        model.train()
        model.zero_grad()


def cuts(made: Case) -> list[Plan]:
    """A plan of two stages for each place where a cut is allowed."""
    captured = capture(made.model, made.batch[:SIZE])
    graph = to_planner_graph(captured)
    even = even_plan(captured, 2)
    first, last = even.stages
    nodes = [node.id for node in graph.nodes]
    label = {node.id: node.colocate or node.id for node in graph.nodes}
    found = []
    for i in range(1, len(nodes)):
        before, after = nodes[:i], nodes[i:]
        if not {label[x] for x in before} & {label[x] for x in after}:
            stages = replace(first, nodes=tuple(before)), replace(last, nodes=tuple(after))
            found.append(replace(even, stages=stages))
    return found
