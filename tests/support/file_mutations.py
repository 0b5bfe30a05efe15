"""Files gone wrong: one random change of a good file, of its values or of its bytes."""

import copy
import json
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

ODD: list[Any] = [
    *(None, True, "", "x", "n0", "cpu", "host", "skyfx.graph/1", "\u0000", "[red]", "é" * 99),
    *(-1, 0, 1, -0.5, 1e-300, 1e308, 10**400, float("nan"), float("inf")),
    *([], {}, [[]], [None], {"cpu": 1}, {"cpu": "x"}),
]
"""What a field may come to hold."""


def mutated(raw: bytes, random: Random) -> bytes:
    """One change: four in five of a value in the JSON, else of the bytes."""
    if random.random() < 0.2:
        return _bytes(raw, random)
    document = json.loads(raw)
    holder, key = random.choice([*_places(document)])
    random.choice(CHANGES)(holder, key, random)
    return json.dumps(document).encode()


def _places(part: Any) -> Iterator[tuple[Any, Any]]:
    """Every value inside, as the object or list that holds it and its key."""
    for key in [*part] if isinstance(part, dict) else range(len(part)):
        yield part, key
        if isinstance(part[key], (dict, list)):
            yield from _places(part[key])


def _replace(holder: Any, key: Any, random: Random) -> None:
    holder[key] = copy.deepcopy(random.choice(ODD))


def _delete(holder: Any, key: Any, _: Random) -> None:
    del holder[key]


def _nudge(holder: Any, key: Any, random: Random) -> None:
    if isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
        holder[key] = holder[key] * random.choice([-1, 0.5, 1.001, 3, 1e12, 1e-12])
    else:
        _replace(holder, key, random)


def _copy(holder: Any, key: Any, random: Random) -> None:
    """A value from elsewhere in the same holder."""
    others = [*holder.values()] if isinstance(holder, dict) else holder
    holder[key] = copy.deepcopy(random.choice(others))


def _again(holder: Any, key: Any, _: Random) -> None:
    """An element twice, or a field under another name."""
    if isinstance(holder, list):
        holder.insert(0, copy.deepcopy(holder[key]))
    else:
        holder[f"{key}_"] = holder.pop(key)


CHANGES: list[Callable[[Any, Any, Random], None]] = [_replace, _delete, _nudge, _copy, _again]


def _bytes(raw: bytes, random: Random) -> bytes:
    at = random.randrange(len(raw))
    return random.choice(
        [
            raw[:at],
            raw[:at] + bytes([random.randrange(256)]) + raw[at + 1 :],
            raw[:at] + raw[at + 1 :],
            raw[:at] + raw[at:] * 2,
            raw[:at] + raw[at : at + 40] * 3 + raw[at:],
        ]
    )
