"""What a stage counts of its own actions."""

from collections.abc import Iterator

import pytest
import torch
from torch import fx, nn

from skyfx.runtime.device import LocalDevice
from skyfx.runtime.execution.stage import Span, Stage


class Unread(list[Span]):
    """Spans that nobody may go through."""

    def __iter__(self) -> Iterator[Span]:
        raise AssertionError("all spans were read again")


def one_layer() -> Stage:
    return Stage(
        LocalDevice("cpu", torch.device("cpu")),
        fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2))),
        is_random=False,
        receives=(),
    )


def test_busy_seconds_are_the_sum_of_all_actions_until_a_reset() -> None:
    stage = one_layer()
    for m in range(3):
        (sent,) = stage.forward(m, [torch.ones(1, 2)], training=True)
        stage.backward(m, [torch.ones_like(sent)])
    assert len(stage.spans()) == 6
    assert stage.busy_s == pytest.approx(sum(s.ended_s - s.began_s for s in stage.spans()))
    assert stage.busy_s > 0
    stage.reset()
    assert stage.busy_s == 0


def test_busy_seconds_are_read_without_going_through_all_actions() -> None:
    stage = one_layer()
    stage._spans = Unread()
    for m in range(100):
        before_s = stage.busy_s
        stage.forward(m, [torch.ones(1, 2)], training=False)
        assert stage.busy_s > before_s
