"""Calls that torch.export cannot follow become leaves, and everything else is cut around them."""

import copy
import random
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import skyfx
from skyfx.passes.planner_graph import to_planner_graph
from skyfx.solver.errors import CaptureError
from skyfx.tracing.capture import Capture, capture
from skyfx.tracing.leaves.leaf_calls import leaf_of
from tests.support import unsplit_reference
from tests.support.models import BATCH, Case
from tests.support.plans import SIZE, split_evenly
from tests.support.unsplit_reference import assert_equal_gradients

WIDTH = 6


class Branch(nn.Module):
    """Goes another way for inputs of a positive sum; each way has parameters and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return self.norm(self.one(x))
        return self.other(x) * 2


class Ticket(torch.autograd.Function):
    """The identity, with a gradient that is not its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 3 * gradient


class OwnGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return Ticket.apply(self.linear(x))


class Checkpointed(nn.Module):
    """Runs again in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = Branch()
        self.branch.norm = nn.Identity()  # whose statistics would be counted twice, as eagerly

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.branch, x, use_reentrant=False) if x.max() > -9 else x


class WritesIt(nn.Module):
    """Writes to what it is given, if that is positive somewhere."""

    def forward(self, x: Tensor) -> Tensor:
        if (x > 0).any():
            x.mul_(2)
        return x + 1


class Replaces(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            self.mean = self.mean + 1
        return x - self.mean


class Row(nn.Module):
    """Two linear layers around what is to stay whole, which is called twice."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(self.middle(self.first(x)))))


class OwnMethod(Row):
    """A method of the model itself counts positive numbers."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())

    def positive(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return torch.full((len(x), 1), scale) * len((x > 0).nonzero())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.positive(x, scale=0.5)


class TwoNames(Row):
    """The same module under two names; torch.export runs a stand-in of it."""

    def __init__(self) -> None:
        super().__init__(Branch())
        self.same = self.middle

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.same(self.first(self.middle(self.first(x)))))


class TwoNamesInLines(TwoNames):
    def forward(self, x: Tensor) -> Tensor:
        h, layers = self.first(x), [self.first, self.last, self.first]
        for layer in layers:
            if h.sum() > 0:
                h = layer(h)
        return super().forward(h)


def shifted(x: Tensor) -> dict[str, Tensor]:
    return {"shifted": x - 1 if x.mean().item() > 0 else x + 1}


class Copies(Row):
    """Runs a copy of a layer whose parameters have other readers."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())

    def copied(self, h: Tensor) -> Tensor:
        return copy.deepcopy(self.first)(h)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.copied(x))


class OwnFunction(Row):
    def __init__(self) -> None:
        super().__init__(nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(shifted(self.first(x))["shifted"])


def case(model: nn.Module) -> Case:
    batch = torch.randn(BATCH, WIDTH) + torch.linspace(-1, 1, BATCH)[:, None]
    return Case(model, batch, torch.randn(BATCH, WIDTH), functional.mse_loss)


def kept(captured: Capture) -> list[str]:
    return [captured.ids[node] for node in captured.ids if leaf_of(node)]


MODELS = {
    "branch": lambda: Row(Branch()),
    "checkpointed": lambda: Row(Checkpointed()),
    "own gradient": lambda: Row(OwnGradient()),
    "writes in place": lambda: Row(WritesIt()),
    "own method": OwnMethod,
    "copies": Copies,
    "own function": OwnFunction,
    "replaces a buffer": lambda: Row(Replaces()),
    "two names": TwoNames,
    "two names in lines": TwoNamesInLines,
}


@pytest.mark.parametrize("name", MODELS)
def test_it_is_cut_around_and_trains_exactly(name: str) -> None:
    ours = case(MODELS[name]())
    alone = Case(copy.deepcopy(ours.model), ours.batch, ours.targets, ours.loss_fn)
    assert 1 <= len(kept(capture(ours.model, ours.batch[:SIZE]))) <= 5
    # Some decide by a whole micro-batch, so their batches should not be cut.
    with split_evenly(ours, check="off") as pipeline:
        for _ in range(2):
            expected = unsplit_reference.train_step(alone, SIZE)
            found = pipeline.train_step(ours.batch, ours.targets, ours.loss_fn)
            assert torch.equal(found, expected)
        assert_equal_gradients(pipeline, alone.model)
    for key, value in alone.model.state_dict().items():
        assert torch.equal(ours.model.state_dict()[key], value), key


class Gained(Row):
    """Reads a parameter as a number, in a method that has no name of its own."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())
        self.gain = nn.Parameter(torch.tensor(0.5))

    scaled = lambda this, h: h * float(this.gain) + this.gain  # noqa: E731

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.scaled(self.first(x)))


def test_a_number_of_a_parameter_follows_the_optimizer() -> None:
    made = case(Gained())
    alone = unsplit_reference.unsplit(made)
    optimizer = torch.optim.SGD([*made.model.parameters(), *alone.model.parameters()], lr=0.1)
    with split_evenly(made, 2) as pipeline:
        for _ in range(2):
            expected = unsplit_reference.train_step(alone, SIZE)
            assert torch.equal(
                pipeline.train_step(made.batch, made.targets, made.loss_fn), expected
            )
            assert_equal_gradients(pipeline, alone.model)
            optimizer.step()
            optimizer.zero_grad()


def test_a_number_that_is_fixed_may_not_move_with_the_parameters() -> None:
    code = "lambda self, x: self.last(self.first(x) * self.gain.detach().item() + self.gain)"
    kind = type("Fixed", (Gained,), {"forward": eval(code)})  # whose source is not found
    with pytest.raises(CaptureError, match=r"submodule .*, which then stays whole"):
        capture(kind(), case(Gained()).batch[:SIZE])


def test_its_parameters_belong_to_its_node_and_those_of_a_method_do_not() -> None:
    class Once(Row):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.middle(self.first(x)))

    nodes = {
        n.id: n for n in to_planner_graph(capture(Once(Branch()), torch.randn(SIZE, WIDTH))).nodes
    }
    own = sum(x.numel() * x.element_size() for x in Branch().state_dict().values())
    assert nodes["middle.forward"].parameter_bytes == own
    assert nodes["middle.forward"].op == "submodule.forward"
    method = {
        n.id: n for n in to_planner_graph(capture(OwnMethod(), torch.randn(SIZE, WIDTH))).nodes
    }
    assert method["forward"].parameter_bytes == 0
    assert {"first.linear", "last.linear"} < method.keys()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per")
def test_quantized_modules_stay_whole_and_share_their_weights() -> None:
    row = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)).eval()
    model, x = torch.ao.quantization.quantize_dynamic(row), torch.randn(BATCH, WIDTH)
    captured = capture(model, x, training=False)
    assert kept(captured) == ["0.forward", "2.forward"]
    leaves = [leaf for node in captured.ids if (leaf := leaf_of(node))]
    assert leaves[0].seen.run.owner._packed_params._packed_params is (
        model[0]._packed_params._packed_params
    )
    with skyfx.partition(
        model, ["cpu"], example_inputs=x, num_microbatches=1, mode="inference"
    ) as pipeline:
        assert torch.equal(pipeline(2 * x), model(2 * x))


class Skips(nn.Module):
    """Leaves layers out at random in training, as many speech models do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if not self.training or torch.rand([]) > 0.5:
                x = layer(x)
        return x


class SkipsByPython(Skips):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if not self.training or random.random() + numpy.random.rand() > 1:
                x = layer(x)
        return x


class SkipsByName(nn.Module):
    """As `Skips`, with layers that have names of their own."""

    def __init__(self) -> None:
        super().__init__()
        for i in range(4):
            setattr(self, f"layer{i}", nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.layer0, self.layer1):
            x = layer(x) if random.random() > 0.5 else x
        name = "layer2" if random.random() > 0.5 else "layer3"
        return getattr(self, f"layer{name[-1]}")(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [Skips, SkipsByPython, SkipsByName])
def test_layers_left_out_at_random_differ_from_step_to_step_but_not_with_the_plan(
    kind: type[nn.Module],
) -> None:
    made = case(Row(kind()))
    losses = []
    for num_devices in (2, 3):
        torch.manual_seed(3)
        with split_evenly(made, num_devices) as pipeline:
            torch.manual_seed(4)
            steps = [pipeline.train_step(made.batch, made.targets, made.loss_fn) for _ in range(4)]
        losses.append([float(loss) for loss in steps])
    assert losses[0] == losses[1]
    assert len(set(losses[0])) > 1


def test_in_eval_mode_there_is_nothing_to_keep_whole() -> None:
    assert kept(capture(Row(Skips()), torch.randn(SIZE, WIDTH), training=False)) == []


class Selects(nn.Module):
    """As many rows as are positive."""

    def forward(self, x: Tensor) -> Tensor:
        return x[x[:, 0] > 0]


class Selected(Row):
    def forward(self, x: Tensor) -> Tensor:
        return self.first(self.middle(x)).sum() + self.last(x)


class Doubles(nn.Module):
    """Returns twice the rows if one is large; no value that is tried is."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x]) if x.max() > 50 else x


def test_another_shape_than_was_captured_ends_the_step_with_both() -> None:
    captured = capture(Selected(Doubles()), torch.ones(SIZE, WIDTH))
    (leaf,) = [leaf_of(node) for node in captured.ids if leaf_of(node)]
    with pytest.raises(RuntimeError, match=r"'middle' has returned .* \(4, 6\), but .* \(2, 6\)"):
        leaf(99 * torch.ones(SIZE, WIDTH))


class Stretches(nn.Module):
    """Returns as many rows as its values say, after a branch that depends on them too."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() == 0:
            x = x + 1
        return x.repeat_interleave((x > 0).sum(-1), 0)


class OnRows(Row):
    """A tensor of the branch for training is read in that branch only."""

    def forward(self, x: Tensor) -> Any:
        h = self.first(x)
        y = self.middle(torch.tanh(h))
        if not self.training:
            shift = y.mean()
        y = self.last(y)
        return (y if self.training else y - shift), h


def test_what_is_returned_may_have_a_shape_that_depends_on_values() -> None:
    model, others = OnRows(Stretches()).eval(), torch.randn(3, SIZE, WIDTH)
    assert len({len(model(x)[0]) for x in others}) > 1
    with skyfx.partition(
        model, ["cpu", "cpu"], example_inputs=others[0], num_microbatches=1, mode="inference"
    ) as pipeline:
        for x in others:
            found, expected = pipeline(x), model(x)
            assert all(map(torch.equal, found, expected))
    assert kept(capture(OnRows(Stretches()), others[0])) == ["forward"]


def without_loops(edges: Tensor) -> Tensor:
    """Of another shape for other edges."""
    return edges[:, (edges[0] != edges[1]).nonzero().squeeze(1)]


class Convolves(nn.Module):
    """On a graph; the innermost call that may stay whole is this one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = without_loops(edges)
        return torch.zeros_like(x).index_add(0, target, self.linear(x)[source])


class OnGraphs(Row):
    def __init__(self) -> None:
        super().__init__(Convolves())

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.last(torch.relu(self.middle(self.first(x), edges)))


def test_what_surrounds_a_shape_that_depends_on_values_stays_whole() -> None:
    def batch() -> dict[str, Tensor]:
        return {"x": torch.randn(BATCH, WIDTH), "edges": torch.randint(0, BATCH, (2, 20))}

    model, y = OnGraphs(), torch.randn(BATCH, WIDTH)
    alone = copy.deepcopy(model)
    assert kept(capture(model, batch())) == ["middle.forward"]
    with skyfx.partition(model, ["cpu"], example_inputs=batch(), num_microbatches=1) as pipeline:
        for given in (batch(), batch()):
            found = pipeline.train_step(given, y, functional.mse_loss)
            assert torch.equal(found, functional.mse_loss(alone(**given), y))


def test_a_call_that_another_micro_batch_shows_to_vary_is_no_leaf_of_its_own() -> None:
    made = case(Selected(Selects()))
    made.batch[:, 0] = torch.tensor([1.0, 1, 1, 1, -1, 1, 1, 1])
    alone = unsplit_reference.unsplit(made)
    with split_evenly(made, 2, check="off") as pipeline:
        expected = unsplit_reference.train_step(alone, SIZE)
        assert torch.equal(pipeline.train_step(made.batch, made.targets, made.loss_fn), expected)


class Slices(nn.Module):
    def forward(self, x: Tensor, length: Tensor) -> Tensor:
        return x[:, : length[0]] * 2


def test_an_output_whose_shape_only_values_tell_is_refused() -> None:
    x, length = torch.ones(BATCH, WIDTH), torch.arange(BATCH) % 4
    batch = {"x": x, "length": length}
    with pytest.raises(CaptureError, match="Slices cannot be captured"):
        split_evenly(Case(Slices(), batch, x, functional.mse_loss), 2, check="off")


class Counts(nn.Module):
    """Returns a number, which may not leave a node; what is around it can stay whole."""

    def forward(self, x: Tensor) -> int:
        return int((x > 0).sum())


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.counts(x)


def test_where_a_number_would_leave_the_place_around_it_stays_whole() -> None:
    assert set(kept(capture(Row(Around()), torch.randn(SIZE, WIDTH)))) == {
        "middle.forward",
        "middle.forward_1",
    }


def test_what_a_stage_would_lose_is_refused_with_the_first_reason() -> None:
    class Grows(Replaces):
        def forward(self, x: Tensor) -> Tensor:
            if x.isfinite().all():
                self.mean = torch.cat([self.mean, self.mean])
            return x - self.mean.sum()

    model = Row(Grows())
    with pytest.raises(CaptureError, match=rf"'middle.mean' another shape .* at {__file__}:\d+"):
        capture(model, torch.ones(SIZE, WIDTH))
    assert float(model.middle.mean.sum()) == 0.0
    assert all("forward" not in vars(module) for module in model.modules())


def test_a_model_that_does_not_run_says_so_itself() -> None:
    with pytest.raises(CaptureError, match="mat1 and mat2 shapes cannot be multiplied"):
        capture(Row(Branch()), torch.ones(SIZE, WIDTH + 1))


class LanguageModel(nn.Module):
    """Of torch's own tutorial: the encoder asks whether its mask is the causal one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, 20)

    def forward(self, words: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(words.shape[1])
        return self.head(self.encoder(self.embed(words), mask))


def test_what_torch_decides_by_a_mask_is_decided_once() -> None:
    words = torch.randint(0, 20, (BATCH, 5))
    made = Case(LanguageModel(), words, words, lambda y, t: functional.cross_entropy(y.mT, t))
    captured = capture(made.model, words[:SIZE])
    leaves = [leaf for node in captured.ids if (leaf := leaf_of(node))]
    assert [leaf.seen.name.split(".")[-1] for leaf in leaves] == ["_detect_is_causal_mask"]
    assert len(captured.ids) > 30
    with pytest.raises(RuntimeError, match="has returned False, but True when the model was"):
        leaves[0](torch.zeros(5, 5))
    alone = unsplit_reference.unsplit(made)
    with split_evenly(made, 2) as pipeline:
        expected = unsplit_reference.train_step(alone, SIZE)
        assert torch.equal(pipeline.train_step(words, words, made.loss_fn), expected)
        assert_equal_gradients(pipeline, alone.model)


def one_or_two() -> Tensor:
    return torch.ones(1) if torch.rand(1).item() > 0.5 else torch.full((1,), 2.0)


def test_a_function_without_tensors_can_stay_whole() -> None:
    class Scales(Row):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x) * one_or_two())

    made = case(Scales(nn.Identity()))
    assert kept(capture(made.model, made.batch[:SIZE])) == ["forward"]
    with split_evenly(made, 2) as pipeline:
        losses = [
            float(pipeline.train_step(made.batch, made.targets, made.loss_fn)) for _ in range(4)
        ]
    assert len(set(losses)) > 1
