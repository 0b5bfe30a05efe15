"""The sweep over other people's models says right, wrong, refused and ugly where that is so."""

import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.coverage import check_model, others
from benchmarks.coverage.check_model import KINDS, Result, check
from benchmarks.coverage.document import sections
from benchmarks.coverage.plain_torch import Differences, PlainModel
from benchmarks.coverage.printed import Printed
from benchmarks.coverage.tiny_models import Subject
from skyfx.runtime.pipeline import Pipeline


def checked(name: str) -> Result:
    with Printed() as printed:
        return check("others", name, printed)


def added(monkeypatch: pytest.MonkeyPatch, model: type[nn.Module]) -> str:
    recipe = (model, lambda: torch.randn(4, 8))
    monkeypatch.setattr(others, "MODELS", {"plain new": recipe})
    return "plain new"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.dropout(self.first(x), 0.5, self.training))


class Mixes(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


class Seeds(Net):
    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(1)
        return super().forward(x + torch.randn(8))


class Talks(Net):
    """Says something, but not to plain torch."""

    def forward(self, x: Tensor) -> Tensor:
        if type(x) is not Tensor:
            os.write(1, b"captured!\n")
        return super().forward(x)


class Fails(Net):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("not even alone")


def test_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    right = checked(added(monkeypatch, Net))
    assert (right.runs_eagerly, right.kind, right.num_microbatches) == (True, "right", 2)
    assert (right.num_stages, right.whole, right.printed, right.random) == (3, [], "", "")
    mixing = checked(added(monkeypatch, Mixes))
    assert (mixing.kind, mixing.num_microbatches, mixing.unsaid) == ("right", 1, "")
    refused = checked(added(monkeypatch, Seeds))
    assert refused.kind == "refused"
    assert "VerificationError" in refused.reason
    assert checked(added(monkeypatch, Talks)).printed == "captured!"
    assert not checked(added(monkeypatch, Fails)).runs_eagerly


def test_a_pipeline_that_does_otherwise_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    name, step = added(monkeypatch, Net), Pipeline.train_step

    def other_batch(pipeline: Pipeline, batch: Tensor, *rest: Any) -> Tensor:
        return step(pipeline, batch + 1e-3, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(check_model, "partition", unlike(check_model.partition, other_batch))
        found = checked(name)
    assert found.kind == "wrong"
    assert found.reason.startswith("training, batch 0: outputs differ")


def unlike(partition: Any, step: Any) -> Any:
    """A partition whose pipelines train otherwise once they are handed over."""

    def partitioned(*args: Any, **options: Any) -> Pipeline:
        pipeline = partition(*args, **options)
        kind = type("Unlike", (Pipeline,), {"train_step": step})
        pipeline.__class__ = kind
        return pipeline  # type: ignore[no-any-return]

    return partitioned


def test_differences_of_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject("others", added(monkeypatch, Net))
    first, second = (PlainModel(subject).train_step(subject.batch(k), 2, 0) for k in (0, 1))
    assert Differences(first, first).worst() == ("right", "")
    assert Differences(first, second).worst()[0] == "wrong"
    first.gradients.pop("last.bias")
    assert Differences(first, second).worst() == (
        "wrong",
        "last.bias has a gradient in plain torch only",
    )


def test_the_document_counts_kinds() -> None:
    rows = []
    names = (name for name in others.MODELS if name.startswith("plain"))
    for kind, name in zip(KINDS, names, strict=False):
        result = Result("others", name, runs_eagerly=True, kind=kind, reason=kind)
        rows.append({name: getattr(result, name) for name in Result.__slots__})
    assert "| plain | 5 | 1 | 20.0 % | 1 | 1 | 1 | 1 | 1 |" in sections(rows)["## Other packages"]
