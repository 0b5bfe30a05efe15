"""Capture takes a model as it is, and leaves it as it was."""

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import skyfx
from skyfx.passes.aliasing import colocation
from skyfx.passes.planner_graph import to_planner_graph
from skyfx.solver.errors import CaptureError
from skyfx.tracing.capture import Capture, capture
from tests.support import models, unsplit_reference
from tests.support.models import BATCH, CASES


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_the_captured_graph_computes_what_the_model_computes(name: str, training: bool) -> None:
    case = CASES[name]()
    case.model.train(training)
    captured = capture(case.model, case.batch, training=training)
    found = captured.module(*captured.microbatch.tensors)
    expected = unsplit_reference.tensors(unsplit_reference.call(case.model, case.batch))
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


def test_names_are_those_of_the_model_and_each_stands_once() -> None:
    captured = capture(models.bert().model, models.bert().batch)
    ids = list(captured.ids.values())
    assert len(set(ids)) == len(ids)
    assert "input_ids" in ids
    assert "bert.encoder.layer.0.output.dense.linear" in ids
    assert "classifier.linear" in ids


def test_equal_operators_have_equal_names_in_both_modes_and_all_shapes() -> None:
    case = models.resnet()
    training = set(capture(case.model, case.batch).ids.values())
    inference = set(capture(case.model, case.batch[:3], training=False).ids.values())
    assert inference < training
    assert {name.rsplit(".", 1)[1] for name in training - inference} == {"add_"}  # batch counts


def test_tied_weights_are_one_node_that_all_their_readers_read() -> None:
    graph = to_planner_graph(capture(models.gpt2().model, models.gpt2().batch))
    (shared,) = [node for node in graph.nodes if node.op == "get_attr"]
    readers = [node.id for node in graph.nodes if shared.id in node.inputs]
    assert shared.parameter_bytes == shared.output_bytes == 100 * 32 * 4
    assert readers == ["transformer.wte.embedding", "lm_head.linear"]


def test_every_parameter_counts_once() -> None:
    for build in CASES.values():
        case = build()
        graph = to_planner_graph(capture(case.model, case.batch))
        parameters = sum(p.numel() * 4 for p in case.model.parameters())
        buffers = sum(b.numel() * b.element_size() for b in case.model.buffers())
        total = sum(node.parameter_bytes for node in graph.nodes)
        assert parameters <= total <= parameters + buffers + 64  # and a constant or two


def test_capture_leaves_mode_parameters_buffers_and_random_state_alone() -> None:
    case = models.resnet()
    case.model.train()
    case.model.blocks[1].eval()  # a part frozen on purpose
    modes = [module.training for module in case.model.modules()]
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    random = torch.get_rng_state()
    for training in (True, False):
        capture(case.model, case.batch, training=training)
    assert modes == [module.training for module in case.model.modules()]
    assert torch.equal(random, torch.get_rng_state())
    for name, value in case.model.state_dict().items():
        assert torch.equal(value, before[name])


class Aliases(nn.Module):
    """Writes in place what was viewed and read before."""

    def forward(self, x: Tensor) -> Tensor:
        made = x * 2
        view = made.view(-1)
        read = view + 1
        made.add_(1)
        after = made * 3
        return after.sum(1) + read.view_as(after).sum(1)


def test_what_is_written_in_place_stays_together_up_to_its_last_write() -> None:
    captured = capture(Aliases(), torch.randn(BATCH, 3))
    labels = {captured.ids[node]: label for node, label in labels_of(captured).items()}
    assert labels == dict.fromkeys(["mul", "view", "add", "add_"], "mul")


def labels_of(captured: Capture) -> dict[torch.fx.Node, str]:
    return colocation(captured.module.graph, captured.ids)


class Shared(nn.Module):
    """One batch norm called twice: both calls write its running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(self.norm(x)))


def test_both_writers_of_a_buffer_share_a_stage() -> None:
    labels = labels_of(capture(Shared(), torch.randn(BATCH, 3)))
    norms = {label for node, label in labels.items() if "batch_norm" in str(node.target)}
    assert len(norms) == 1


num_calls = 0


class Leaving(nn.Module):
    """Its lines cannot become a method of their own."""

    def forward(self, x: Tensor) -> Tensor:
        global num_calls
        num_calls += 1
        return torch.from_numpy(x.detach().numpy() * 2)


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> int:
        return 3


def test_a_model_that_cannot_be_captured_is_refused_with_its_line() -> None:
    line = Leaving.forward.__code__.co_firstlineno + 3
    with pytest.raises(CaptureError, match=rf"Leaving cannot .*test_capture.py:{line}: "):
        capture(Leaving(), torch.ones(2))


def test_a_model_that_returns_no_tensor_is_refused() -> None:
    with pytest.raises(CaptureError, match="Nothing returns no tensor"):
        capture(Nothing(), torch.ones(2))


def test_inputs_that_do_not_fit_the_model_are_refused() -> None:
    with pytest.raises(CaptureError, match=r"ResNet cannot be captured with inputs of shapes \(8,"):
        capture(models.ResNet(), torch.ones(8, 7, 8, 8))
    with pytest.raises(CaptureError, match="unexpected keyword argument 'nonsense'"):
        capture(models.ResNet(), {"nonsense": torch.ones(8, 3, 8, 8)})


def test_inputs_may_be_left_out_for_a_transformers_model_only() -> None:
    assert capture(models.t5().model).microbatch.batch_size == 3
    with pytest.raises(CaptureError, match="ResNet brings no example inputs"):
        capture(models.ResNet())


def test_the_public_names_are_those_that_the_package_promises() -> None:
    for name in skyfx.__all__:
        assert getattr(skyfx, name).__name__ == name


def function(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear, r"model is the class Linear, expected a .*: pass an instance of the class"),
        (function, r"model is a function, expected a .*: call it in the `forward`"),
        (None, r"model is a NoneType, expected a torch.nn.Module"),
        ([nn.Linear(2, 2)], r"model is a list, expected a torch.nn.Module"),
    ],
)
def test_a_model_that_is_no_module_is_refused_in_a_line(model: Any, message: str) -> None:
    for call in (capture, partition_on_two_devices):
        with pytest.raises(TypeError, match=message) as raised:
            call(model, torch.ones(BATCH, 2))
        assert "\n" not in str(raised.value)


def partition_on_two_devices(model: nn.Module, inputs: Any) -> skyfx.Pipeline:
    return skyfx.partition(model, ["cpu", "cpu"], example_inputs=inputs, num_microbatches=2)


def test_a_pipeline_is_not_split_again() -> None:
    with (
        partition_on_two_devices(nn.Identity(), torch.ones(BATCH, 2)) as pipeline,
        pytest.raises(TypeError, match="split already, so pass the model that it was made from"),
    ):
        partition_on_two_devices(pipeline, torch.ones(BATCH, 2))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("text", "the batch is a str, expected a tensor, a tuple"),
        (torch.ones(2).numpy(), "the batch is a ndarray, expected a tensor"),
        ({3: torch.ones(2)}, "the batch is a dict, expected .* a dict of its keyword arguments"),
        ((), "the batch holds no tensor with a batch dimension"),
        (torch.ones(()), "the batch holds no tensor with a batch dimension"),
    ],
)
def test_inputs_of_a_wrong_type_are_refused(inputs: Any, message: str) -> None:
    for call in (capture, partition_on_two_devices):
        with pytest.raises(TypeError, match=message):
            call(nn.Linear(2, 2), inputs)


@pytest.mark.parametrize("build", [nn.Identity, nn.Sequential])
def test_a_model_without_operators_is_one_stage(build: type[nn.Module]) -> None:
    x = torch.randn(BATCH, 2)
    with partition_on_two_devices(build(), x) as pipeline:
        assert len(pipeline.plan.stages) == 1
        assert torch.equal(pipeline(x), x)


def test_an_object_among_the_outputs_is_refused() -> None:
    class Drawn:
        def __init__(self, x: Tensor) -> None:
            self.x = x

    class Returns(nn.Linear):
        made: Any = None

        def forward(self, x: Tensor) -> Any:
            return Returns.made(super().forward(x)), x

    for made, name in (
        (Drawn, "Drawn"),
        (lambda x: torch.distributions.Normal(x, 1), "Normal"),
        (lambda x: (x for _ in range(2)), "generator"),
    ):
        Returns.made = made
        with pytest.raises(
            CaptureError, match=f"an object of {name}.*\\nReturn the tensors"
        ) as why:
            skyfx.partition(Returns(4, 4), ["cpu"], example_inputs=torch.randn(8, 4))
        assert len(str(why.value).splitlines()) <= 3
    Returns.made = lambda x: (x, None)
    assert capture(Returns(4, 4), torch.randn(2, 4)).outputs.num_tensors == 2


def test_the_cache_of_parametrizations_and_a_weak_reference_are_let_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))
            self.shared = [weakref.proxy(self)]

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.linear(x))

    model, batch = Twice(), torch.randn(8, 4)
    with nn.utils.parametrize.cached():
        with skyfx.partition(model, ["cpu"], example_inputs=batch, num_microbatches=2) as pipeline:
            pipeline.train_step(batch, None, lambda outputs, _: outputs.square().mean())
            found = pipeline(batch)
        expected = torch.cat([model(x) for x in batch.split(4)])
    assert torch.equal(found, expected)
