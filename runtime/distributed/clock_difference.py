"""How the clocks of several processes differ, so that their times can stand on one line."""

import time
from collections.abc import Callable

import torch

from skyfx.runtime.distributed.process_group import ProcessGroup

ROUNDS = 8
"""Messages to all; the one that nothing has delayed says most."""


def ahead_of_first_s(group: ProcessGroup, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds by which the clock is ahead of the first process's; all processes call it.

    Nobody leaves a message to all before everybody has entered it: each message bounds the
    difference from both sides, and a delay of any process only widens the bounds. The tightest
    bounds hold (Marzullo and Owicki 1983). Processes of one host read one clock: the difference is
    none wherever the bounds allow that, else the middle of them, at most half a message wrong.
    """
    entered_s, left_s = [], []
    for _ in range(ROUNDS):
        entered_s.append(clock())
        group.sum(torch.zeros(1))
        left_s.append(clock())
    first_entered_s, first_left_s = group.all_gather_json(
        (entered_s, left_s), tuple[list[float], list[float]]
    )[0]
    at_least_s = max(x - y for x, y in zip(entered_s, first_left_s, strict=True))
    at_most_s = min(x - y for x, y in zip(left_s, first_entered_s, strict=True))
    return 0.0 if at_least_s <= 0 <= at_most_s else (at_least_s + at_most_s) / 2
