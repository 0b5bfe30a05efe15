"""Random operators of several stages, which share torch's generators.

torch has one default generator a device for all threads: what a dropout draws would depend on which
stage comes first. So each random operator is lent its device's generator, put where that operator
has to start. A `Source` tells where: where plain torch would start (`draws`), or at the beginning
of a stream of its own, seeded by the step, the micro-batch and the node's id. With either a step
draws the same under any plan and schedule.
"""

import hashlib
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy
import torch
from torch import Tensor

from skyfx.runtime import pytree
from skyfx.runtime.rng.generator_state import preserve_generators

__all__: list[str] = [
    "SeededStream",
    "Source",
    "borrow_generator",
    "draw",
    "draw_anything",
    "drawing",
    "unlent",
]

_local = threading.local()
_default_generators = threading.RLock()
"""Held while a default generator is lent to one operator."""

_others = threading.Lock()
"""Held while Python's and numpy's are."""


class Source(Protocol):
    """Where the random nodes of one stage and micro-batch start to draw."""

    def start(self, node: str) -> int | Tensor:
        """A seed, or a state of the generator, for a node."""

    def ended(self, state: Tensor) -> None:
        """The node has drawn, and the generator stands here."""


@dataclass(frozen=True, slots=True)
class SeededStream:
    """A stream of its own for each node of a micro-batch."""

    seed: int
    microbatch: int

    def start(self, node: str) -> int:
        """The seed of the node's stream."""
        key = f"{self.seed}/{self.microbatch}/{node}".encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1

    def ended(self, state: Tensor) -> None:
        """No other node has to know."""


@contextmanager
def drawing(source: Source) -> Iterator[None]:
    """Within it, random operators that this thread calls start where the source says."""
    _local.source = source
    try:
        yield
    finally:
        del _local.source


def draw(operator: Callable[..., Any], node: str, *args: Any, **kwargs: Any) -> Any:
    """Call a random operator with its device's generator put where this node starts.

    Where nothing says where, as in measuring, it draws from the default generator as it stands.
    """
    source = _source()
    if source is None:
        return operator(*args, **kwargs)
    start, generator = source.start(node), _default_generator(args, kwargs)
    with borrow_generator(generator):
        if isinstance(start, int):
            generator.manual_seed(start)
        else:
            generator.set_state(start)
        returned = operator(*args, **kwargs)
        source.ended(generator.get_state())
    return returned


def draw_anything(code: Callable[..., Any], node: str, *args: Any) -> Any:
    """`draw` for code that may draw from Python's and numpy's generators as well."""
    source = _source()
    if source is None:
        return code(*args)
    with _others, preserve_generators(with_torch=False):
        seed = source.start(node)
        assert isinstance(seed, int)
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        return draw(code, node, *args)


@contextmanager
def borrow_generator(generator: torch.Generator) -> Iterator[None]:
    """Within it, a default generator is this thread's own; then it stands where it stood."""
    with _default_generators:
        state = generator.get_state()
        try:
            yield
        finally:
            generator.set_state(state)


@contextmanager
def unlent() -> Iterator[None]:
    """Within it, no default generator is lent to another thread."""
    with _default_generators:
        yield


def _source() -> Source | None:
    return getattr(_local, "source", None)


def _default_generator(args: Any, kwargs: Any) -> torch.Generator:
    leaves = pytree.tree_leaves((args, kwargs))
    devices = [leaf.device for leaf in leaves if isinstance(leaf, torch.Tensor)]
    devices += [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    if devices and devices[0].type == "cuda":
        return torch.cuda.default_generators[devices[0].index or 0]
    return torch.default_generator
