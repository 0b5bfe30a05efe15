"""Who does what when: each stage's own order of forwards and backwards.

Three stages, four micro-batches, time to the right (F0 = forward of micro-batch 0):

    gpipe   F0 F1 F2 F3 .. .. .. .. B0 B1 B2 B3      1f1b   F0 F1 F2 .. .. B0 F3 B1 .. B2 .. B3
            .. F0 F1 F2 F3 .. .. B0 B1 B2 B3 ..             .. F0 F1 .. B0 F2 B1 F3 B2 .. B3
            .. .. F0 F1 F2 F3 B0 B1 B2 B3 .. ..             .. .. F0 B0 F1 B1 F2 B2 F3 B3

A stage waits only for what its next action needs, so an order says nothing about times. Backwards
go in the order of the micro-batches, as they do on a single device: gradients are then summed in
the same order.
"""

from enum import Enum
from typing import NamedTuple

__all__: list[str] = ["Action", "Kind", "orders"]


class Kind(Enum):
    """What an action does with its micro-batch."""

    FORWARD = "forward"
    BACKWARD = "backward"


class Action(NamedTuple):
    """One forward or backward of one micro-batch."""

    kind: Kind
    microbatch: int

    def __str__(self) -> str:
        return f"{self.kind.value} of micro-batch {self.microbatch}"


def orders(schedule: str, num_stages: int, num_microbatches: int) -> list[list[Action]]:
    """The actions of each stage, in the order in which it takes them.

    Args:
        schedule: `gpipe`, `1f1b`, or `inference` for forwards alone.
        num_stages: stages in the pipeline.
        num_microbatches: micro-batches in the step.

    Raises:
        ValueError: there is no such schedule.
    """
    m, stages = num_microbatches, range(num_stages)
    if schedule == "inference":
        return [_forwards(range(m)) for _ in stages]
    if schedule == "gpipe":
        return [_forwards(range(m)) + _backwards(range(m)) for _ in stages]
    if schedule == "1f1b":
        return [_one_forward_one_backward(num_stages - 1 - k, m) for k in stages]
    raise ValueError(f"schedule is {schedule!r}, expected 'gpipe' or '1f1b'")


def _one_forward_one_backward(num_stages_after: int, m: int) -> list[Action]:
    """Fill the stages after this one, then take turns: `num_stages_after + 1` are live."""
    warm_up = min(num_stages_after, m)
    actions = _forwards(range(warm_up))
    for i in range(m - warm_up):
        actions += [Action(Kind.FORWARD, warm_up + i), Action(Kind.BACKWARD, i)]
    return actions + _backwards(range(m - warm_up, m))


def _forwards(microbatches: range) -> list[Action]:
    return [Action(Kind.FORWARD, i) for i in microbatches]


def _backwards(microbatches: range) -> list[Action]:
    return [Action(Kind.BACKWARD, i) for i in microbatches]
