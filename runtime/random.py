"""Random numbers that do not depend on the plan.

torch has one default generator a device, shared by all threads: what a dropout draws would depend
on which stage comes first. Instead every random operator of every micro-batch draws from a stream
of its own, seeded by the step's seed, the micro-batch and the node's id. So a step gives the same
masks under any plan and schedule, a single stage included, and `torch.manual_seed` makes it
reproducible.
"""

import hashlib
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch.utils import _pytree as pytree

__all__: list[str] = ["draw", "draw_anything", "fresh_seed", "others_kept", "states", "stream"]

_local = threading.local()
_default_generators = threading.Lock()
"""Held while a default generator is lent to one operator."""

_others = threading.Lock()
"""Held while Python's and numpy's are."""


@contextmanager
def stream(seed: int, microbatch: int) -> Iterator[None]:
    """Within it, this thread's `draw` belongs to this step and micro-batch."""
    _local.key = f"{seed}/{microbatch}"
    try:
        yield
    finally:
        del _local.key


def fresh_seed() -> int:
    """A seed for one step, drawn from torch's default generator."""
    return int(torch.randint(2**62, ()).item())


def draw(operator: Callable[..., Any], node: str, *args: Any, **kwargs: Any) -> Any:
    """Call a random operator with its device's generator set to the node's own stream.

    Outside a `stream`, as in measuring, it draws from the default generator as it stands.
    """
    number = _number_of(node)
    if number is None:
        return operator(*args, **kwargs)
    generator = _default_generator(args, kwargs)
    with _default_generators:
        state = generator.get_state()
        generator.manual_seed(number)
        try:
            return operator(*args, **kwargs)
        finally:
            generator.set_state(state)


def draw_anything(code: Callable[..., Any], node: str, *args: Any) -> Any:
    """`draw` for code that may draw from Python's and numpy's generators as well."""
    number = _number_of(node)
    if number is None:
        return code(*args)
    with _others, others_kept():
        random.seed(number)
        numpy.random.seed(number % 2**32)
        return draw(code, node, *args)


@contextmanager
def others_kept() -> Iterator[None]:
    """Python's and numpy's generators as they were, once it is done."""
    python, arrays = random.getstate(), numpy.random.get_state(legacy=False)
    try:
        yield
    finally:
        random.setstate(python)
        numpy.random.set_state(arrays)


def states() -> dict[str, Any]:
    """What the generators of this process stand at, by the name of the module; to be compared."""
    arrays: Any = numpy.random.get_state(legacy=True)
    _, keys, *others = arrays
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "random": random.getstate(),
        "numpy.random": (keys.tobytes(), *others),
    }


def _number_of(node: str) -> int | None:
    """The seed of a node's stream, in a `stream`."""
    key = getattr(_local, "key", None)
    if key is None:
        return None
    digest = hashlib.blake2b(f"{key}/{node}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _default_generator(args: Any, kwargs: Any) -> torch.Generator:
    leaves = pytree.tree_leaves((args, kwargs))
    devices = [leaf.device for leaf in leaves if isinstance(leaf, torch.Tensor)]
    devices += [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    if devices and devices[0].type == "cuda":
        return torch.cuda.default_generators[devices[0].index or 0]
    return torch.default_generator
