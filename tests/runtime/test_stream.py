"""A stream of batches gives what each batch alone gives, in order, two batches at a time."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from skyfx.solver.errors import StageError
from tests.support import models, unsplit_reference
from tests.support.models import BATCH, failing
from tests.support.plans import SIZE, split_evenly


def batches(case: models.Case) -> Iterator[Any]:
    """Five, the last of which is short."""
    for i in range(5):
        rows = torch.arange(BATCH if i < 4 else SIZE + 1)
        yield {name: x[(rows + i) % BATCH] for name, x in case.batch.items()}


@pytest.mark.parametrize("num_devices", [1, 3])
def test_a_stream_gives_what_each_batch_gives(num_devices: int) -> None:
    case = models.bert()
    with split_evenly(case, num_devices) as pipeline:
        expected = [unsplit_reference.tensors(pipeline(batch)) for batch in batches(case)]
        found = [unsplit_reference.tensors(outputs) for outputs in pipeline.stream(batches(case))]
    assert len(found) == len(expected) == 5
    for ours, theirs in zip(found, expected, strict=True):
        assert all(map(torch.equal, ours, theirs))


def test_batches_are_taken_as_they_are_needed() -> None:
    case = models.bert()
    taken = 0

    def counted() -> Iterator[Any]:
        nonlocal taken
        for batch in batches(case):
            taken += 1
            yield batch

    with split_evenly(case) as pipeline:
        seen = [taken for _ in pipeline.stream(counted())]
    assert seen == [2, 3, 4, 5, 5]


def test_other_calls_wait_for_its_end_or_close() -> None:
    case = models.bert()
    with split_evenly(case) as pipeline:
        stream = pipeline.stream(batches(case))
        first = next(stream)
        with pytest.raises(RuntimeError, match="a stream of this pipeline is under way"):
            pipeline(case.batch)
        stream.close()
        assert torch.equal(pipeline(next(batches(case))).logits, first.logits)
        loss = pipeline.train_step(case.batch, case.targets, case.loss_fn)
        assert loss.isfinite()


def test_a_failure_comes_after_what_was_before_it() -> None:
    case = failing()
    good, bad = case.batch, torch.full_like(case.batch, 9)
    with split_evenly(case, 2) as pipeline:
        expected = pipeline(good)
        stream = pipeline.stream([good, good, bad, good])
        assert torch.equal(next(stream), expected)
        assert torch.equal(next(stream), expected)
        with pytest.raises(StageError, match="IndexError"):
            next(stream)
        assert torch.equal(pipeline(good), expected)
