"""The devices and the links between them (`skyfx.cluster/1`)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from skyfx.solver.core.field_checks import memory_size, no_duplicates, non_negative, positive

HOST = "host"
"""In `host` communication every device has links to this name; it is no device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device; `type` is a key of the nodes' times, `slowdown` multiplies every compute time.

    `memory_bytes` is None where there is no limit. In Python it may be text such as `4GiB`.
    """

    name: str
    type: str
    memory_bytes: float | None = None
    slowdown: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.memory_bytes, str):
            object.__setattr__(self, "memory_bytes", memory_size("memory_bytes", self.memory_bytes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """What a link costs: `latency_s + size_bytes / bandwidth_bytes_per_s`."""

    bandwidth_bytes_per_s: float
    latency_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A link from one device to another, in this direction only."""

    source: str
    target: str
    bandwidth_bytes_per_s: float
    latency_s: float


Wiring = Callable[[str, str], Link | Wire | None]
"""From a source and a target to the wire between them; None is free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Devices, the links between them, and the link between every pair that is not listed.

    With `emulated_links` what goes between devices of one process takes as long as by such a link.
    """

    FORMAT: ClassVar[str] = "skyfx.cluster/1"

    format: Literal["skyfx.cluster/1"] = "skyfx.cluster/1"
    devices: tuple[Device, ...]
    default_link: Wire | None = None
    links: tuple[Link, ...] = ()
    emulated_links: bool | None = None

    def check(self) -> None:
        """Refuse what the format refuses.

        Raises:
            ValueError: the field's path, its value and what was expected.
        """
        if not self.devices:
            raise ValueError("devices: found an empty list, expected at least one device")
        no_duplicates("devices", "name", [device.name for device in self.devices])
        for i, device in enumerate(self.devices):
            if device.name == HOST:
                raise ValueError(f"devices[{i}].name: {HOST!r} is reserved and is no device")
            if device.memory_bytes is not None:
                non_negative(f"devices[{i}].memory_bytes", device.memory_bytes)
            positive(f"devices[{i}].slowdown", device.slowdown)
        if self.default_link is not None:
            _check_wire("default_link", self.default_link)
        names = {device.name for device in self.devices} | {HOST}
        for i, link in enumerate(self.links):
            for field in ("source", "target"):
                if (name := getattr(link, field)) not in names:
                    raise ValueError(f"links[{i}].{field}: {name!r} is no device's name")
            _check_wire(f"links[{i}]", link)
        pairs = [f"{link.source} -> {link.target}" for link in self.links]
        no_duplicates("links", "source, target", pairs)

    def wiring(self) -> "Wiring":
        """What stands between any two names: the listed link, else the default."""
        listed = {(link.source, link.target): link for link in self.links}
        return lambda source, target: listed.get((source, target), self.default_link)


def _check_wire(path: str, wire: Wire | Link) -> None:
    positive(f"{path}.bandwidth_bytes_per_s", wire.bandwidth_bytes_per_s)
    non_negative(f"{path}.latency_s", wire.latency_s)


def transfer_s(wire: Wire | Link | None, size_bytes: float) -> float:
    """Seconds that `size_bytes` take; no wire at all is free."""
    return 0.0 if wire is None else wire.latency_s + size_bytes / wire.bandwidth_bytes_per_s
