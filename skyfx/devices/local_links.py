"""What it takes to hand a tensor from one worker to the next, measured in this process."""

import itertools
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from statistics import median

import torch

from skyfx.runtime.device import LocalDevice
from skyfx.runtime.transport.local import BoundedQueue
from skyfx.solver.core.cluster import Cluster, Link, Wire

LARGE_BYTES = 64 * 2**20
ROUNDS = 50


def with_links(cluster: Cluster, places: Mapping[str, LocalDevice]) -> Cluster:
    """The cluster with measured links; one that brings its own is returned as it is.

    Between two CPUs of one process only a reference is handed over; anything else is a copy.
    """
    if cluster.links or cluster.default_link is not None or len(places) == 1:
        return cluster
    handover_s = _handover_s()
    measured: dict[tuple[torch.device, torch.device], Wire] = {}
    links = []
    for source, target in itertools.permutations(places.values(), 2):
        pair = (source.device, target.device)
        if pair not in measured:
            measured[pair] = copy_wire(*pair, handover_s)
        links.append(Link(source=source.name, target=target.name, **asdict(measured[pair])))
    return replace(cluster, links=tuple(links))


def copy_wire(source: torch.device, target: torch.device, handover_s: float = 0.0) -> Wire:
    """What a copy from one device of this process to another takes."""
    small_s, large_s = (_copy_s(source, target, size) for size in (8, LARGE_BYTES))
    # A reference takes no longer for a large tensor; a file needs a finite bandwidth.
    per_byte = max((large_s - small_s) / LARGE_BYTES, 1e-15)
    return Wire(bandwidth_bytes_per_s=1 / per_byte, latency_s=handover_s + small_s)


def _copy_s(source: torch.device, target: torch.device, size_bytes: int) -> float:
    tensor = torch.zeros(size_bytes, dtype=torch.uint8, device=source)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        tensor.detach().to(target)
        if target.type != "cpu":
            torch.accelerator.synchronize(target)
        times.append(time.perf_counter() - began)
    return median(times)


def _handover_s() -> float:
    """Seconds from `put` in one thread to `get` in another: half a round trip."""
    there, back = BoundedQueue[int](1), BoundedQueue[int](1)

    def echo() -> None:
        for _ in range(ROUNDS):
            back.put(there.get())

    thread = threading.Thread(target=echo, daemon=True)
    thread.start()
    times = []
    for i in range(ROUNDS):
        began = time.perf_counter()
        there.put(i)
        back.get()
        times.append((time.perf_counter() - began) / 2)
    thread.join()
    return median(times)
