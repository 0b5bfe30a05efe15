"""Batches whose samples are not along dimension 0 train and infer as in plain torch."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import skyfx
from skyfx.solver.errors import VerificationError
from tests.support.plans import capture_first, even_plan
from tests.support.unsplit_reference import CLOSE, assert_equal_gradients

WIDTH, SAMPLES, NUMBER, SIZE = 8, 6, 3, 2
Parts = Callable[[Any], Sequence[Any]]
Loss = Callable[[Any, Any], Tensor]


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def partitioned(
    model: nn.Module, inputs: Any, number: int = NUMBER, **options: Any
) -> skyfx.Pipeline:
    captured = capture_first(model, inputs, number, options.get("batch_dims"))
    plan = even_plan(captured, 2, microbatches=number)
    return skyfx.partition(model, ["cpu", "cpu"], example_inputs=inputs, plan=plan, **options)


def plain_step(model: nn.Module, batches: Any, targets: Any, loss_fn: Loss) -> Tensor:
    """Micro-batches with the weight of their samples: `(samples, arguments)`."""
    total, loss = sum(size for size, _ in batches), torch.zeros(())
    for (size, args), goal in zip(batches, targets, strict=True):
        share = loss_fn(model(*args), goal) * (size / total)
        share.backward()
        loss += share.detach()
    return loss


def along(dim: int, *tensors: Tensor) -> list[tuple[int, tuple[Tensor, ...]]]:
    return [(x[0].shape[dim], x) for x in zip(*(x.split(SIZE, dim) for x in tensors), strict=True)]


class Recurrent(nn.Module):
    """Time comes first; the state of the last step is returned as well."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.last = nn.LSTM(WIDTH, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        hidden, state = self.layer(x)
        return self.last(hidden), state


class Translates(nn.Module):
    """A layer of torch's transformer as it is by default; the mask is not of samples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.TransformerDecoderLayer(WIDTH, 2, 16, dropout=0.0)

    def forward(self, src: Tensor, tgt: Tensor, tgt_mask: Tensor, padding: Tensor) -> Tensor:
        return self.layer(tgt, src, tgt_mask=tgt_mask, memory_key_padding_mask=padding)


class Words(nn.Module):
    """torch's own language model: time comes first, and outputs are flat."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.layer = nn.Embedding(20, WIDTH), nn.GRU(WIDTH, WIDTH)
        self.last = nn.Linear(WIDTH, 20)

    def forward(self, ids: Tensor) -> Tensor:
        hidden, _ = self.layer(self.words(ids))
        return self.last(hidden).view(-1, 20)


def first_loss(outputs: Any, targets: Tensor) -> Tensor:
    return functional.mse_loss(outputs[0], targets)


def words_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets.flatten())


IDS = (drawn(7, SAMPLES) * 100).long().abs() % 20
PADDING = torch.arange(7) > torch.tensor([[6], [5], [4], [6], [3], [6]])

CASES: dict[str, tuple[type[nn.Module], tuple[Tensor, ...], Any, Tensor, Loss]] = {
    "recurrent": (Recurrent, (drawn(7, SAMPLES, WIDTH),), 1, drawn(7, SAMPLES, 3), first_loss),
    "translates": (
        Translates,
        # The mask has as many rows as there are samples.
        (drawn(7, 6, WIDTH), drawn(6, 6, WIDTH), torch.triu(torch.full((6, 6), -9.0), 1), PADDING),
        {"src": 1, "tgt": 1, "tgt_mask": None, "padding": 0},
        drawn(6, 6, WIDTH),
        functional.mse_loss,
    ),
    "words": (Words, (IDS,), 1, IDS, words_loss),
}


@pytest.mark.parametrize("name", CASES)
def test_samples_in_dimension_1_are_trained_and_inferred_exactly(name: str) -> None:
    kind, inputs, dims, targets, loss_fn = CASES[name]
    model = kind()
    alone = copy.deepcopy(model)
    axes = [dims] if isinstance(dims, int) else dims.values()
    pieces = [[x] * 3 if d is None else x.split(SIZE, d) for x, d in zip(inputs, axes, strict=True)]
    parts = [(SIZE, args) for args in zip(*pieces, strict=True)]
    with partitioned(model, inputs, batch_dims=dims, target_dims=1) as pipeline:
        found = pipeline.train_step(inputs, targets, loss_fn)
        assert torch.equal(found, plain_step(alone, parts, targets.split(SIZE, 1), loss_fn))
        assert_equal_gradients(pipeline, alone)
        outputs = pipeline(inputs)
        with torch.no_grad():
            apart, whole = [alone.eval()(*args) for _, args in parts], alone(*inputs)
    if name == "recurrent":
        assert torch.equal(outputs[0], torch.cat([y for y, _ in apart], 1))
        for i, state in enumerate(outputs[1]):
            assert torch.equal(state, torch.cat([states[i] for _, states in apart], 1))
    elif name == "translates":
        # Parameters that are sliced before they cross a boundary may take another kernel.
        torch.testing.assert_close(outputs, torch.cat(apart, 1), rtol=CLOSE, atol=CLOSE)
    else:
        rows = torch.cat([y.unflatten(0, (7, SIZE)) for y in apart], 1)
        assert torch.equal(outputs, rows.flatten(0, 1))
        torch.testing.assert_close(outputs, whole)


class Positions(nn.Module):
    """The table has a row for each position."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x) + table[: x.shape[1]]))


def test_a_later_batch_is_cut_by_the_rule_of_the_first() -> None:
    """It has as many samples as the table has rows, or is too short, or contradicts the rule."""
    model, table = Positions(), drawn(5, WIDTH)
    alone = copy.deepcopy(model)
    with partitioned(model, {"table": table, "x": drawn(SAMPLES, 4, WIDTH)}) as pipeline:
        assert pipeline.batch_dims == {"table": None, "x": 0}
        assert "micro-batches of 2 samples: table whole, x along dimension 0" in str(pipeline)
        for samples in (5, 3):
            x, targets = drawn(samples, 4, WIDTH), drawn(samples, 4, 3)
            parts = [(len(each), (each, table)) for each in x.split(SIZE)]
            found = pipeline.train_step({"x": x, "table": table}, targets, functional.mse_loss)
            expected = plain_step(alone, parts, targets.split(SIZE), functional.mse_loss)
            assert torch.equal(found, expected)
            with torch.no_grad():
                whole = torch.cat([alone(*args) for _, args in parts])
            assert torch.equal(pipeline(x, table), whole)
            assert pipeline.num_samples((x, table)) == samples
            assert [len(y) for y in pipeline.stream([(x, table)] * 2)] == [samples] * 2
        assert_equal_gradients(pipeline, alone)
        gradients = [p.grad.clone() for p in pipeline.parameters()]
        with pytest.raises(ValueError, match=r"'x' has shape \(\), but its samples are along"):
            pipeline.train_step({"x": torch.tensor(1.0), "table": table}, None, first_loss)
        with pytest.raises(ValueError, match="3 samples, but the targets hold 9"):
            pipeline.train_step((x, table), drawn(9), first_loss)
        assert all(
            torch.equal(p.grad, g) for p, g in zip(pipeline.parameters(), gradients, strict=True)
        )


class Detects(nn.Module):
    """A score for each image, which has a size of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, images: list[Tensor]) -> Tensor:
        return self.last(torch.stack([self.first(x).relu().mean((1, 2)) for x in images]))


def boxes_loss(outputs: Tensor, targets: Sequence[Tensor]) -> Tensor:
    return torch.stack(
        [(y - x.mean()).pow(2).mean() for y, x in zip(outputs, targets, strict=True)]
    ).mean()


def test_lists_of_images_and_ragged_targets_are_cut_between_samples() -> None:
    images = [drawn(3, 6, 6 + i // 2) for i in range(SAMPLES)]
    targets = [drawn(n, 4) for n in (3, 1, 4, 1, 5, 2)]
    model = Detects()
    alone = copy.deepcopy(model)
    pairs = [(2, (images[i : i + 2],)) for i in (0, 2, 4)]
    goals = [targets[i : i + 2] for i in (0, 2, 4)]
    with partitioned(model, (images,)) as pipeline:
        assert pipeline.batch_dims == {"images": "entries"}
        found = pipeline.train_step((images,), targets, boxes_loss)
        assert torch.equal(found, plain_step(alone, pairs, goals, boxes_loss))
        assert_equal_gradients(pipeline, alone)
        with torch.no_grad():
            expected = torch.cat([alone(*args) for _, args in pairs])
        assert torch.equal(pipeline((images,)), expected)


class GraphBatch:
    """Gives tensors by keys and as attributes, as the batches of torch_geometric do."""

    def __init__(self, num_graphs: int, **tensors: Tensor) -> None:
        self.num_graphs, self.tensors = num_graphs, tensors

    def __copy__(self) -> "GraphBatch":
        return GraphBatch(self.num_graphs, **self.tensors)

    def keys(self) -> list[str]:
        return list(self.tensors)

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def __setitem__(self, key: str, value: Tensor) -> None:
        self.tensors[key] = value

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self.__dict__["tensors"][name]
        except KeyError:
            raise AttributeError(name) from None


def graphs(*nodes: int) -> GraphBatch:
    of = torch.repeat_interleave(torch.arange(len(nodes)), torch.tensor(nodes))
    total = sum(nodes)
    edges = torch.stack([torch.arange(total), torch.arange(total).roll(1)])
    return GraphBatch(len(nodes), x=drawn(total, WIDTH), edge_index=edges, batch=of)


class Graphs(nn.Module):
    """Nodes, edges and graphs are not as many."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, data: GraphBatch) -> Tensor:
        source, target = data.edge_index
        h = torch.relu(self.first(data.x))
        h = h + torch.zeros_like(h).index_add(0, target, h[source])
        return self.last(torch.zeros(data.num_graphs, WIDTH).index_add(0, data.batch, h))


def test_a_batch_of_graphs_goes_whole_whatever_its_size() -> None:
    model = Graphs()
    alone = copy.deepcopy(model)
    with pytest.raises(VerificationError, match="num_microbatches=1"):
        skyfx.partition(model, ["cpu"], example_inputs=graphs(3, 4, 2))
    with partitioned(model, graphs(3, 4, 2), 1) as pipeline:
        assert set(pipeline.batch_dims.values()) == {None}
        for nodes in ((3, 4, 2), (9, 9, 9, 9), (3, 6)):  # as many nodes in two or in three graphs
            batch, targets = graphs(*nodes), drawn(len(nodes), 2)
            found = pipeline.train_step(batch, targets, functional.mse_loss)
            loss = functional.mse_loss(alone(batch), targets)
            loss.backward()
            assert torch.equal(found, loss)
            assert torch.equal(pipeline(batch), alone(batch))
        assert_equal_gradients(pipeline, alone)


class Pairs(nn.Module):
    """The similarity of each sample with each other, as CLIP has it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) @ self.last(x).T


def test_a_loss_beside_outputs_is_trained_with_and_inferred() -> None:
    class Penalised(Pairs):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.last(x)
            return self.first(x), h.pow(2).mean()

    model, x = Penalised(), drawn(5, WIDTH)
    with partitioned(model, drawn(SAMPLES, WIDTH)) as pipeline:
        pipeline.train_step(x, None, lambda outputs, _: outputs[0].mean() + outputs[1])
        outputs, penalty = pipeline(x)
    expected = model(x)
    torch.testing.assert_close(outputs, expected[0])
    torch.testing.assert_close(penalty, expected[1])  # of five samples, not of three micro-batches


def contrastive(outputs: Tensor, _: Any) -> Tensor:
    return functional.cross_entropy(outputs, torch.arange(len(outputs)))


def test_similarities_of_a_whole_batch_have_their_own_shape_and_loss() -> None:
    model = Pairs()
    alone = copy.deepcopy(model)
    with partitioned(model, drawn(SAMPLES, WIDTH), 1) as pipeline:
        for samples in (SAMPLES, 4, 9):  # also more than in the example
            x = drawn(samples, WIDTH)
            found, loss = pipeline.train_step(x, None, contrastive), contrastive(alone(x), None)
            loss.backward()
            assert torch.equal(found, loss)
            assert torch.equal(pipeline(x), alone(x))
        assert_equal_gradients(pipeline, alone)
