"""Where in a file a fault is, the value there and what was expected, in one line.

msgspec names the field of a wrong value, but not the key of a table, the value, or the words that a
field may hold. These are found here after an error: reading good files costs nothing.
"""

import difflib
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

STEP = re.compile(r"\.(?P<field>[^.\[\]]+)|\[(?P<index>\d+)\]|\[\.\.\.\]")


def locate_error(error: msgspec.ValidationError, value: Any, kind: Any) -> str:
    """The message for a value that `msgspec.convert` refused as a `kind`."""
    said, _, where = str(error).partition(" - at `$")
    path, found = "", value
    for step in STEP.finditer(where.rstrip("`")):
        key = _key(step, found, kind)
        found, kind = found.get(key) if isinstance(found, dict) else found[key], _part(kind, key)
        path += str(key) if not path else f".{key}" if step["field"] else f"[{key!r}]"
    what = _what(said, found, get_args(kind) if get_origin(kind) is Literal else ())
    return f"{path}: {what}" if path else what


def unknown_fields(value: Any, kind: Any) -> Iterator[str]:
    """A line for each field that the format does not have, with the nearest one that it has.

    Of a field that many objects of one kind have, the first one is named.
    """
    told: set[tuple[Any, str]] = set()
    pending = [("", value, kind)]
    while pending:
        path, found, kind = pending.pop()
        if isinstance(found, list) and _field_types(part := _part(kind, None)):
            pending += [(f"{path}[{i}]", x, part) for i, x in reversed([*enumerate(found)])]
        names = _field_types(kind) if isinstance(found, dict) else {}
        for key in found if names else ():
            where = f"{path}.{key}" if path else key
            if key in names:
                if isinstance(found[key], (dict, list)):
                    pending.append((where, found[key], names[key]))
            elif (kind, key) not in told:
                told.add((kind, key))
                near = difflib.get_close_matches(key, names, n=1, cutoff=0.0)[0]
                yield f"{where}: no such field, it is ignored; the nearest one is {near!r}"


@cache
def _field_types(kind: Any) -> dict[str, Any]:
    """The types of a dataclass's fields by their names; empty for all other types."""
    for one in (kind, *get_args(kind)):  # a field may also be null
        if is_dataclass(one):
            types = get_type_hints(one)
            return {field.name: types[field.name] for field in fields(one)}
    return {}


def _key(step: re.Match[str], found: Any, kind: Any) -> Any:
    """The field, the index, or the key of the first wrong value in a table."""
    if step["field"] or step["index"]:
        return step["field"] or int(step["index"])
    for key, part in found.items():
        with suppress(msgspec.ValidationError):
            msgspec.convert(part, _part(kind, key))
            continue
        return key
    return next(iter(found))


def _part(kind: Any, key: Any) -> Any:
    """The type of a field, of the elements of a list or of the values of a table."""
    if isinstance(key, str) and (types := _field_types(kind)):
        return types.get(key, Any)
    parts = [part for part in get_args(kind) if part not in (Ellipsis, type(None))]
    return Any if not parts or get_origin(kind) is Literal else parts[-1]


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
