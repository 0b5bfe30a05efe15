"""What forward leaves on modules is there for the loss, as in plain torch, gradient included."""

import copy
import time
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

import skyfx
from skyfx.runtime.execution.assigned_attributes import AssignedAttributes
from skyfx.runtime.execution.stage import Stage
from skyfx.solver.errors import CaptureError, VerificationError
from skyfx.tracing.capture import capture
from tests.support import attribute_models
from tests.support.attribute_models import (
    BATCH,
    KINDS,
    SIZE,
    TARGETS,
    WIDTH,
    Layers,
    partitioned,
)


@pytest.mark.parametrize("kind", KINDS)
def test_training_reads_what_forward_leaves(kind: type[Layers]) -> None:
    model = kind()
    plain = attribute_models.unsplit(model)
    with partitioned(model) as pipeline:
        found = attribute_models.pipeline_steps(pipeline, model, 3)
        assert found == attribute_models.plain_steps(plain, 3)
        assert attribute_models.attributes(model) == attribute_models.attributes(plain)
        outputs = pipeline(BATCH)
        plain.eval()
        with torch.no_grad():
            expected = torch.cat([plain(x) for x in BATCH.split(SIZE)])
        assert torch.equal(outputs, expected)
        assert attribute_models.attributes(model) == attribute_models.attributes(plain)
    copy.deepcopy(model)


class Turned(Layers):
    """Keeps and returns tensors whose numbers are not in the order of their dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        self.turned = self.first(x).mT
        return self.last(torch.tanh(self.turned.mT)).mT

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        weights = targets.reshape(outputs.shape)
        return (outputs * weights).sum() + (self.turned * weights).sum()


def test_gradients_of_the_loss_have_the_layout_that_it_gives_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in plain torch, where operators then add them up in the same order."""
    model, own, seen = Turned(), Stage.backward, list[bool]()

    def backward(stage: Stage, microbatch: int, gradients: Any) -> Any:
        seen.extend(x.is_contiguous() for x in gradients if x is not None)
        return own(stage, microbatch, gradients)

    monkeypatch.setattr(Stage, "backward", backward)
    assert not model(BATCH[:SIZE]).is_contiguous()
    with skyfx.partition(
        model, ["cpu"], example_inputs=BATCH, num_microbatches=4, check="off"
    ) as pipeline:
        seen.clear()  # of measuring
        pipeline.train_step(BATCH, TARGETS, model.loss)
    assert seen == [True] * 2 * 4
    assert model.turned.grad is None
    copy.deepcopy(model)


num_calls = 0


class Global(Layers):
    def between(self, h: Tensor) -> Tensor:
        global num_calls
        num_calls += 1
        return h


def test_a_global_is_counted_once_for_each_micro_batch() -> None:
    global num_calls
    num_calls = 3
    model = Global()
    with partitioned(model) as pipeline:
        assert num_calls == 3
        pipeline.train_step(BATCH, BATCH, model.loss)
        assert num_calls == 3 + attribute_models.NUM_MICROBATCHES


class EachHundredth(Layers):
    """Reads what it counts."""

    calls = 0

    def between(self, h: Tensor) -> Tensor:
        self.calls += 1
        return h * 2 if self.calls % 100 == 0 else h


class LastTen(Layers):
    """Reads how much it has kept."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[float] = []

    def between(self, h: Tensor) -> Tensor:
        self.log.append(h.detach().mean().item())
        assert self.log[-1] < 1
        if len(self.log) > 10:
            self.log.pop(0)
        return h


class LastTenOfName(Layers):
    """The same of a list in a dict, which it makes in its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.log: dict[str, list[Tensor]] = {}

    def between(self, h: Tensor) -> Tensor:
        kept = self.log.setdefault("mean", [])
        kept.append(h.detach().mean())
        return h if len(kept) < 10 else h * 2


class ScalesInList(Layers):
    """Writes in place to a tensor that no module has itself."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = [torch.ones(WIDTH)]

    def between(self, h: Tensor) -> Tensor:
        self.scales[0].mul_(0.9)
        return h * self.scales[0].clone()


class Timed(Layers):
    """Notes how long it takes."""

    def between(self, h: Tensor) -> Tensor:
        began = time.perf_counter()
        h = h * 2
        self.took = time.perf_counter() - began
        return h


class ReturnsCount(attribute_models.Counting):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), self.total


class Largest(Layers):
    """Keeps the largest number so far: the same batch again leaves it as it is."""

    largest = -1.0

    def between(self, h: Tensor) -> Tensor:
        self.largest = max(self.largest, h.detach().max().item())
        return h


class Starting(Layers):
    """Its state begins as nothing."""

    state: Tensor | None = None

    def between(self, h: Tensor) -> Tensor:
        self.state = h.detach() if self.state is None else h.detach() + self.state
        return h + self.state


class FirstBatch(Layers):
    """Normalises by what its first batch had."""

    scale: Tensor | None = None

    def between(self, h: Tensor) -> Tensor:
        if self.scale is None:
            self.scale = h.detach().std()
        return h / self.scale


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (EachHundredth, r"changes 'calls' \(1, then 2\) at .*:\d+.* in a buffer"),
        (LastTen, r"changes 'log' \(.*\) at .*:\d+.* in a buffer"),
        (LastTenOfName, r"changes 'log' \(.*\) at .*:\d+.* in a buffer"),
        (ScalesInList, r"writes in place to a tensor in 'scales' at .*:\d+.*\n.* of its own"),
        (Timed, r"leaves 'took' .* at .*:\d+, which differs from call to call.*\nTake it out"),
        (ReturnsCount, r"changes 'total' \(1, then 2\) at .*:\d+.* in a buffer"),
        (Largest, r"changes 'largest' .* at .*:\d+ .* in a buffer"),
        (Starting, r"changes 'state' \(a tensor of shape \(2, 8\), then .*\) at .*:\d+.*_buffer"),
        (FirstBatch, r"keeps 'scale' of its first call at .*:\d+.*: call the model once"),
    ],
)
def test_what_the_next_call_depends_on_is_refused(kind: type[Layers], message: str) -> None:
    model = kind()
    before = attribute_models.attributes(model)
    with pytest.raises(CaptureError, match=message) as refused:
        capture(model, BATCH[:SIZE])
    assert len(str(refused.value).splitlines()) <= 3
    assert attribute_models.attributes(model) == before


def test_a_computed_number_among_the_outputs_is_refused() -> None:
    class ReturnsNumber(Layers):
        def __init__(self) -> None:
            super().__init__()
            self.noting = attribute_models.Logging.Noting()

        def forward(self, x: Tensor) -> Any:
            return super().forward(self.noting(x)), self.noting.norms["last"]

    with pytest.raises(CaptureError, match="forward returns a number that it counts up, or"):
        skyfx.partition(ReturnsNumber(), ["cpu"], example_inputs=BATCH, num_microbatches=4)


def test_a_call_before_is_the_cure_for_what_the_first_batch_leaves() -> None:
    model = FirstBatch()
    model(BATCH)
    plain = attribute_models.unsplit(model)
    with partitioned(model) as pipeline:
        found = attribute_models.pipeline_steps(pipeline, model, 1)
    assert found == attribute_models.plain_steps(plain, 1)


def test_a_buffer_is_the_cure_for_a_count_that_forward_reads() -> None:
    class EachThird(Layers):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))

        def between(self, h: Tensor) -> Tensor:
            self.calls += 1
            return h * 2 if self.calls % 3 == 0 else h

    model = EachThird()
    plain = attribute_models.unsplit(model)
    with partitioned(model) as pipeline:
        found = attribute_models.pipeline_steps(pipeline, model, 2)
    assert found == attribute_models.plain_steps(plain, 2)
    assert model.calls == plain.calls


def test_refused_buffers_are_plain_tensors_again() -> None:
    class Both(Starting, attribute_models.Recurrent):
        def between(self, h: Tensor) -> Tensor:
            return Starting.between(self, attribute_models.Recurrent.between(self, h))

    model = Both()
    with pytest.raises(CaptureError):
        capture(model, BATCH[:SIZE])
    assert "ema" in vars(model)
    assert dict(model.named_buffers()).keys() == {"mean"}


def test_a_gradient_that_an_attribute_would_lose_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    leave = AssignedAttributes.leave

    def leave_detached(
        self: AssignedAttributes, model: nn.Module, tensors: Any, *made: Any
    ) -> None:
        leave(self, model, [x.detach() for x in tensors], *made)

    monkeypatch.setattr(AssignedAttributes, "leave", leave_detached)
    with pytest.raises(VerificationError, match=r"'(first|moe)\..*' has another gradient"):
        partitioned(attribute_models.Mixture())


def test_a_buffer_that_forward_registers_is_made_for_each_shape() -> None:
    class Lazy(Layers):
        def between(self, h: Tensor) -> Tensor:
            if not hasattr(self, "table") or self.table.shape[0] < h.shape[1]:
                self.register_buffer("table", torch.arange(h.shape[1]).float()[:, None], False)
            return h * self.table[: h.shape[1]]

    model, longer = Lazy(), torch.linspace(-1, 1, 4 * 9 * 8).reshape(4, 9, 8)
    with skyfx.partition(model, ["cpu", "cpu"], example_inputs=longer[:, :5]) as pipeline:
        assert not hasattr(model, "table")
        for x in (longer[:, :5], longer, longer[:, :3]):
            with torch.no_grad():
                assert torch.equal(pipeline(x), torch.cat([Lazy().eval()(y) for y in x.split(1)]))


def test_modules_that_a_first_call_replaces_stay_so() -> None:
    class Short(nn.Linear):
        pass

    class Changing(Layers):
        """Takes another module for its own, as BigBird does for short sequences."""

        kind, draws = "long", False

        def between(self, h: Tensor) -> Tensor:
            if self.kind == "long":
                self.kind = "short"
                made = Short if self.draws else partial(skip_init, Short)
                short = made(WIDTH, WIDTH)
                short.weight, short.bias = self.inner.weight, self.inner.bias
                self.inner = short
            return h if isinstance(self.inner, Short) else h / 0

    model, plain = Changing(), Changing()
    with partitioned(model) as pipeline:
        found = attribute_models.pipeline_steps(pipeline, model, 2)
    assert found == attribute_models.plain_steps(plain, 2)
    assert model.kind == "short"
    assert isinstance(model.inner, Short)
    assert torch.equal(model(BATCH), plain(BATCH))
    drawing = Changing()
    drawing.draws = True
    with pytest.raises(CaptureError, match=r"'inner' in its first call.*\nCall the model once"):
        capture(drawing, BATCH[:SIZE])
    assert drawing.kind == "long"
    drawing(BATCH)
    capture(drawing, BATCH[:SIZE])


def test_caches_by_shape_are_filled_and_read() -> None:
    class Padded(Layers):
        """Keeps where the padding is, and a table, for each length."""

        def __init__(self) -> None:
            super().__init__()
            self.inside: dict[str, Any] = {}
            self.tables: dict[int, Tensor] = {}

        def between(self, h: Tensor) -> Tensor:
            length = h.shape[1]
            if length not in self.tables:
                self.inside[str(length + 2)] = (Ellipsis, slice(1, -1), slice(None))
                self.tables[length] = torch.arange(length).float()[:, None]
            h = nn.functional.pad(h, (0, 0, 1, 1)).cumsum(1)
            return h[self.inside[str(h.shape[1])]] * self.tables[length]

    model, plain = Padded(), Padded().eval()
    x = torch.linspace(-1, 1, 4 * 9 * 8).reshape(4, 9, 8)
    with skyfx.partition(model, ["cpu", "cpu"], example_inputs=x[:, :5]) as pipeline:
        for part in (x[:, :5], x, x[:, :5]):
            with torch.no_grad():
                assert torch.equal(pipeline(part), torch.cat([plain(y) for y in part.split(1)]))
            assert model.inside == plain.inside
