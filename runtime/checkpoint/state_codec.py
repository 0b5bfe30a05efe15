"""Nested state as JSON, with its tensors apart.

    {"betas": (0.9, 0.999), "exp_avg": tensor}              under "optimizer/head.weight"

    {"betas": {"$tuple": [0.9, 0.999]},                     the JSON
     "exp_avg": {"$tensor": "optimizer/head.weight/exp_avg"}}
    {"optimizer/head.weight/exp_avg": tensor}               the tensors

Decoding gives the same value again, with tuples and with keys that are numbers.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy
import torch
from torch import Tensor

from skyfx.solver.errors import CheckpointError

MARK = "$"
"""The first character of the key of an object that stands for a type JSON does not have."""


def encode(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON.

    Args:
        value: numbers, text, None, tensors and arrays, in lists, tuples and dicts.
        where: its path, for the names of its tensors and for errors.
        tensors: gets its tensors.

    Raises:
        CheckpointError: it holds a value of another type.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        tensors[where] = value
        return {"$tensor": where}
    if isinstance(value, numpy.ndarray):
        tensors[where] = torch.from_numpy(value)
        return {"$array": where}
    if isinstance(value, numpy.generic):
        return value.item()
    if isinstance(value, dict):
        entries = {key: encode(item, f"{where}/{key}", tensors) for key, item in value.items()}
        is_counter = isinstance(value, Counter)
        if not is_counter and all(isinstance(x, str) and not x.startswith(MARK) for x in entries):
            return entries
        pairs = [[encode(key, f"{where}: a key", {}), item] for key, item in entries.items()]
        return {"$counter" if is_counter else "$dict": pairs}
    if type(value) in (list, tuple):
        items = [encode(item, f"{where}/{i}", tensors) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    raise CheckpointError(
        f"{where} is a {type(value).__name__}, expected numbers, text, tensors, or lists, tuples "
        "and dicts of them: convert it, or leave it out"
    )


def decode(tree: Any, tensor: Callable[[str], Tensor]) -> Any:
    """The encoded value; `tensor` returns each of its tensors by name."""
    if isinstance(tree, list):
        return [decode(item, tensor) for item in tree]
    if not isinstance(tree, dict):
        return tree
    kind, content = next(iter(tree.items()), ("", ""))
    match kind:
        case "$tensor":
            return tensor(content)
        case "$array":
            return tensor(content).numpy()
        case "$tuple":
            return tuple(decode(content, tensor))
        case "$dict":
            return dict(decode(content, tensor))
        case "$counter":
            return Counter(dict(decode(content, tensor)))
    return {key: decode(item, tensor) for key, item in tree.items()}
