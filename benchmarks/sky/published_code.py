"""What the code of Sky Computing (github.com/hpcaitech/SkyComputing) says of its experiment.

    scaelum/stimulator/stimulator.py   the slowdowns that a worker's benchmark is multiplied by
    experiment/config.py               batch, length, classes; older slowdowns, by waiting
    scaelum/dynamics/allocator.py      the even split: by the number of thirds of layers

Workers have the ranks 1 to n; rank 0 is the parameter server, which computes nothing.
"""

import itertools
from collections.abc import Sequence

import numpy as np

__all__: list[str] = [
    *("BATCH", "CLASSES", "FASTER", "LAYERS", "LENGTH", "SAVED", "SLOWDOWNS", "WORKERS"),
    *("even_counts", "memory_slowdowns", "network_slowdowns", "slowdowns"),
]

LAYERS, WORKERS = 160, 63
"""Of the published figure; the configuration in the repository has 10 and 3."""

BATCH, LENGTH, CLASSES = 32, 128, 3

SAVED, FASTER = 0.55, 1 - 1 / 1.55
"""The abstract's "outperforms by 55 % in training time": so much less of the even split's time, or,
read the other way, 1.55 times as fast."""

SLOWDOWNS = ("real", "whole")


def slowdowns(kind: str, num_workers: int) -> list[float]:
    """How many times as long each worker computes, `(num_workers,)`.

    Args:
        kind: `real`, between 1 and 2, as the stimulator has them; or `whole`, 2 to 7: workers that
            wait 1 to 6 times as long as they have computed, as the configuration has it.
        num_workers: beside the parameter server.
    """
    if kind == "whole":
        waits = np.random.default_rng(35).integers(1, 7, num_workers + 1)
        return [1.0 + float(wait) for wait in waits[1:]]
    return [1.0 + float(x) for x in np.random.default_rng(32).random(num_workers + 1)[1:]]


def memory_slowdowns(num_workers: int) -> list[float]:
    """By what a worker's memory is divided, between 1 and 3, `(num_workers,)`."""
    return [1 + 2 * float(x) for x in np.random.default_rng(22).random(num_workers + 1)[1:]]


def network_slowdowns(num_workers: int) -> list[float]:
    """Of a worker's network, `(num_workers,)`: the same numbers as the real ones of computing.

    Nothing in the published code reads them.
    """
    return slowdowns("real", num_workers)


def even_counts(num: int, num_workers: int) -> Sequence[range]:
    """Which of `num` parts each worker has: as many each, the first ones one more."""
    each, more = divmod(num, num_workers)
    ends = itertools.accumulate(each + (worker < more) for worker in range(num_workers))
    return [range(a, b) for a, b in itertools.pairwise([0, *ends])]
