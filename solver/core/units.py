"""Numbers with units, read and printed: `2GiB`, `20Mbit`, `1ms`, and ranges of them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

NUMBER = re.compile(r"\s*(\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+)\s*([^\d\s]*)\s*")


@dataclass(frozen=True, slots=True)
class Units:
    """The value of each unit, and examples for messages."""

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


def read_span(text: str, units: Units, path: str) -> tuple[float, float]:
    """Read `LOW:HIGH`, or one value for both.

    Args:
        text: such as `2GiB:8GiB`, `2:8GiB` or `8GiB`; the unit of the last value counts for both.
        units: one of them follows each number; 0 needs none.
        path: the field or option, for the message.

    Raises:
        ValueError: the text and what was expected.
    """
    first, colon, last = text.partition(":")
    high, unit = _value(last if colon else first, units, path)
    low = _value(first, units, path, unit)[0] if colon else high
    if low > high:
        raise ValueError(f"{path}: found {text!r}, expected the lower end first")
    return low, high


def _value(text: str, units: Units, path: str, default: str = "") -> tuple[float, str]:
    """The value and the unit in the text."""
    found = NUMBER.fullmatch(text)
    unit = (found[2] or default) if found else ""
    zero = found is not None and float(found[1]) == 0 and not unit
    if found is None or not (zero or unit in units.factors):
        raise ValueError(f"{path}: found {text!r}, expected a value such as {units.examples}")
    return float(found[1]) * units.factors.get(unit, 1.0), unit


def size(num_bytes: float) -> str:
    """Print bytes: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def operations(flops: float) -> str:
    """Print floating point operations: `1.5 GFLOP`."""
    for unit in ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP"):
        if flops < 1000:
            return f"{flops:.0f} FLOP" if unit == "FLOP" else f"{flops:.1f} {unit}"
        flops /= 1000
    return f"{flops:.1f} PFLOP"


def seconds(value: float) -> str:
    """Print seconds: `12.3 ms`."""
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "us")):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return "0 s" if value == 0 else f"{value * 1e9:.3g} ns"


def rate(bytes_per_s: float) -> str:
    """Print bytes per second as links are sold, in bits: `20 Mbit/s`."""
    bits = 8 * bytes_per_s
    for factor, unit in ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s")):
        if bits >= factor:
            return f"{bits / factor:.3g} {unit}"
    return f"{bits:.3g} bit/s"


def percent(gap: float | None) -> str:
    """Print a plan's gap: `1.25%`."""
    return "unknown" if gap is None else f"{gap:.2%}"
