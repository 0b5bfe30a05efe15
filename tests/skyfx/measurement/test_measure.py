"""What is measured, and that measuring disturbs nothing."""

import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

from skyfx.devices.resolve import resolve
from skyfx.measurement.call_cost import CallCost, measure_call
from skyfx.measurement.measure import measure
from skyfx.passes.call_signature import signature
from skyfx.passes.planner_graph import num_bytes
from skyfx.solver import Graph
from skyfx.tracing.capture import capture
from tests.support import models
from tests.support.models import BATCH, CASES, Case

PLACES = resolve(["cpu", "cpu"])[1].values()


def measured(case: Case, *, training: bool = True) -> Graph:
    return measure(capture(case.model, case.batch, training=training), PLACES)


def test_every_operator_has_a_time_and_gradients_flow_where_they_should() -> None:
    graph = measured(models.bert(layers=2))
    for node in graph.nodes:
        free = node.op in ("input", "get_attr")
        assert (node.forward_s == {}) if free else node.forward_s["cpu"] > 0
    by_id = {node.id: node for node in graph.nodes}
    linear = by_id["bert.encoder.layer.1.output.dense.linear"]
    assert linear.backward_s["cpu"] > 0
    assert linear.gradient_bytes == linear.output_bytes == BATCH * 12 * 32 * 4
    assert linear.parameter_bytes == (64 * 32 + 32) * 4
    assert by_id["input_ids"].gradient_bytes == 0
    layer = "bert.encoder.layer.1.attention"
    key, value = (by_id[f"{layer}.self.{name}.linear"] for name in ("key", "value"))
    assert key.after == (f"{layer}.self.query.linear",)  # their gradients add up in this order
    assert value.after == (key.id,)
    assert by_id[f"{layer}.self.query.linear"].after == ()
    assert by_id["input_ids"].output_bytes == BATCH * 12 * 8
    assert all(node.after == () for node in graph.nodes if node.gradient_bytes == 0)


def test_only_what_trains_counts_as_trained_and_nothing_before_it_is_kept() -> None:
    case = models.bert(layers=2)
    for name, parameter in case.model.named_parameters():
        parameter.requires_grad_("layer.1.output" in name or "classifier" in name)
    nodes, parameters = measured(case).nodes, list(case.model.parameters())
    assert sum(n.trained_bytes for n in nodes) == sum(
        p.nbytes for p in parameters if p.requires_grad
    )
    assert sum(n.parameter_bytes for n in nodes) == sum(
        x.nbytes for x in (*parameters, *case.model.buffers())
    )
    frozen = [n for n in nodes if (n.module or "").startswith("bert.encoder.layer.0")]
    assert frozen
    assert all(n.saved_bytes == n.gradient_bytes == 0 for n in frozen)


def test_a_tensor_of_several_counts_what_they_hold() -> None:
    weights, scales = torch.zeros(8, 4, dtype=torch.int8), torch.zeros(8, 1)
    assert num_bytes(TwoTensor(weights, weights)) == 2 * 8 * 4
    assert num_bytes([weights, scales]) == 8 * 4 + 8 * 4


def test_inference_measures_no_backward() -> None:
    graph = measured(models.resnet(), training=False)
    assert all(node.backward_s == {} and node.gradient_bytes == 0 for node in graph.nodes)
    assert all(node.saved_bytes == 0 for node in graph.nodes)


def test_saved_bytes_count_each_storage_once_and_no_parameters() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(y) * y  # y is saved by b and by the product, b's output by the product

    graph = measured(Case(Twice(), torch.randn(BATCH, 8), torch.zeros(1), torch.sum))
    assert sum(node.saved_bytes for node in graph.nodes) == 3 * BATCH * 8 * 4


@pytest.mark.parametrize("name", ["bert", "resnet"])
def test_measuring_leaves_the_model_and_the_random_state_alone(name: str) -> None:
    case = CASES[name]()
    before = {key: value.clone() for key, value in case.model.state_dict().items()}
    state = torch.get_rng_state()
    measured(case)
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in case.model.parameters())
    for key, value in case.model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_equal_calls_have_one_signature_and_unequal_ones_do_not() -> None:
    x, weight = torch.ones(2, 3), nn.Parameter(torch.ones(4, 3))
    needs = [False, True]
    one = signature("linear", (x, weight), {}, needs)
    assert one == signature("linear", (x + 1, nn.Parameter(torch.zeros(4, 3))), {}, needs)
    others = [
        signature("other", (x, weight), {}, needs),
        signature("linear", (x.t().contiguous().t(), weight), {}, needs),
        signature("linear", (x.double(), weight), {}, needs),
        signature("linear", (x, weight.detach()), {}, needs),
        signature("linear", (x, weight), {}, [True, True]),
        signature("linear", (x, weight), {"p": 0.1}, needs),
    ]
    assert one not in others


def test_a_call_takes_at_least_what_it_takes() -> None:
    def slow(x: Tensor) -> Tensor:
        time.sleep(0.005)
        return x * 2

    x = torch.ones(2)
    found = measure_call(slow, (x,), {}, [True], training=True, num_threads=1)
    assert found.forward_s >= 0.005
    assert found.backward_s is not None
    assert found.flows == (True,)
    assert measure_call(slow, (x,), {}, [True], training=False, num_threads=1).backward_s is None


def test_a_call_keeps_what_autograd_saves() -> None:
    x, y = torch.ones(8), torch.ones(8)
    product = measure_call(torch.mul, (x, y), {}, [True, True], training=True, num_threads=1)
    assert (product.saves_inputs, product.saves_outputs, product.saves_bytes) == ((0, 1), (), 0)
    root = measure_call(torch.exp, (x,), {}, [True], training=True, num_threads=1)
    assert (root.saves_inputs, root.saves_outputs, root.saves_bytes) == ((), (0,), 0)
    none = measure_call(torch.mul, (x, y), {}, [False, False], training=True, num_threads=1)
    assert none.saves_inputs == none.saves_outputs == ()
    assert none.backward_s is None


def test_of_a_part_of_a_batch_its_own_bytes_count() -> None:
    x = torch.randn(4 * BATCH, 8)
    graph = measure(capture(nn.Linear(8, 8), x[:BATCH]), PLACES)
    assert [node.saved_bytes for node in graph.nodes] == [0, BATCH * 8 * 4]
    assert all(type(node.saved_bytes) in (int, float) for node in graph.nodes)


def test_how_the_times_were_come_by_stands_in_the_graph() -> None:
    graph = measured(models.bert())
    assert graph.measured is not None
    (one,) = graph.measured
    assert one.type == "cpu"
    assert one.forward is not None
    assert one.backward is not None
    assert one.forward.regions >= 3


def test_a_model_without_values_is_measured_as_one_with() -> None:
    def node_sizes(graph: Graph) -> dict[str, tuple[float, ...]]:
        return {
            n.id: (
                *(n.saved_bytes, n.gradient_bytes, n.flops, n.backward_flops),
                *(bool(n.forward_s), bool(n.backward_s)),
            )
            for n in graph.nodes
        }

    case = models.resnet()
    with torch.device("meta"):
        bare = models.ResNet()
    without = measured(Case(bare, case.batch.to("meta"), case.targets, case.loss_fn))
    assert node_sizes(without) == node_sizes(measured(case))


def test_what_was_measured_is_kept_in_the_cache_and_read_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKYFX_CACHE", str(tmp_path / "new"))
    case, calls = models.resnet(), []

    def counted(*args: Any, **kwargs: Any) -> CallCost:
        calls.append(args[0])
        return measure_call(*args, **kwargs)

    monkeypatch.setattr("skyfx.measurement.operator_costs.measure_call", counted)
    first, num_calls = measured(case), len(calls)
    again = measured(case)
    assert 0 < num_calls == len(calls)
    assert [n.saved_bytes for n in first.nodes] == [n.saved_bytes for n in again.nodes]
    assert [n.flops for n in first.nodes] == [n.flops for n in again.nodes]
    assert sum(n.backward_flops for n in again.nodes) > sum(n.flops for n in again.nodes) > 0
    (file,) = (tmp_path / "new").iterdir()
    file.write_text("{")
    measured(case)  # is not read, and made anew
    assert len(calls) == 2 * num_calls
    measured(case)
    assert len(calls) == 2 * num_calls


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYFX_CACHE", str(tmp_path))
    case, calls = models.resnet(), []

    def counted(*args: Any, **kwargs: Any) -> CallCost:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(args[0])
        return measure_call(*args, **kwargs)

    monkeypatch.setattr("skyfx.measurement.operator_costs.measure_call", counted)
    with pytest.raises(KeyboardInterrupt):
        measured(case)
    (file,) = tmp_path.iterdir()
    assert len(json.loads(file.read_text())) == 3


@pytest.mark.parametrize("num_devices", [1, 2])
def test_ctrl_c_ends_measuring_and_puts_everything_back(num_devices: int) -> None:
    case, told = models.resnet(), []
    before = {name: value.clone() for name, value in case.model.state_dict().items()}

    def progress(_: str, done: int, total: int) -> None:
        told.append((done, total))
        if done == 2:
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGINT)  # as the terminal does

    captured = capture(case.model, case.batch)
    with pytest.raises(KeyboardInterrupt):
        measure(captured, resolve(["cpu"] * num_devices)[1].values(), progress=progress)
    done, total = told[-1]
    assert done < total
    for name, value in case.model.state_dict().items():
        assert torch.equal(value, before[name]), name
