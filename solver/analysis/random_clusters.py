"""Random clusters of unlike devices: equal seeds and options make equal ones, on every machine.

The draws are numbers in [0, 1) from `numpy.random.PCG64(seed)`, whose raw output numpy promises to
keep: each is its upper 53 bits times 2^-53, as in `numpy.random.default_rng(seed).random()`. They
are used in this order. All but those of the links are drawn whether they are needed or not, so one
option does not change the result of another:

    1. the slowdown of each device
    2. the type of each device
    3. the memory of each device
    4. for each source, for each other device: the bandwidth, then the latency

A draw u gives low + (high - low) * u. For bandwidths it gives low * (high / low)^u, as they span
orders of magnitude. Bytes and bytes per second are whole numbers, latencies whole nanoseconds.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

from skyfx.solver.core.cluster import Cluster, Device, Link, Wire
from skyfx.solver.core.field_checks import non_negative, positive, whole_number
from skyfx.solver.core.units import PLAIN, RATE, SIZE, TIME, Units, read_span

Range = float | str | tuple[float, float]
"""One value, or the lowest and the highest; or both as text, such as `2GiB:8GiB`."""

NANOSECONDS = 9
"""Digits of a latency."""


def unlike_cluster(
    num_devices: int,
    *,
    seed: int = 0,
    types: str | Sequence[str] | Mapping[str, float] = "cpu",
    slowdown: Range = (1.0, 2.0),
    memory_bytes: Range | None = None,
    bandwidth_bytes_per_s: Range | None = None,
    latency_s: Range = 0.0,
    symmetric: bool = False,
    name: str = "d",
) -> Cluster:
    """Draw a cluster; the same arguments make the same one, on every machine.

    Args:
        num_devices: number of devices.
        seed: of the draws.
        types: of the devices; several are equally likely, or have these weights.
        slowdown: of a device.
        memory_bytes: of a device; None is unlimited.
        bandwidth_bytes_per_s: of each direction between two devices; None makes transfers free.
        latency_s: of each direction.
        symmetric: both directions between two devices are equal.
        name: of the devices, before their number.

    Raises:
        ValueError: an argument is wrong; the message has its name, its value and what is expected.
    """
    whole_number("num_devices", num_devices, least=1)
    whole_number("seed", seed, least=0)
    if name.split() != [name]:
        raise ValueError(f"name: found {name!r}, expected one word")
    slowdowns = _read("slowdown", slowdown, positive, PLAIN)
    memories = None
    if memory_bytes is not None:
        memories = _read("memory_bytes", memory_bytes, non_negative, SIZE)
    weights = _weights(types)

    draws = _draws(seed, 3 * num_devices)
    drawn = [_between(slowdowns, next(draws)) for _ in range(num_devices)]
    kinds = [_dealt(weights, next(draws)) for _ in range(num_devices)]
    rooms = [memories and _inside(memories, round(_between(memories, next(draws)))) for _ in kinds]
    devices = tuple(
        Device(name=f"{name}{d}", type=kind, memory_bytes=room, slowdown=slow)
        for d, (slow, kind, room) in enumerate(zip(drawn, kinds, rooms, strict=True))
    )
    if bandwidth_bytes_per_s is None:
        if latency_s != 0:
            raise ValueError(
                f"latency_s: found {latency_s} without links, expected a bandwidth, too"
            )
        return Cluster(devices=devices)
    rates = _read("bandwidth_bytes_per_s", bandwidth_bytes_per_s, positive, RATE)
    delays = _read("latency_s", latency_s, non_negative, TIME)
    if rates[0] == rates[1] and delays[0] == delays[1]:
        wire = Wire(bandwidth_bytes_per_s=rates[0], latency_s=delays[0])
        return Cluster(devices=devices, default_link=wire)
    names = [device.name for device in devices]
    return Cluster(devices=devices, links=_links(names, rates, delays, seed, symmetric=symmetric))


def _links(
    names: Sequence[str],
    rates: tuple[float, float],
    delays: tuple[float, float],
    seed: int,
    *,
    symmetric: bool,
) -> tuple[Link, ...]:
    """A link per direction; with `symmetric` both are that of the earlier source."""
    pairs = list(itertools.permutations(names, 2))
    draws = itertools.islice(_draws(seed, 3 * len(names) + 2 * len(pairs)), 3 * len(names), None)
    wires = {}
    for pair in pairs:
        rate = _inside(rates, round(rates[0] * (rates[1] / rates[0]) ** next(draws)))
        wires[pair] = rate, _inside(delays, round(_between(delays, next(draws)), NANOSECONDS))
    place = {name: d for d, name in enumerate(names)}
    links = []
    for pair in pairs:
        like = tuple(sorted(pair, key=place.__getitem__)) if symmetric else pair
        rate, delay = wires[like[0], like[1]]
        links.append(
            Link(source=pair[0], target=pair[1], bandwidth_bytes_per_s=rate, latency_s=delay)
        )
    return tuple(links)


def _draws(seed: int, num: int) -> Iterator[float]:
    from numpy.random import PCG64  # takes a while, and most commands draw nothing

    return ((int(raw) >> 11) * 2.0**-53 for raw in PCG64(seed).random_raw(num))


def _read(
    path: str, asked: Range, check: Callable[[str, float], None], units: Units
) -> tuple[float, float]:
    if isinstance(asked, str):
        asked = read_span(asked, units, path)
    low, high = asked if isinstance(asked, tuple) else (asked, asked)
    check(path, low)
    check(path, high)
    if low > high:
        raise ValueError(f"{path}: found {low:g} to {high:g}, expected the lower end first")
    return float(low), float(high)


def _weights(types: str | Sequence[str] | Mapping[str, float]) -> dict[str, float]:
    listed = (types,) if isinstance(types, str) else types
    weights = dict(listed) if isinstance(listed, Mapping) else dict.fromkeys(listed, 1.0)
    if not weights:
        raise ValueError("types: found none, expected at least one")
    for kind, weight in weights.items():
        positive(f"types[{kind!r}]", weight)
    return weights


def _dealt(weights: Mapping[str, float], draw: float) -> str:
    """The first type at which the sum of the weights exceeds the draw's share."""
    kinds, sums = list(weights), list(itertools.accumulate(weights.values()))
    share = draw * sums[-1]
    return next((kind for kind, upto in zip(kinds, sums, strict=True) if share < upto), kinds[-1])


def _between(of: tuple[float, float], draw: float) -> float:
    return min(of[0] + (of[1] - of[0]) * draw, of[1])


def _inside(of: tuple[float, float], rounded: float) -> float:
    """A rounded value, kept inside its range."""
    return float(min(max(rounded, of[0]), of[1]))
