"""Where one cuts a sequence of blocks by hand, as users of torch.distributed.pipelining do.

    blocks        e  1  2  3 | 4  5  6 | 7  8  9 | 10 11 12 h
    workers            0     |    1    |    2    |      3         in the order of their ranks

Each rule gives the blocks a weight and the workers a room; the blocks go to the workers in their
order so that the fullest worker is as empty as can be.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__: list[str] = ["Weights", "balanced", "rules"]

Cut = tuple[int, ...]
"""The number of blocks of each worker, `(num_workers,)`, none of them 0."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What somebody knows who has measured the blocks on one device, `(num_blocks,)` each.

    Attributes:
        size_bytes: parameters with their gradients, and what a micro-batch keeps for backward.
        parameters: numbers.
        time_s: forward and backward of a micro-batch.
    """

    size_bytes: Sequence[float]
    parameters: Sequence[float]
    time_s: Sequence[float]


def balanced(weights: Sequence[float], rooms: Sequence[float]) -> Cut:
    """The cut whose fullest worker has the least weight for its room; each has a block at least.

    Of several such, the one with the least sum of squares.

    Args:
        weights: of the blocks, `(num_blocks,)`, in order.
        rooms: of the workers, `(num_workers,)`, in order.
    """
    fullest, _ = _least(weights, rooms, max)
    most = fullest * (1 + 1e-9)
    _, cut = _least(weights, rooms, lambda sum_, x: sum_ + x * x if x <= most else math.inf)
    return cut


def _least(
    weights: Sequence[float], rooms: Sequence[float], joined: Callable[[float, float], float]
) -> tuple[float, Cut]:
    """The least value and its cut; `joined` adds a worker's load to the value of those before."""
    sums, n = [0.0, *itertools.accumulate(weights)], len(weights)
    best: dict[int, tuple[float, Cut]] = {0: (0.0, ())}  # of the workers so far, by their blocks
    for worker, room in enumerate(rooms, 1):
        best = {
            end: min(
                (joined(value, (sums[end] - sums[begin]) / room), (*cut, end - begin))
                for begin, (value, cut) in best.items()
                if begin < end
            )
            for end in range(worker, n + 1)
        }
    return best[n]


def rules(weights: Weights, memory_bytes: Sequence[float]) -> dict[Cut, str]:
    """Each rule's cut, equal ones once, with the names of the rules that make it.

    Args:
        weights: of the blocks.
        memory_bytes: of the workers, in the order of their ranks.
    """
    alike = [1.0] * len(memory_bytes)
    made: Mapping[str, Cut] = {
        "blocks": balanced([1.0] * len(weights.time_s), alike),
        "bytes": balanced(weights.size_bytes, alike),
        "parameters": balanced(weights.parameters, alike),
        "time": balanced(weights.time_s, alike),
        "memory": balanced(weights.size_bytes, memory_bytes),
    }
    found: dict[Cut, str] = {}
    for name, cut in made.items():
        found[cut] = f"{found[cut]}, {name}" if cut in found else name
    return found
