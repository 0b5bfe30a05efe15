"""The rules that numbers and names in a file keep.

Each error says the field's path, what stood there and what was expected.
"""

from collections.abc import Sequence

__all__: list[str] = []


SHOWN = 40
"""Digits of a number in a message."""

LARGEST, SMALLEST = 1e100, 1e-100
"""No time and no size is near; beyond them sums and quotients would not be finite."""


def non_negative(path: str, value: float) -> None:
    """Refuse a negative number, an infinite one, and one that might as well be."""
    if not 0 <= value <= LARGEST:
        found = _shown(value)
        raise ValueError(f"{path}: found {found}, expected a finite number >= 0, up to 1e100")


def positive(path: str, value: float) -> None:
    """Refuse zero, a negative or an infinite number, and what might as well be one of these."""
    if not SMALLEST <= value <= LARGEST:
        found = _shown(value)
        raise ValueError(f"{path}: found {found}, expected a finite number > 0, up to 1e100")


def _shown(value: float) -> str:
    """A number as it stood there, unless it has hundreds of digits."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} digits)"


def one_of(path: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a word that is none of the choices."""
    if value not in choices:
        expected = ", ".join(map(repr, choices[:-1])) + f" or {choices[-1]!r}"
        raise ValueError(f"{path} is {value!r}, expected {expected}")


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
