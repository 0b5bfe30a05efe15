"""The rules that numbers and names in a file keep.

Each error says the field's path, what stood there and what was expected.
"""

import math
from collections.abc import Sequence

__all__: list[str] = []


def non_negative(path: str, value: float) -> None:
    """Refuse a negative or non-finite number."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{path}: found {value!r}, expected a finite number >= 0")


def positive(path: str, value: float) -> None:
    """Refuse zero, a negative or a non-finite number."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{path}: found {value!r}, expected a finite number > 0")


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
