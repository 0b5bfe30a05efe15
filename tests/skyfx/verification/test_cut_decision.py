"""Where the samples of a batch are is decided by what its parts give, together and apart."""

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from skyfx.runtime.batches.microbatch import Batch
from skyfx.runtime.batches.output_joins import OutputJoin
from skyfx.solver.errors import VerificationError
from skyfx.verification.cut_decision import BatchCut, batch_rule, decide

TWO, WIDTH = ["cpu", "cpu"], 8


def cut(
    model: nn.Module, inputs: Any, asked: Any = None, number: int = 4, *, training: bool = True
) -> BatchCut:
    batch = Batch.of(inputs)
    return decide(model, batch, batch_rule(model, batch, asked), number, training=training)


def refusal(model: nn.Module, inputs: Any, asked: Any = None, *, training: bool = True) -> str:
    with pytest.raises(VerificationError, match="cannot be computed in micro-batches") as refused:
        cut(model, inputs, asked, training=training)
    cut(model, inputs, asked, 1)  # the cure that always works
    text = str(refused.value)
    assert "num_microbatches=1" in text
    assert len(text.splitlines()) <= 3
    return text


class Does(nn.Module):
    """Whatever a test says, between two linear layers."""

    def __init__(self, between: Callable[[Tensor], Any] = lambda h: h) -> None:
        super().__init__()
        self.first, self.last, self.between = (
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, WIDTH),
            between,
        )

    def forward(self, x: Tensor) -> Any:
        return self.between(self.last(torch.tanh(self.first(x))))


class Positions(nn.Module):
    """The table has a row for each position."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x) + table[: x.shape[1]]))


class Images(nn.Module):
    """Each image has a size of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, images: list[Tensor]) -> Tensor:
        return self.last(torch.stack([self.first(x).relu().mean((1, 2)) for x in images]))


class TextsAndImages(nn.Module):
    """The similarity of each text with each image, as CLIP has it."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.patches = nn.Embedding(20, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        similar = self.words(ids).sum(1) @ self.patches(pixels).T
        return similar, similar.T


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


class Graphs(nn.Module):
    """Nodes, edges and graphs are not as many."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        source, target = edge_index
        h = torch.relu(self.first(x))
        h = h + torch.zeros_like(h).index_add(0, target, h[source])
        return self.last(torch.zeros(len(h), WIDTH).index_add(0, batch, h))[:3]


ROWS = torch.randn(8, 5, WIDTH, generator=torch.Generator().manual_seed(0))
IMAGES = [torch.linspace(-1, 1, 27 * (9 + i)).reshape(3, 9, 9 + i) for i in range(8)]
IDS = torch.arange(40).reshape(8, 5) % 20
GRAPH = (torch.ones(12, 4), torch.arange(40).reshape(2, 20) % 12, torch.arange(12) // 4)


def transformer() -> nn.Transformer:
    torch.manual_seed(0)
    with warnings.catch_warnings(action="ignore"):  # that it might be faster
        return nn.Transformer(WIDTH, 2, 1, 1, 16, dropout=0.0)


def test_a_table_comes_first_or_has_other_rows() -> None:
    model = Positions()
    assert cut(model, {"table": ROWS[0].new_ones(10, WIDTH), "x": ROWS}).rule.found == {
        "table": None,
        "x": 0,
    }
    found = cut(model, (ROWS, torch.ones(6, WIDTH)))
    assert (found.rule.found, found.size) == ({"x": 0, "table": None}, 2)
    assert found.off == 0


def test_a_table_with_as_many_rows_as_samples_is_refused_with_what_to_say() -> None:
    inputs = {"x": torch.ones(8, 8, WIDTH), "table": torch.ones(8, WIDTH)}
    assert "test_cut_decision.py:" in refusal(Positions(), inputs)
    assert "pass batch_dims={'table': None}" in refusal(Positions(), inputs)
    assert cut(Positions(), inputs, {"table": None}).is_seen


@pytest.mark.parametrize("number", [8, 3])
def test_a_list_of_images_is_cut_between_them(number: int) -> None:
    assert cut(Images(), (IMAGES[:number],)).rule.found == {"images": "entries"}


@pytest.mark.parametrize("training", [True, False])
def test_similarities_of_each_with_each_are_refused(training: bool) -> None:
    text = refusal(TextsAndImages(), {"ids": IDS, "pixels": ROWS[:, 0]}, training=training)
    assert (
        "output 0 of 2 + 2 samples together has shape (4, 4), and (2, 2) and (2, 2) apart" in text
    )
    few = cut(TextsAndImages(), {"ids": IDS[:3], "pixels": ROWS[:, 0]}, {"ids": None})
    assert [join and join.dim for join in few.joins.seen] == [1, 0]


@pytest.mark.parametrize(
    ("between", "says"),
    [
        (lambda h: h - h.mean(0), "output 0 of 2 + 2 samples together differs from that apart by"),
        (lambda h: torch.softmax(h, 0), "output 0 of 2 + 2 samples together differs from that"),
        (lambda h: h.mean(0), "but not the same: there is nothing to join"),
        (lambda h: h.argsort(0), "output 0 of 2 + 2 samples together differs"),
    ],
)
def test_a_model_that_mixes_samples_is_refused(between: Any, says: str) -> None:
    text = refusal(Does(between), ROWS[:, 0])
    assert says in text
    assert "Either forward mixes samples" in text


def test_outputs_in_a_list_of_samples_can_be_trained_beside_and_not_joined() -> None:
    model = Does(lambda h: {"h": h, "of_each": tuple(h.unbind())})
    assert [join and join.dim for join in cut(model, ROWS[:, 0]).joins.seen] == [0] + [None] * 4
    assert "other outputs together than apart" in refusal(model, ROWS[:, 0], training=False)
    assert "other outputs together" in refusal(Does(lambda h: tuple(h.unbind())), ROWS[:, 0])


class Embeds(nn.Module):
    """Each word less the mean of all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.last = nn.Embedding(4, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.words(ids)
        return self.last(h - h.mean(0))


def test_mixing_shows_where_all_samples_of_the_example_are_alike() -> None:
    model, example = Does(lambda h: h - h.mean(0)), torch.zeros(8, WIDTH)
    assert "differs from that apart" in refusal(model, example)
    assert "differs from that apart" in refusal(Embeds(), torch.zeros(8, 5, dtype=torch.long))
    assert cut(Does(), example).is_seen
    only = nn.Embedding(1, WIDTH)  # it has no other word
    assert cut(only, torch.zeros(8, 5, dtype=torch.long)).is_seen
    assert not example.any()


def test_a_loss_beside_outputs_is_joined_by_its_mean_if_it_is_one() -> None:
    squared = cut(Does(lambda h: (h, h.pow(2).mean())), ROWS[:, 0], training=False)
    assert squared.joins.seen == (OutputJoin(0), OutputJoin(None))
    assert OutputJoin(None)([torch.tensor(1.0), torch.tensor(4.0)], [2, 1]) == 2
    for between in (lambda h: (h, h.mean(0)), lambda h: (h, h.mean(0).pow(2).sum())):
        trained = cut(Does(between), ROWS[:, 0])
        assert trained.joins.seen == (OutputJoin(0), None)
        assert "nothing to join" in refusal(Does(between), ROWS[:, 0], training=False)
    assert not cut(Does(lambda h: h.pow(2).mean()), ROWS[:, 0]).fault


@pytest.mark.parametrize(
    ("model", "inputs", "says"),
    [
        (nn.LSTM(WIDTH, 4), ROWS, "batch_dims=1"),
        (nn.LSTM(WIDTH, 4), ROWS.repeat(1, 2, 1)[:, :8], "batch_dims=1"),
        (transformer(), {"src": ROWS, "tgt": ROWS[:4]}, "batch_dims=1"),
        (
            transformer(),
            {"src": ROWS, "tgt": ROWS[:4], "src_key_padding_mask": torch.zeros(5, 8).bool()},
            "batch_dims={'src': 1, 'tgt': 1, 'src_key_padding_mask': 0}",
        ),
    ],
)
def test_samples_in_dimension_1_are_refused_with_what_to_say(
    model: nn.Module, inputs: Any, says: str
) -> None:
    text = refusal(model, inputs)
    assert f"pass {says}, or use" in text
    asked = eval(says.removeprefix("batch_dims="))
    found = cut(model, inputs, asked)
    assert {join and join.dim for join in found.joins.seen} == {1}


def test_a_graph_is_refused_and_goes_whole() -> None:
    assert "a part of it fails, at " in refusal(Graphs(), GRAPH)
    assert cut(Graphs(), GRAPH, number=1).size is None


class Counts(Does):
    """Each call gives something else."""

    calls = 0

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        return super().forward(x) * self.calls


def test_a_model_is_as_before_and_what_varies_in_eval_mode_is_not_judged() -> None:
    model = Counts()
    assert cut(model, ROWS[:, 0]).is_seen  # each call begins with the same state
    assert model.calls == 0
    assert not cut(Counts(lambda h: h - h.mean(0)), ROWS[:, 0]).is_seen
    assert not cut(Does(lambda h: h + torch.randn(len(h), 1)), ROWS[:, 0]).is_seen
    assert not cut(Does(drawn_and_put_back), ROWS[:, 0]).is_seen
    numbers = itertools.count(1)
    assert not cut(Does(lambda h: h * next(numbers)), ROWS[:, 0]).is_seen


def drawn_and_put_back(h: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        return h + torch.randn(len(h), 1)


class Observes(Does):
    """Rounds to a grid of the range that it has seen, as quantisation-aware training does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("largest", torch.ones(()))

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        self.largest.lerp_(y.detach().abs().max(), 0.01)  # type: ignore[operator]
        step = self.largest / 64
        return y + ((y / step).round() * step - y).detach()  # type: ignore[operator]


def test_state_that_moves_in_eval_mode_is_no_mixing_of_samples() -> None:
    torch.manual_seed(0)  # with other weights it is off by no more than rounding
    found = cut(Observes(), torch.linspace(-1, 1, 8 * WIDTH).reshape(8, WIDTH))
    assert (found.off, found.fault, found.size) == (0.0, "", 2)


def test_an_argument_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="names 'tabel', which is no argument: there are x, table"):
        batch_rule(Positions(), Batch.of((ROWS, ROWS)), {"tabel": None})
    with pytest.raises(
        ValueError, match="no tensor of the batch has a dimension 3 to be cut along"
    ):
        cut(Does(), ROWS, 3)
