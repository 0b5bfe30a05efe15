"""The clusters of the comparison: drawn once and for all, the same on every run.

Every model meets every spread of speeds, with four workers and with eight; a third of the clusters
have memory limits. A worker's speed is a share of a core, and all shares of a cluster together are
what a machine of two cores can give without the workers disturbing each other.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.common.emulated_hosts import Host

__all__: list[str] = ["CORES", "Cluster", "clusters"]

CORES = 1.2
"""Of all workers together: 60 % of two."""

MODELS = ("bert", "gpt2", "unet")
SPREADS = {"2": 2.0, "3": 3.0, "5": 5.0, "8a": 8.0, "8b": 8.0}
MBIT = (20, 1000)
LIMITS = {4: (0.45, 1.0), 8: (0.4, 0.8)}
"""A worker's memory, in parts of what the whole model takes on one device, from and to."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Unlike hosts, the model that they train, and what each may hold of it (None: all)."""

    name: str
    model: str
    spread: float
    hosts: Sequence[Host]
    limits: Sequence[float] | None


def clusters() -> list[Cluster]:
    """All of them."""
    drawn = random.Random(2027)
    return [
        _cluster(drawn, size, model, kind, limited=(m + s + size // 4) % 3 == 0)
        for size in (4, 8)
        for m, model in enumerate(MODELS)
        for s, kind in enumerate(SPREADS)
    ]


def _cluster(drawn: random.Random, size: int, model: str, kind: str, *, limited: bool) -> Cluster:
    spread = SPREADS[kind]
    # The fastest and the slowest are `spread` apart, the others lie between them by ratio.
    speeds = [1.0, spread, *(spread ** drawn.random() for _ in range(size - 2))]
    drawn.shuffle(speeds)
    low, high = MBIT
    rates = [round(low * (high / low) ** drawn.random()) for _ in speeds]
    hosts = [
        Host(f"h{i}", CORES * speed / sum(speeds), rate)
        for i, (speed, rate) in enumerate(zip(speeds, rates, strict=True))
    ]
    limits = [round(drawn.uniform(*LIMITS[size]), 2) for _ in hosts] if limited else None
    return Cluster(f"{model} x {size}, {kind}", model, spread, hosts, limits)
