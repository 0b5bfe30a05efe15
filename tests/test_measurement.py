"""What is measured, and that measuring disturbs nothing."""

import signal
import threading
import time

import pytest
import torch
from torch import Tensor, nn

from skyfx.captures import capture
from skyfx.devices import resolve
from skyfx.measurement import calibrated, measure
from skyfx.solver import Graph
from skyfx.timing import CallTime, measure_call, signature
from tests import models
from tests.models import BATCH, CASES, Case

PLACES = resolve(["cpu", "cpu"])[1].values()


def measured(case: Case, *, training: bool = True) -> Graph:
    return measure(capture(case.model, case.batch, training=training), PLACES)


def test_every_operator_has_a_time_and_gradients_flow_where_they_should() -> None:
    graph = measured(models.bert())
    for node in graph.nodes:
        free = node.op in ("input", "get_attr")
        assert (node.forward_s == {}) if free else node.forward_s["cpu"] > 0
    by_id = {node.id: node for node in graph.nodes}
    linear = by_id["bert.encoder.layer.1.output.dense.linear"]
    assert linear.backward_s["cpu"] > 0
    assert linear.gradient_bytes == linear.output_bytes == BATCH * 12 * 32 * 4
    assert linear.parameter_bytes == (64 * 32 + 32) * 4
    assert by_id["input_ids"].gradient_bytes == 0
    assert by_id["input_ids"].output_bytes == BATCH * 12 * 8


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
    one = signature("linear", (x, weight), {})
    assert one == signature("linear", (x + 1, nn.Parameter(torch.zeros(4, 3))), {})
    others = [
        signature("other", (x, weight), {}),
        signature("linear", (x.t().contiguous().t(), weight), {}),
        signature("linear", (x.double(), weight), {}),
        signature("linear", (x, weight.detach()), {}),
        signature("linear", (x, weight), {"p": 0.1}),
    ]
    assert one not in others


def test_a_call_takes_at_least_what_it_takes() -> None:
    def slow(x: Tensor) -> Tensor:
        time.sleep(0.005)
        return x * 2

    x = torch.ones(2, requires_grad=True)
    found = measure_call(slow, (x,), {}, training=True, num_threads=1)
    assert found.forward_s >= 0.005
    assert found.backward_s is not None
    assert measure_call(slow, (x,), {}, training=False, num_threads=1).backward_s is None


def test_the_nodes_times_are_scaled_to_add_up_to_the_whole() -> None:
    alone = {"a": CallTime(1.0, 4.0), "b": CallTime(3.0, None)}
    found = calibrated(alone, CallTime(8.0, 6.0), "cpu")
    assert found == {"a": CallTime(2.0, 6.0), "b": CallTime(6.0, None)}


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
