"""Random operators of several stages share torch's generators, one operator at a time.

torch has one default generator per device for all threads: the numbers of a dropout would depend on
which stage comes first. So each random operator is lent its device's generator, set to the state at
which that operator has to start. A `Source` knows that state: the one of plain torch
(`step_streams`), or the beginning of a stream that the step, the micro-batch and the node's id
seed. With either, a step draws the same numbers under any plan and schedule.
"""

import hashlib
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy
import torch
from torch import Tensor

from skyfx.runtime import pytree
from skyfx.runtime.rng.generator_state import preserve_generators

_local = threading.local()
_default_generators = threading.RLock()
"""Held while a default generator is lent to one operator."""

_others = threading.Lock()
"""Held while Python's and numpy's generators are."""


class Source(Protocol):
    """The generator states at which the random nodes of one stage and micro-batch start."""

    def start(self, node: str) -> int | Tensor:
        """The seed or the state of the generator at which a node starts."""

    def end(self, state: Tensor) -> None:
        """The node has drawn; the generator has this state now."""


@dataclass(frozen=True, slots=True)
class SeededStream:
    """A separate stream for each node of a micro-batch."""

    seed: int
    microbatch: int

    def start(self, node: str) -> int:
        """The seed of the node's stream."""
        key = f"{self.seed}/{self.microbatch}/{node}".encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1

    def end(self, state: Tensor) -> None:
        """Nothing to note: no other node depends on it."""


@dataclass(frozen=True, slots=True)
class NotedSource:
    """Another source, of which it is noted where each node starts."""

    source: Source
    starts: dict[str, int | Tensor] = field(default_factory=dict)

    def start(self, node: str) -> int | Tensor:
        """Where the other source has the node start."""
        self.starts[node] = self.source.start(node)
        return self.starts[node]

    def end(self, state: Tensor) -> None:
        """Tell the other source."""
        self.source.end(state)


@dataclass(frozen=True, slots=True)
class RepeatedSource:
    """The nodes start where they did before."""

    starts: Mapping[str, int | Tensor]

    def start(self, node: str) -> int | Tensor:
        """As noted."""
        return self.starts[node]

    def end(self, state: Tensor) -> None:
        """Nothing to note: what comes after has been drawn."""


def current_source() -> Source | None:
    """The source of this thread, if there is one."""
    found: Source | None = getattr(_local, "source", None)
    return found


@contextmanager
def use_source(source: Source) -> Iterator[None]:
    """Random operators that this thread calls start at the states of this source."""
    before = current_source()
    _local.source = source
    try:
        yield
    finally:
        _local.source = before


def draw(operator: Callable[..., Any], node: str, *args: Any, **kwargs: Any) -> Any:
    """Call a random operator with its device's generator at the state where this node starts.

    Without a source, as in measuring, it draws from the default generator as it is.
    """
    source = current_source()
    if source is None:
        return operator(*args, **kwargs)
    start, generator = source.start(node), _default_generator(args, kwargs)
    with borrow_generator(generator):
        if isinstance(start, int):
            generator.manual_seed(start)
        else:
            generator.set_state(start)
        returned = operator(*args, **kwargs)
        source.end(generator.get_state())
    return returned


def draw_anything(code: Callable[..., Any], node: str, *args: Any) -> Any:
    """`draw` for code that may draw from Python's and numpy's generators as well."""
    source = current_source()
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
    """Hold a default generator for this thread, and set it back at the end."""
    with _default_generators:
        state = generator.get_state()
        try:
            yield
        finally:
            generator.set_state(state)


def lend_none() -> AbstractContextManager[object]:
    """Lend no default generator to another thread meanwhile."""
    return _default_generators


def _default_generator(args: Any, kwargs: Any) -> torch.Generator:
    leaves = pytree.tree_leaves((args, kwargs))
    devices = [leaf.device for leaf in leaves if isinstance(leaf, torch.Tensor)]
    devices += [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    if devices and devices[0].type == "cuda":
        return torch.cuda.default_generators[devices[0].index or 0]
    return torch.default_generator
