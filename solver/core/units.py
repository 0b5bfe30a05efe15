"""Sizes, rates and times as people write them: `2GiB`, `20Mbit`, `1ms`, and ranges of them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__: list[str] = ["PLAIN", "RATE", "SIZE", "TIME", "Units", "span"]

NUMBER = re.compile(r"\s*(\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+)\s*([^\d\s]*)\s*")


@dataclass(frozen=True, slots=True)
class Units:
    """What one of each unit is, and what a value of them looks like."""

    examples: str
    factors: Mapping[str, float]


_THOUSANDS = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_PREFIXES = _THOUSANDS | {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "K": 1e3}
_BYTES = {"B": 1.0} | {f"{prefix}B": factor for prefix, factor in _PREFIXES.items()}
_BITS = {"bit": 1 / 8} | {f"{prefix}bit": factor / 8 for prefix, factor in _THOUSANDS.items()}

PLAIN = Units("2 or 1.5", {"": 1.0})
"""Numbers that have no unit."""

SIZE = Units("2GiB or 500MB", _BYTES)
"""In bytes."""

RATE = Units(
    "20Mbit, 1Gbit or 50MB/s",
    _BITS
    | {f"{unit}/s": factor for unit, factor in (_BITS | _BYTES).items()}
    | {unit.replace("bit", "bps"): factor for unit, factor in _BITS.items()},
)
"""In bytes per second, which are 8 bits per second each."""

TIME = Units("50ms or 200us", {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9})
"""In seconds."""


def span(text: str, units: Units) -> tuple[float, float]:
    """Read `LOW:HIGH`, or one value for both.

    Args:
        text: such as `2GiB:8GiB`, `2:8GiB` or `8GiB`; a unit behind the last value counts for both.
        units: what has to stand behind a number, unless that is 0.

    Raises:
        ValueError: what stood there and what was expected.
    """
    first, colon, last = text.partition(":")
    high, unit = _value(last if colon else first, units)
    low = _value(first, units, unit)[0] if colon else high
    if low > high:
        raise ValueError(f"found {text!r}, expected the lower end first")
    return low, high


def _value(text: str, units: Units, default: str = "") -> tuple[float, str]:
    """A value, and the unit that stood there."""
    found = NUMBER.fullmatch(text)
    unit = (found[2] or default) if found else ""
    zero = found is not None and float(found[1]) == 0 and not unit
    if found is None or not (zero or unit in units.factors):
        raise ValueError(f"found {text!r}, expected a value such as {units.examples}")
    return float(found[1]) * units.factors.get(unit, 1.0), unit
