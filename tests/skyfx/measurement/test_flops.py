"""Operations of nodes add up to what torch's own counter says of the unsplit model."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import skyfx
from skyfx.devices.resolve import resolve
from skyfx.measurement.flops import counted
from skyfx.measurement.measure import TypeMeasurement, assembled, price
from skyfx.runtime.batches.microbatch import Batch, OutputSpec
from skyfx.solver import Graph
from skyfx.solver.core.graph import DeviceCalibration
from skyfx.tracing.capture import Capture, capture
from tests.support import models
from tests.support.models import BATCH, Case, mixture

(PLACE,) = resolve(["cpu"])[1].values()


def priced(captured: Capture) -> Graph:
    """The graph, without calibration segments."""
    prices = price(captured, PLACE, lambda _: lambda *_: None)
    return assembled(
        captured, {"cpu": TypeMeasurement(prices, DeviceCalibration(type="cpu", spread=0.0))}
    )


def totals(graph: Graph) -> tuple[float, float]:
    nodes = graph.nodes
    return sum(node.flops for node in nodes), sum(node.backward_flops for node in nodes)


def unsplit(case: Case, *, training: bool) -> tuple[int, int]:
    """Forward and backward of the model itself, by torch's counter as it is."""
    case.model.train(training)
    args, kwargs = Batch.of(case.batch).restore()
    with FlopCounterMode(display=False) as forward, torch.set_grad_enabled(training):
        returned = case.model(*args, **kwargs)
    if not training:
        return forward.get_total_flops(), 0
    outputs = [x for x in OutputSpec.of(returned)[1] if x.requires_grad]
    with FlopCounterMode(display=False) as backward:
        torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])
    return forward.get_total_flops(), backward.get_total_flops()


# Layers x the products of queries with keys and of weights with values, each two operations for
# each of batch x heads x length x length x size of a head; in backward 5 products where forward
# has 2. Torch's counter has no formula for the CPU's kernel, so there it leaves attention out.
BERTS = models.num_layers() * 4 * (BATCH * 2 * 12 * 12 * 16)
EXPERTS = models.num_layers() * 4 * (BATCH * 4 * 12 * 12 * 8)


@pytest.mark.parametrize(
    ("make", "attention", "backward"),
    [
        (models.bert, BERTS, BERTS * 5 // 2),
        (models.gpt2, BERTS, BERTS * 5 // 2),
        (mixture, EXPERTS, EXPERTS * 5 // 2),  # whose experts are code that stays whole
        (models.resnet, 0, 0),
    ],
)
def test_nodes_have_the_operations_of_the_model(
    make: Callable[[], Case], attention: int, backward: int
) -> None:
    case = make()
    found = totals(priced(capture(case.model, case.batch)))
    counted_forward, counted_backward = unsplit(case, training=True)
    assert min(counted_forward, counted_backward) > 0
    assert found == (counted_forward + attention, counted_backward + backward)


def test_inference_has_no_backward() -> None:
    case = models.bert()
    found = totals(priced(capture(case.model, case.batch, training=False)))
    assert found == (unsplit(case, training=False)[0] + BERTS, 0)


def test_a_matrix_product_has_two_operations_for_each_multiplication() -> None:
    by_id = {node.id: node for node in priced(capture(nn.Linear(3, 5), torch.ones(7, 3))).nodes}
    assert by_id["linear"].flops == 2 * 7 * 3 * 5
    assert by_id["linear"].backward_flops == 2 * 7 * 3 * 5  # of its weight: x needs no gradient


def test_a_table_of_which_a_part_was_made_up_counts_as_a_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 1001 rows 58 are made up: a 17th part, and 15 rows more are in none."""
    monkeypatch.setattr("skyfx.passes.synthetic_inputs.MOST_BYTES", 1000)
    with skyfx.empty_weights():
        head = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1001, bias=False))
    graph = priced(capture(head, torch.empty(2, 4, device="meta")))
    by_id = {node.id: node for node in graph.nodes}
    assert by_id["1.linear"].flops == 2 * 2 * 4 * 1001
    assert by_id["1.linear"].backward_flops == 2 * (2 * 2 * 4 * 1001)


def test_what_cannot_be_counted_is_run_and_counts_nothing() -> None:
    """Torch's counter refuses tensors of ragged rows."""
    rows = torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)], layout=torch.jagged)
    linear = nn.Linear(4, 5)
    with pytest.raises(TypeError), FlopCounterMode(display=False):
        linear(rows)
    returned, flops = counted(lambda: linear(rows))
    assert [x.shape for x in returned.unbind()] == [(2, 5), (3, 5)]
    assert flops == 0
