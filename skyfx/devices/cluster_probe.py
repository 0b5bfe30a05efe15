"""What a job's devices and the links between them are like: the cluster, measured.

Each pair of processes passes messages to and fro, one pair at a time, over the transport that a
pipeline uses. Their clocks are not compared: small messages give the latency, half a round trip,
and large ones in one direction at a time the bandwidth.
"""

import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from statistics import median

import torch
from torch.utils.benchmark import Timer

from skyfx.devices.inventory import DeviceInventory
from skyfx.devices.local_links import copy_wire, with_links
from skyfx.runtime.device import LocalDevice
from skyfx.runtime.transport.message import MessageLayout, TensorSpec
from skyfx.runtime.transport.remote import ReceiveQueue, SendQueue
from skyfx.solver.core import cluster
from skyfx.solver.core.cluster import Device, Link, Wire

SMALL_BYTES, FIRST_BYTES, MOST_BYTES = 8, 2**16, 2**26
LONG_S = 0.1
"""A message that takes this long says enough about the bandwidth."""

TAG = 2**20
"""Of messages that belong to no boundary."""

SAME = 0.03
"""Devices of one type whose speeds differ by less are taken for equal."""

CPU = torch.device("cpu")


class Cluster(cluster.Cluster):
    """Devices and links; `from_environment` finds those of the job of this process.

    Equal to a `skyfx.solver.Cluster` with equal fields.
    """

    __slots__ = ()
    __hash__ = cluster.Cluster.__hash__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, cluster.Cluster):
            return NotImplemented
        return all(getattr(self, x.name) == getattr(other, x.name) for x in fields(self))

    @classmethod
    def from_environment(cls, *, memory_bytes: float | None = None) -> "Cluster":
        """The devices of all processes that torchrun has started, their links measured.

        Every process has to call it. A process brings the GPU of its local rank, or a share of its
        host's cores.

        Args:
            memory_bytes: what a pipeline may use of each of this process's devices, and not more;
                by default what is free.

        Raises:
            PlanError: two devices have the same name.
        """
        found = probed(DeviceInventory.join(memory_bytes=memory_bytes))
        return cls(devices=found.devices, links=found.links)


def probed(hosts: DeviceInventory) -> cluster.Cluster:
    """Measure the devices of a job and the links between them; every process calls it."""
    speed_s = {name: _speed_s(place) for name, place in hosts.local.items()}
    all_speeds = hosts.group.all_gather_dict(speed_s, dict[str, float])
    devices = tuple(
        replace(device, slowdown=_slowdown(device, hosts.devices, all_speeds))
        for device in hosts.devices
    )
    ours = tuple(device for device in hosts.devices if device.name in hosts.local)
    here = with_links(cluster.Cluster(devices=ours), hosts.local).links
    links = [*here, *_links_to_others(hosts)]
    everyones = itertools.chain.from_iterable(hosts.group.all_gather_json(links, list[Link]))
    found = cluster.Cluster(devices=devices, links=tuple(everyones))
    found.check()
    return found


def _slowdown(device: Device, devices: Sequence[Device], speed_s: dict[str, float]) -> float:
    """How many times longer it takes than the fastest of its type."""
    fastest_s = min(speed_s[other.name] for other in devices if other.type == device.type)
    times = speed_s[device.name] / fastest_s
    return times if times > 1 + SAME else 1.0


def _speed_s(place: LocalDevice) -> float:
    """Seconds of a mix of what models do: a matrix product, a softmax, many small operators."""
    x = torch.rand(256, 256, device=place.device)

    def mix() -> None:
        y = torch.softmax(x @ x, dim=-1) @ x
        for _ in range(20):
            y = y[:16, :16] + 1

    timer = Timer("mix()", globals={"mix": mix}, num_threads=place.num_threads)
    number = max(1, int(LONG_S / timer.timeit(10).mean))
    return median(timer.timeit(number).mean for _ in range(3))


def _links_to_others(hosts: DeviceInventory) -> list[Link]:
    """From this process's devices to those of others; what is no CPU copies from and to one."""
    copies = {name: _to_and_from(place) for name, place in hosts.local.items()}
    known = hosts.group.all_gather_dict(copies, dict[str, tuple[Wire, Wire]])
    own, size = hosts.group.rank, hosts.group.size
    wires = {}
    for first, second in itertools.combinations(range(size), 2):
        if own in (first, second):
            peer = second if own == first else first
            wires[peer] = _measured(hosts, peer, leads=own == first)
        hosts.group.sum(torch.zeros(1))  # one pair at a time
    return [
        Link(
            source=source,
            target=device.name,
            bandwidth_bytes_per_s=1 / sum(1 / x.bandwidth_bytes_per_s for x in hops),
            latency_s=sum(x.latency_s for x in hops),
        )
        for source in hosts.local
        for device in hosts.devices
        if (rank := hosts.owner_rank[device.name]) != own
        for hops in [(known[source][0], wires[rank], known[device.name][1])]
    ]


def _to_and_from(place: LocalDevice) -> tuple[Wire, Wire]:
    """From the device to the memory that messages are made in, and back."""
    if place.device == CPU:
        return (Wire(bandwidth_bytes_per_s=1e15, latency_s=0.0),) * 2
    return copy_wire(place.device, CPU), copy_wire(CPU, place.device)


def _measured(hosts: DeviceInventory, peer: int, *, leads: bool) -> Wire:
    """The wire from this process to another one, while that one measures the other direction."""
    small = MessageLayout([TensorSpec((SMALL_BYTES,), torch.uint8)])
    round_trip_s = _message_s(hosts, peer, small, small, leads=leads, rounds=20)
    # First the leader's messages are large and then the other's; both ends know what came out.
    there = _bandwidth(hosts, peer, small, leads=leads, large_there=True)
    back = _bandwidth(hosts, peer, small, leads=leads, large_there=False)
    return Wire(bandwidth_bytes_per_s=there if leads else back, latency_s=round_trip_s / 2)


def _bandwidth(
    hosts: DeviceInventory, peer: int, small: MessageLayout, *, leads: bool, large_there: bool
) -> float:
    """Bytes per second, from what four times as large a message takes longer.

    Where it takes hardly longer, because of latency or of what else the hosts do, a larger one is
    sent; of the largest the whole time counts, and the link is no slower than that.
    """
    size, before_s = FIRST_BYTES, 0.0
    while True:
        large = MessageLayout([TensorSpec((size,), torch.uint8)])
        there, back = (large, small) if large_there else (small, large)
        took_s = _message_s(hosts, peer, there, back, leads=leads, rounds=3)
        longer_s = took_s - before_s
        if before_s > LONG_S / 4 and longer_s > took_s / 4:
            return size * 0.75 / longer_s
        if size >= MOST_BYTES:
            return size / took_s
        size, before_s = size * 4, took_s


def _message_s(
    hosts: DeviceInventory,
    peer: int,
    there: MessageLayout,
    back: MessageLayout,
    *,
    leads: bool,
    rounds: int,
) -> float:
    """Seconds of a message there and one back, the median; both ends learn the same figure."""
    mine, others = (there, back) if leads else (back, there)
    values = mine.unpack(mine.buffer().fill_(1))
    figure = MessageLayout([TensorSpec((1,), torch.float64)])
    with ThreadPoolExecutor(1) as sender:
        out = SendQueue(peer, TAG, hosts.group, sender, 1)
        come = ReceiveQueue(peer, TAG, hosts.group, [others] * rounds, 1)
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            if leads:
                out.send(mine, values)
            come.receive()
            if not leads:
                out.send(mine, values)
            times.append(time.perf_counter() - began)
        out.finish()
        if leads:
            out.send(figure, [torch.tensor([median(times)]).double()])
            out.finish()
            return median(times)
        (told,) = ReceiveQueue(peer, TAG, hosts.group, [figure], 1).receive()
    assert told is not None
    return float(told)
