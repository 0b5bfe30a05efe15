"""Lines of a model's own forward that depend on values stay whole, for any later batch."""

import functools
from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from skyfx.runtime.batches.microbatch import Batch
from skyfx.tracing.capture import capture
from skyfx.tracing.leaves.forward_lines import ForwardCode
from skyfx.tracing.leaves.leaf_calls import leaf_of
from tests.support import unsplit_reference
from tests.support.models import BATCH, Case
from tests.support.plans import SIZE, split_evenly
from tests.support.unsplit_reference import assert_equal_gradients

WIDTH = 6
seen: list[float] = []


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)


class Packed(Base):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        h = self.first(x)
        packed = pack_padded_sequence(h, lengths, batch_first=True, enforce_sorted=False)
        y, (state, _) = self.lstm(packed)
        y, _ = pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])
        y = torch.tanh(y)
        return self.last(y + state[-1][:, None])


class Experts(Base):
    """Each sample goes to one expert, and some experts get none."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 4)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        chosen = self.gate(h).argmax(-1)
        y = torch.zeros_like(h)
        for i, expert in enumerate(self.experts):
            rows = (chosen == i).nonzero().flatten()
            if len(rows) == 0:
                continue
            y[rows] = y[rows] + expert(h[rows])
        return self.last(y) + h


class Logs(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        seen.append(h.mean().item())
        return self.last(torch.tanh(h))


class UsesNumber(Base):
    """A number is computed, and used two lines later."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        largest = h.abs().max().item()
        h = torch.tanh(h)
        h = h / largest
        return self.last(torch.sigmoid(h))


class InLoop(Base):
    def forward(self, x: Tensor, more: bool = True) -> Tensor:
        h = self.first(x)
        for i in range(2):
            if more and h.sum() > 0:
                h = h * 2
                h = torch.tanh(h)
            h = h + i
        return self.last(h)


class Doubles(Base):
    """For other values, such as zeros, its loop has no end."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).abs() + 0.1
        while h.max() < 9:
            h = h * 2
        return self.last(torch.tanh(h))


class Returns(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        if h.sum() > 0:
            return self.last(h)
        h = h @ self.last.weight
        return h


class FillsList(Base):
    def forward(self, x: Tensor) -> Tensor:
        h, parts = self.first(x), []
        for row in h:
            if row.sum() > 0:
                parts.append(row)
            else:
                parts.append(-row)
        return self.last(torch.stack(parts))


class Selects(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        positive = h[h[:, 0] > 0]
        mean = positive.sum(0) / (1 + len(positive))
        return self.last(torch.tanh(h + mean))


def twice(scale: float) -> Callable[..., Any]:
    """A decorator as model libraries have them."""

    def decorate(forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def wrapped(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return scale * forward(self, *args, **kwargs)

        return wrapped

    return decorate


class Decorated(UsesNumber):
    """Has decorators, defaults, a private name, `super()`, and lines within `with` and `try`."""

    def __init__(self) -> None:
        super().__init__()
        self.__scale = 3.0

    @twice(2.0)
    @twice(0.5)
    def forward(self, x: Tensor, *, times: int = 2) -> Tensor:
        y = super().forward(x)
        try:
            with torch.no_grad():
                mean = y.mean()
                if mean > 0:
                    mean = mean * self.__scale * times
        finally:
            y = y + 1
        return y + mean


class Bag(Base):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(10, WIDTH)

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        known = words >= 0
        starts = functional.pad(known.sum(1).cumsum(0), (1, 0))[:-1]
        h = self.bag(words[known], starts)
        return self.last(torch.tanh(self.first(x) + h))


class Queue(Base):
    """MoCo's: a buffer says where the next keys are written."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.linspace(-1, 1, WIDTH * 16).reshape(WIDTH, 16))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        query, key = torch.tanh(self.first(x)), torch.tanh(self.last(x)).detach()
        others = query @ self.queue.clone()
        begin = int(self.pointer)
        self.queue[:, begin : begin + len(key)] = key.T
        self.pointer[0] = (begin + len(key)) % 16
        return torch.cat([self.last(query), others], 1)


def samples(*shape: int) -> Tensor:
    return torch.randn(BATCH, *shape) + torch.linspace(-1, 1, BATCH).view(-1, *[1] * len(shape))


def sequences() -> dict[str, Tensor]:
    return {"x": samples(5, WIDTH), "lengths": torch.randint(1, 6, (BATCH,))}


def bags() -> dict[str, Tensor]:
    return {"x": samples(WIDTH), "words": torch.randint(-3, 10, (BATCH, 4))}


def rows() -> Tensor:
    return samples(WIDTH)


MODELS: dict[type[nn.Module], tuple[Callable[[], Any], int]] = {
    Packed: (sequences, 3),
    Experts: (rows, 7),
    Logs: (rows, 4),
    UsesNumber: (rows, 5),
    InLoop: (rows, 6),
    Doubles: (rows, 5),
    Returns: (rows, 3),
    FillsList: (rows, 3),
    Selects: (rows, 4),
    Decorated: (rows, 4),
    Bag: (bags, 3),
    Queue: (rows, 7),
}
"""Each model, its batches, and at least how many nodes it has."""

DECIDE_BY_ALL = {UsesNumber, InLoop, Doubles, Returns, Selects, Decorated}
"""They mix the samples of a micro-batch, so that their batches should not be cut."""


def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.transpose(0, -1) * targets).pow(2).mean()


@pytest.mark.parametrize("kind", MODELS)
def test_only_they_stay_whole_and_later_batches_are_exact(kind: type[nn.Module]) -> None:
    torch.manual_seed(1)
    batch, least = MODELS[kind]
    made = Case(kind(), batch(), torch.randn(BATCH), loss_fn)
    alone = unsplit_reference.unsplit(made)
    with split_evenly(made, 2, check="off" if kind in DECIDE_BY_ALL else "full") as pipeline:
        for given in (made.batch, batch(), batch()):
            expected = unsplit_reference.train_step(replace(alone, batch=given), SIZE)
            assert torch.equal(pipeline.train_step(given, made.targets, loss_fn), expected)
        assert_equal_gradients(pipeline, alone.model)
    captured = capture(made.model, Batch.of(made.batch).split(SIZE)[0])
    assert len(captured.ids) >= least
    assert len([node for node in captured.ids if leaf_of(node)]) in (1, 2)


def test_a_list_outside_is_appended_to_once_for_each_micro_batch() -> None:
    made = Case(Logs(), rows(), torch.randn(BATCH), loss_fn)
    with split_evenly(made, 2) as pipeline:
        seen.clear()
        pipeline.train_step(made.batch, made.targets, loss_fn)
        assert len(seen) == BATCH // SIZE


class Scaled(Base):
    """Lines that stay whole read tensors that are neither parameters nor buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.held = torch.ones(WIDTH), [torch.ones(WIDTH)]

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        rows = (h[:, 0] > 0).nonzero().flatten()
        return self.last(h.index_add(0, rows, h[rows] * self.scale * self.held[0]))


def test_tensors_that_they_read_may_be_written_to_between_steps() -> None:
    made = Case(Scaled(), rows(), torch.randn(BATCH), loss_fn)
    alone = unsplit_reference.unsplit(made)
    with split_evenly(made, 2) as pipeline:
        for _ in range(3):
            for model in (made.model, alone.model):
                model.scale.mul_(0.5)
                model.held[0].add_(1)
            expected = unsplit_reference.train_step(alone, SIZE)
            assert torch.equal(pipeline.train_step(made.batch, made.targets, loss_fn), expected)


def test_an_expert_that_the_example_does_not_reach_has_a_gradient_later() -> None:
    made = Case(Experts(), torch.zeros(BATCH, WIDTH), torch.randn(BATCH), loss_fn)
    with split_evenly(made, 2) as pipeline:
        pipeline.train_step(10 * rows(), made.targets, loss_fn)
    experts = made.model.get_submodule("experts")
    assert sum(x.grad is not None and bool(x.grad.any()) for x in experts.parameters()) > 2


def test_the_rewritten_forward_is_the_own_one() -> None:
    """Line numbers, defaults, decorators and closures are kept, and the model is as before."""
    model = Decorated()
    nn.init.constant_(model.last.bias, 5.0)  # so that the mean is positive
    code = ForwardCode.of(model)
    assert code is not None
    lines = code.around(failure(model))
    assert lines is not None
    x = samples(WIDTH)
    expected = model(x)
    calls: list[str] = []

    def instead(own: Callable[..., Any], *args: Any) -> Any:
        calls.append(str(lines))
        return own(*args)

    with code.taken_out({lines: instead}):
        assert torch.equal(model(x), expected)
        assert signature(model.forward).parameters["times"].default == 2
        again = code.around(failure(model))
        assert again == lines
    assert len(calls) == 2
    assert "forward" not in vars(model)


def failure(model: nn.Module) -> Exception:
    """An error in the innermost lines of the model's own forward."""
    with pytest.raises(TypeError) as failed:
        model(samples(WIDTH), times="two")
    return failed.value


def test_code_without_source_or_with_outer_variables_is_left_alone() -> None:
    total = 0

    class Counts(Base):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal total
            total += 1
            return self.first(x)

    made: dict[str, Any] = {"Base": Base}
    exec("class NoSource(Base):\n def forward(self, x): return x", made)
    assert ForwardCode.of(Counts()) is None
    assert ForwardCode.of(made["NoSource"]()) is None
