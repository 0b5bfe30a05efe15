"""Changes of a cluster, read from text: `add a100`, `drop c`, `link a b x2`, `slow c x4`."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from skyfx.solver.core.cluster import Cluster, Device, Link
from skyfx.solver.core.graph import Graph


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a cluster.

    Attributes:
        text: the change as text.
        make: the function from a cluster to the changed one.
    """

    text: str
    make: Callable[[Cluster], Cluster]

    @classmethod
    def of(cls, text: str, graph: Graph | None = None) -> "Change":
        """Read a change; with a `graph`, added devices must have a type that it has times for.

        Raises:
            ValueError: there is no such change, or its factor is wrong.
        """
        match text.split():
            case ["add", kind]:
                if graph is not None:
                    _check_type(text, kind, graph)
                return cls(text, lambda cluster: _added(cluster, kind))
            case ["drop", name]:
                return cls(text, lambda cluster: _dropped(cluster, name))
            case ["link", a, b, factor]:
                by = _factor(text, factor)
                return cls(text, lambda cluster: _faster_link(cluster, a, b, by))
            case ["memory" | "slow" as word, name, factor]:
                by, make = _factor(text, factor), _with_memory if word == "memory" else _slower
                return cls(text, lambda cluster: make(cluster, name, by))
        raise ValueError(
            f"change {text!r}: expected one of 'add TYPE', 'drop DEVICE', "
            "'link DEVICE DEVICE xFACTOR', 'memory DEVICE xFACTOR', 'slow DEVICE xFACTOR'"
        )


def apply_changes(cluster: Cluster, changes: Sequence[Change]) -> Cluster:
    """Apply changes to a cluster, one after the other.

    Raises:
        ValueError: a change names a device that the cluster does not have.
    """
    for change in changes:
        try:
            cluster = change.make(cluster)
            cluster.check()
        except ValueError as error:
            raise ValueError(f"change {change.text!r}: {error}") from None
    return cluster


def _check_type(text: str, kind: str, graph: Graph) -> None:
    known = sorted({name for node in graph.nodes for name in node.forward_s})
    if kind not in known:
        raise ValueError(
            f"change {text!r}: the graph has times for {', '.join(known)}, not for {kind!r}"
        )


def _factor(text: str, said: str) -> float:
    try:
        by = float(said.removeprefix("x"))
    except ValueError:
        by = 0.0
    if not said.startswith("x") or not 0 < by < float("inf"):
        raise ValueError(f"change {text!r}: found {said!r}, expected a factor such as x2")
    return by


def _named(cluster: Cluster, name: str) -> Device:
    for device in cluster.devices:
        if device.name == name:
            return device
    known = ", ".join(device.name for device in cluster.devices)
    raise ValueError(f"no device is called {name!r}; there are {known}")


def _exchanged(cluster: Cluster, name: str, **fields: Any) -> Cluster:
    """The cluster with other fields of one device."""
    device = _named(cluster, name)
    devices = tuple(replace(x, **fields) if x is device else x for x in cluster.devices)
    return replace(cluster, devices=devices)


def _added(cluster: Cluster, kind: str) -> Cluster:
    """One more device of a type, on the best listed link, or on the default without any."""
    names = {device.name for device in cluster.devices}
    name = next(x for i in itertools.count(1) if (x := f"{kind}+{i}") not in names)
    added = replace(cluster, devices=(*cluster.devices, Device(name=name, type=kind)))
    if not cluster.links:
        return added
    best = max(cluster.links, key=lambda link: link.bandwidth_bytes_per_s)
    links = [
        replace(best, source=source, target=target)
        for other in sorted(names)
        for source, target in ((name, other), (other, name))
    ]
    return replace(added, links=(*cluster.links, *links))


def _dropped(cluster: Cluster, name: str) -> Cluster:
    device = _named(cluster, name)
    return replace(
        cluster,
        devices=tuple(x for x in cluster.devices if x is not device),
        links=tuple(link for link in cluster.links if name not in (link.source, link.target)),
    )


def _faster_link(cluster: Cluster, a: str, b: str, by: float) -> Cluster:
    """Both directions between two devices."""
    _named(cluster, a), _named(cluster, b)
    wires = cluster.wiring()
    pairs = [(a, b), (b, a)]
    links = [link for link in cluster.links if (link.source, link.target) not in pairs]
    for source, target in pairs:
        wire = wires(source, target)
        if wire is None:
            raise ValueError(f"transfers from {source!r} to {target!r} are free already")
        rate = by * wire.bandwidth_bytes_per_s
        links.append(
            Link(source=source, target=target, bandwidth_bytes_per_s=rate, latency_s=wire.latency_s)
        )
    return replace(cluster, links=tuple(links))


def _with_memory(cluster: Cluster, name: str, by: float) -> Cluster:
    memory_bytes = _named(cluster, name).memory_bytes
    if memory_bytes is None:
        raise ValueError(f"the memory of {name!r} is not limited")
    return _exchanged(cluster, name, memory_bytes=by * memory_bytes)


def _slower(cluster: Cluster, name: str, by: float) -> Cluster:
    return _exchanged(cluster, name, slowdown=by * _named(cluster, name).slowdown)
