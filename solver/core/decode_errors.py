"""Where in a file a fault is, what stands there and what was expected, in one line.

msgspec names the field of a wrong value, but not the key of a table, what stood there, or the words
that a field may hold. These are worked out here, after the fact: reading good files costs nothing.
"""

import re
from contextlib import suppress
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

__all__: list[str] = ["locate_error"]

STEP = re.compile(r"\.(?P<field>[^.\[\]]+)|\[(?P<index>\d+)\]|\[\.\.\.\]")


def locate_error(error: msgspec.ValidationError, value: Any, kind: Any) -> str:
    """The message for a value that `msgspec.convert` has refused as a `kind`."""
    said, _, where = str(error).partition(" - at `$")
    path, found = "", value
    for step in STEP.finditer(where.rstrip("`")):
        key = _key(step, found, kind)
        found, kind = found.get(key) if isinstance(found, dict) else found[key], _part(kind, key)
        path += str(key) if not path else f".{key}" if step["field"] else f"[{key!r}]"
    what = _what(said, found, get_args(kind) if get_origin(kind) is Literal else ())
    return f"{path}: {what}" if path else what


def _key(step: re.Match[str], found: Any, kind: Any) -> Any:
    """The field, the index, or the key of the first value in a table that is not of its kind."""
    if step["field"] or step["index"]:
        return step["field"] or int(step["index"])
    for key, part in found.items():
        with suppress(msgspec.ValidationError):
            msgspec.convert(part, _part(kind, key))
            continue
        return key
    return next(iter(found))


def _part(kind: Any, key: Any) -> Any:
    """The type of a field, of a list's elements or of a table's values."""
    if is_dataclass(kind):
        return get_type_hints(kind)[key] if key in {f.name for f in fields(kind)} else Any
    parts = [part for part in get_args(kind) if part not in (Ellipsis, type(None))]
    if not parts or get_origin(kind) is Literal:
        return Any
    if is_dataclass(parts[0]) and isinstance(key, str):  # a field of what may also be null
        return _part(parts[0], key)
    return parts[-1]


def _what(said: str, found: Any, words: tuple[str, ...]) -> str:
    shown = repr(found)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    if words:
        return f"found {shown}, expected {' or '.join(map(repr, words))}"
    if match := re.fullmatch(r"Expected `(.+)`, got `(.+)`", said):
        return f"found {shown}, expected {match[1].replace(' | ', ' or ')}"
    if match := re.fullmatch(r"Object missing required field `(.+)`", said):
        return f"found no field {match[1]!r}, expected one"
    return f"{said[:1].lower()}{said[1:]}, found {shown}"
