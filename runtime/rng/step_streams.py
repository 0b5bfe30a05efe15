"""What the random nodes of a step draw: as in plain torch, one micro-batch after the other.

    plain torch         a b c d   a b c d   a b c d     one generator goes through all nodes
    stage of a and c    a . c .   a . c .   a . c .     draws for its own and skips (.) the others

How far a node takes the generator depends on its operator, shapes and dtypes, and is learnt when
the model is split (`Advance`). So each stage goes through all nodes by itself, in whatever process
it is, and no stage waits for another.

Where only values tell how far, or another generator is drawn from, each node of the whole model has
a stream of its own instead.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from skyfx.runtime.rng import mt19937
from skyfx.runtime.rng.generator_lending import SeededStream, Source, borrow_generator
from skyfx.runtime.rng.mt19937 import holds_normal

__all__: list[str] = ["Advance", "Advances", "Draws", "begun"]


@dataclass(frozen=True, slots=True)
class Advance:
    """How far a random node takes the generator.

    Attributes:
        node: its id.
        numbers: of 32 bits, that it draws if no normal number is left in the generator; None if it
            leaves one there.
        run: runs it on made-up values, which takes the generator as far; None if it always draws
            those numbers.
    """

    node: str
    numbers: int | None
    run: Callable[[], Any] | None = None


Advances = Sequence[Advance] | None
"""Of all random nodes of a model, in its order; None where that of one is not known."""


class Draws(Protocol):
    """Where the random nodes of a step start to draw."""

    def source(self, k: int, m: int) -> Source:
        """Those of stage k and micro-batch m."""


def begun(advances: Sequence[Advances], agreed: Callable[[Tensor], Tensor]) -> Draws:
    """Begin a step. torch's default generator then stands where the step leaves it.

    Args:
        advances: of each micro-batch, `(num_microbatches,)`.
        agreed: from the state of this process's generator to that of all.
    """
    torch.set_rng_state(agreed(torch.get_rng_state()))
    known = [one for one in advances if one is not None]
    if len(known) < len(advances):
        return _OwnDraws(int(torch.randint(2**62, ()).item()))
    draws = _PlainDraws(torch.get_rng_state(), known)
    torch.set_rng_state(draws.end())
    return draws


@dataclass(frozen=True, slots=True)
class _OwnDraws:
    """Each node of each micro-batch has a stream of its own."""

    seed: int

    def source(self, k: int, m: int) -> Source:
        """Those of stage k and micro-batch m."""
        return SeededStream(self.seed, m)


class _PlainDraws:
    """Each node starts where plain torch's generator would stand."""

    def __init__(self, state: Tensor, advances: Sequence[Sequence[Advance]]) -> None:
        pairs = [(m, advance) for m, part in enumerate(advances) for advance in part]
        self._state, self._advances = state, [advance for _, advance in pairs]
        self._place = {(m, advance.node): i for i, (m, advance) in enumerate(pairs)}
        self._walks: dict[int, _Walk] = {}

    def source(self, k: int, m: int) -> Source:
        """Those of stage k and micro-batch m."""
        walk = self._walks.setdefault(k, _Walk(self._state, self._advances))
        return _Walking(walk, self._place, m)

    def end(self) -> Tensor:
        """Where the generator stands behind all nodes."""
        return _Walk(self._state, self._advances).to(len(self._advances))


class _Walk:
    """A generator on its way through all nodes of a step."""

    def __init__(self, state: Tensor, advances: Sequence[Advance]) -> None:
        self._begin = self.state = state
        self._advances = advances
        self.at = 0

    def to(self, place: int) -> Tensor:
        """The state in front of a node; usually it is further on."""
        if place < self.at:
            self.state, self.at = self._begin, 0
        owed = 0
        for advance in self._advances[self.at : place]:
            if advance.run and (advance.numbers is None or holds_normal(self.state)):
                self.state = _run(advance.run, mt19937.advance(self.state, owed))
                owed = 0
            else:
                owed += advance.numbers or 0
        if owed:
            self.state = mt19937.advance(self.state, owed)
        self.at = place
        return self.state


@dataclass(frozen=True, slots=True)
class _Walking:
    """A stage's walk, in one micro-batch."""

    walk: _Walk
    place: Mapping[tuple[int, str], int]
    microbatch: int

    def start(self, node: str) -> Tensor:
        """The state in front of this node."""
        return self.walk.to(self.place[self.microbatch, node])

    def ended(self, state: Tensor) -> None:
        """The node has drawn, and the walk goes on behind it."""
        self.walk.state = state
        self.walk.at += 1


def _run(operator: Callable[[], Any], state: Tensor) -> Tensor:
    """The state to which an operator takes the generator from this one."""
    generator = torch.default_generator
    with borrow_generator(generator):
        generator.set_state(state)
        operator()
        return generator.get_state()
