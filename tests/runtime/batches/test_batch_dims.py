"""One rule says where the samples of all batches are, whatever sizes the next batch has."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from skyfx.runtime.batches.batch_cutter import BatchCutter
from skyfx.runtime.batches.batch_dims import BatchDims
from skyfx.runtime.batches.microbatch import Batch

NAMES = ("x", "table", "h")


def learned(inputs: Any, asked: Any = None, size: int | None = 2) -> BatchCutter:
    batch = Batch.of(inputs)
    rule = BatchDims.of(asked, NAMES).candidates(batch.named_leaves)[0]
    return BatchCutter(rule, size)


def shapes(parts: Sequence[Batch]) -> list[list[tuple[int, ...]]]:
    return [[tuple(x.shape) for x in part.tensors] for part in parts]


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


def test_a_table_is_never_cut_even_if_a_later_batch_has_as_many_samples_as_it_has_rows() -> None:
    cutter = learned({"x": zeros(8, 5), "table": zeros(6, 5)})
    assert cutter.dims == {"x": 0, "table": None}
    parts = cutter.parts(Batch.of({"x": zeros(6, 5), "table": zeros(6, 5)}))
    assert shapes(parts) == [[(2, 5), (6, 5)]] * 3
    by_position = cutter.parts(Batch.of((zeros(5, 9), zeros(6, 5))))
    assert shapes(by_position) == [[(2, 9), (6, 5)], [(2, 9), (6, 5)], [(1, 9), (6, 5)]]


@pytest.mark.parametrize(
    ("inputs", "dims"),
    [
        ({"table": zeros(10, 4), "x": zeros(8, 4), "y": zeros(8)}, {"table": None, "x": 0, "y": 0}),
        ({"mask": zeros(1, 4), "ids": zeros(1, 4), "x": zeros(8, 4)}, {"x": 0}),
        ({"s": torch.tensor(3.0), "x": zeros(8)}, {"s": None, "x": 0}),
        (
            {
                "images": [zeros(3, 9, 9)] * 8,
                "ids": zeros(8, 2),
                "boxes": [zeros(i, 4) for i in range(8)],
            },
            {"images": "entries", "ids": 0, "boxes": "entries"},
        ),
        ({"maps": [zeros(8, 4), zeros(8, 2)]}, {"maps.0": 0, "maps.1": 0}),
        (zeros(1, 4), {"x": 0}),
    ],
)
def test_the_size_that_most_tensors_share_is_the_number_of_samples(
    inputs: Any, dims: dict[str, Any]
) -> None:
    assert learned(inputs).dims == dims


@pytest.mark.parametrize(
    ("asked", "inputs", "cut"),
    [
        (1, (zeros(7, 8, 4), zeros(7, 7)), [(7, 2, 4), (7, 7)]),
        ({"x": 1, "h": 1}, {"x": zeros(7, 8), "h": [zeros(1, 8)] * 2}, [(7, 2), (1, 2), (1, 2)]),
        ({0: 1, "table": None}, (zeros(7, 8), zeros(8, 3)), [(7, 2), (8, 3)]),
        ({"x.table": None}, ({"table": zeros(8), "rows": zeros(8)},), [(2,), (8,)]),
        ({"x": -1}, (zeros(3, 8),), [(3, 2)]),
        ({"x": "entries"}, ([zeros(8, 4)] * 8,), [(8, 4), (8, 4)]),
    ],
)
def test_a_caller_says_where_samples_are(
    asked: Any, inputs: Any, cut: list[tuple[int, ...]]
) -> None:
    parts = learned(inputs, asked).parts(Batch.of(inputs))
    assert len(parts) == 4
    assert sorted(shapes(parts)[0]) == sorted(cut)


def test_a_list_with_an_entry_for_each_sample_is_cut_between_its_entries() -> None:
    images = [torch.full((3, 4 + i), i) for i in range(5)]
    parts = learned(([zeros(3, 9)] * 8,), {"x": "entries"}).parts(Batch.of((images,)))
    found = [[int(x.max()) for x in part.restore()[0][0]] for part in parts]
    assert found == [[0, 1], [2, 3], [4]]
    assert [part.batch_size for part in parts] == [2, 2, 1]


def test_what_an_earlier_batch_had_not_is_decided_when_it_is_seen() -> None:
    cutter = learned({"x": zeros(8, 5)})
    cutter.parts(Batch.of({"x": zeros(8, 5), "labels": zeros(8), "table": zeros(6)}))
    assert cutter.dims == {"x": 0, "labels": 0, "table": None}
    parts = cutter.parts(Batch.of({"x": zeros(6, 5), "labels": zeros(6), "table": zeros(6)}))
    assert shapes(parts) == [[(2, 5), (2,), (6,)]] * 3
    # A single row is for all samples of a batch.
    assert shapes(cutter.parts(Batch.of({"x": zeros(4, 5), "labels": zeros(1)})))[1] == [
        (2, 5),
        (1,),
    ]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": zeros(8), "h": zeros(7)}, "'x' holds 8 samples, but 'h' holds 7: give as many"),
        ({"x": torch.tensor(1.0), "table": zeros(8)}, r"'x' has shape \(\), but its samples are"),
        ({"x": zeros(0, 5), "table": zeros(1)}, "holds 0 samples, expected at least 1"),
        ({"table": zeros(6)}, "nothing is cut into samples: say what in batch_dims"),
    ],
)
def test_a_batch_that_contradicts_the_rule_is_refused(inputs: Any, message: str) -> None:
    cutter = learned({"x": zeros(8, 5), "table": zeros(6), "h": zeros(8)})
    with pytest.raises(ValueError, match=message) as refused:
        cutter.parts(Batch.of(inputs))
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("asked", [True, "entries", 1.5, {"x": "rows"}, [0]])
def test_what_is_no_dimension_is_refused(asked: Any) -> None:
    with pytest.raises(ValueError, match=r"batch_dims is .*, expected a dimension, or a dict"):
        BatchDims.of(asked)


def test_nothing_is_cut_where_there_is_one_microbatch() -> None:
    cutter = learned({"x": zeros(8, 5), "table": zeros(6)}, size=None)
    graph = Batch.of({"x": zeros(12, 5), "edges": zeros(2, 30), "table": zeros(6), "y": zeros(3)})
    assert cutter.parts(graph) == [graph]
    (targets,) = cutter.target_parts(zeros(3), [graph])
    assert targets.tensors[0].shape == (3,)
    assert cutter.dims == {"x": None, "table": None}


def targets_of(asked: Any, targets: Any, inputs: Any = None, dims: Any = None) -> Any:
    inputs = (zeros(8, 4),) if inputs is None else inputs
    cutter = learned(inputs, dims)
    cutter.targets = None if asked is None else BatchDims.of_targets(asked)
    parts = cutter.parts(Batch.of(inputs))
    return [goal.restore()[1]["targets"] for goal in cutter.target_parts(targets, parts)]


def test_targets_are_cut_like_the_batch() -> None:
    assert targets_of(None, None) == [None] * 4
    assert [len(x) for x in targets_of(None, zeros(8))] == [2] * 4
    ragged = [torch.arange(n) for n in (3, 1, 4, 1, 5, 9, 2, 6)]
    assert [[len(x) for x in goal] for goal in targets_of(None, ragged)] == [
        [3, 1],
        [4, 1],
        [5, 9],
        [2, 6],
    ]
    both = targets_of(None, {"class_weights": zeros(10), "boxes": ragged, "y": zeros(8)})
    assert [len(both[0][name]) for name in ("class_weights", "boxes", "y")] == [10, 2, 2]
    labels = targets_of(None, {"y": zeros(8), "texts": list("abcdefgh"), "steps": [0.5, 1.0]})
    assert [x["texts"] for x in labels] == [["a", "b"], ["c", "d"], ["e", "f"], ["g", "h"]]
    assert all(x["steps"] == [0.5, 1.0] for x in labels)
    assert targets_of(None, [*range(8)]) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert targets_of(None, ["a", 1] * 4) == [["a", 1] * 4] * 4
    with pytest.raises(ValueError, match=r"give a tensor \(torch.as_tensor\)"):
        targets_of(None, zeros(8).numpy())
    heads = targets_of(None, (zeros(8), zeros(8, 3)))
    assert [tuple(x.shape) for x in heads[0]] == [(2,), (2, 3)]


def test_targets_lie_as_their_caller_says() -> None:
    long = (zeros(7, 8, 4),)
    assert targets_of(1, zeros(8, 8), long, 1)[0].shape == (8, 2)
    assert targets_of(None, zeros(7, 8), long, 1)[0].shape == (7, 2)
    assert targets_of({"y": 1}, {"y": zeros(7, 8), "z": zeros(8)}, long, 1)[0]["y"].shape == (7, 2)
    assert [len(x) for x in targets_of("entries", [zeros(8)] * 8)[0]] == [8, 8]
    with pytest.raises(ValueError, match="may be along dimension 0 or 1: say which by target_dims"):
        targets_of(None, zeros(8, 8), long, 1)
    with pytest.raises(
        ValueError, match=r"8 samples, but the targets have shape \(9,\): give a ta"
    ):
        targets_of(None, zeros(9))


def test_the_first_targets_decide_for_all() -> None:
    cutter = learned((zeros(8, 4),))
    parts = cutter.parts(Batch.of(zeros(8, 4)))
    cutter.target_parts({"y": zeros(8), "class_weights": zeros(6)}, parts)
    short = cutter.parts(Batch.of(zeros(6, 4)))
    goals = cutter.target_parts({"y": zeros(6), "class_weights": zeros(6)}, short)
    assert [len(goal.restore()[1]["targets"]["class_weights"]) for goal in goals] == [6] * 3
    with pytest.raises(ValueError, match="the batch holds 6 samples, but the targets hold 5"):
        cutter.target_parts({"y": zeros(5), "class_weights": zeros(6)}, short)
