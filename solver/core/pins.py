"""Pins: parts of a model that have to be on a device, or must not be, whatever it costs.

    embeddings=clinic      what the pattern matches runs on `clinic` and nowhere else
    layers.1?.*!=phone     what it matches runs anywhere but on `phone`

A pattern is one of file names (`*`, `?`, `[abc]`). It matches a node by its id, by its module's
name, or by the name of a module around that: `encoder` matches all that the encoder does.
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from skyfx.solver.core.graph import Node


@dataclass(frozen=True, slots=True)
class Pin:
    """What `pattern` matches is on `device` where `there`, and elsewhere where not."""

    pattern: str
    device: str
    there: bool

    @classmethod
    def of(cls, text: str) -> "Pin":
        """Read `PATTERN=DEVICE` or `PATTERN!=DEVICE`.

        Raises:
            ValueError: it is neither.
        """
        pattern, equals, device = text.rpartition("=")
        there = not pattern.endswith("!")
        pattern = pattern if there else pattern[:-1]
        if not (equals and pattern and device):
            raise ValueError(f"pin {text!r}: expected PATTERN=DEVICE or PATTERN!=DEVICE")
        return cls(pattern, device, there)

    def __str__(self) -> str:
        return f"{self.pattern}{'' if self.there else '!'}={self.device}"

    def matches(self, node: Node) -> bool:
        """Whether the node is meant."""
        return any(fnmatchcase(name, self.pattern) for name in _names(node))

    def allows(self, device: str) -> bool:
        """Whether what it matches may run on this device."""
        return (device == self.device) == self.there

    def check(self, nodes: Sequence[Node], devices: Sequence[str]) -> None:
        """Refuse a device that is not there and a pattern that matches nothing.

        Raises:
            ValueError: with the names that come nearest.
        """
        self.check_device(devices)
        self.check_pattern(nodes)

    def check_device(self, devices: Sequence[str]) -> None:
        """Refuse a device that is not there."""
        if self.device not in devices:
            raise ValueError(
                f"pin '{self}': no device {self.device!r} ({', '.join(devices)})"
                f"{_did_you_mean(self.device, devices)}"
            )

    def check_pattern(self, nodes: Sequence[Node]) -> None:
        """Refuse a pattern that matches nothing."""
        if not any(self.matches(node) for node in nodes):
            names = sorted({name for node in nodes for name in _names(node)})
            raise ValueError(
                f"pin '{self}': {self.pattern!r} matches no node and no module"
                f"{_did_you_mean(self.pattern, names)}"
            )


def _did_you_mean(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
    return f"; did you mean {' or '.join(map(repr, near))}?"


def _names(node: Node) -> Iterator[str]:
    """The node's id, its module, and the modules around that."""
    yield node.id
    parts = (node.module or "").split(".")
    for end in range(1, len(parts) + 1):
        if parts[end - 1]:
            yield ".".join(parts[:end])
