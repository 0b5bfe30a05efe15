"""The rules for numbers and names in files and in arguments.

Each error is one line: the field's path or the argument, the value and what was expected.
"""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from skyfx.solver.core.units import SIZE, read_span

SHOWN = 40
"""Characters of a value in a message."""

LARGEST, SMALLEST = 1e100, 1e-100
"""No time and no size is near; beyond them sums and quotients would not be finite."""


def non_negative(path: str, value: Any) -> None:
    """Refuse everything but a number from 0 to `LARGEST`."""
    if not (_is_number(value) and 0 <= value <= LARGEST):
        found = _shown(value)
        raise ValueError(f"{path}: found {found}, expected a finite number >= 0, up to 1e100")


def positive(path: str, value: Any) -> None:
    """Refuse everything but a number from `SMALLEST` to `LARGEST`."""
    if not (_is_number(value) and SMALLEST <= value <= LARGEST):
        found = _shown(value)
        raise ValueError(f"{path}: found {found}, expected a finite number > 0, up to 1e100")


def whole_number(path: str, value: Any, least: int) -> None:
    """Refuse everything but a whole number from `least` to `LARGEST`."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not (is_whole and least <= value <= LARGEST):
        raise ValueError(f"{path}: found {_shown(value)}, expected a whole number >= {least}")


def memory_size(path: str, value: Any) -> float | None:
    """Bytes from a number or from text such as `4GiB`; None stays None."""
    if isinstance(value, str):
        low, high = read_span(value, SIZE, path)
        if low != high:
            raise ValueError(f"{path}: found {value!r}, expected one size such as 4GiB")
        value = high
    if value is not None:
        non_negative(path, value)
    return value  # type: ignore[no-any-return]


def _is_number(value: Any) -> bool:
    return isinstance(value, (float, int, Real)) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    """A value on one line, cut where it is long, as a whole number of hundreds of digits is."""
    text = " ".join(repr(value).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"


def one_of(path: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse everything but one of these words."""
    if value not in choices:
        expected = ", ".join(map(repr, choices[:-1])) + f" or {choices[-1]!r}"
        raise ValueError(f"{path} is {_shown(value)}, expected {expected}")


def text_sequence(path: str, value: Any) -> None:
    """Refuse everything but a list or tuple of texts; a single text is none."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(x, str) for x in value):
        raise ValueError(f"{path}: found {_shown(value)}, expected a list of texts")


def no_duplicates(list_path: str, field: str, names: Sequence[str]) -> None:
    """Refuse a second element of one name."""
    first: dict[str, int] = {}
    for i, name in enumerate(names):
        if name in first:
            raise ValueError(
                f"{list_path}[{i}].{field}: {name!r} is already {list_path}[{first[name]}]; "
                "expected a name of its own"
            )
        first[name] = i
