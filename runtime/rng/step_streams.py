"""The random numbers of a step: those of plain torch, which runs one micro-batch after the other.

    plain torch         a b c d   a b c d   a b c d     one generator advances through all nodes
    stage of a and c    a . c .   a . c .   a . c .     draws for its nodes and skips (.) the others

How far a node advances the generator depends on its operator, shapes and dtypes; it is found when
the model is split (`Advance`). So each stage follows the generator through all nodes on its own, in
any process, and no stage waits for another.

Where the advance depends on values, or a node draws from another generator, each node of the whole
model has a separate stream instead.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skyfx.runtime.rng import mt19937
from skyfx.runtime.rng.generator_lending import SeededStream, Source, borrow_generator
from skyfx.runtime.rng.mt19937 import holds_normal


@dataclass(frozen=True, slots=True)
class Advance:
    """How far a random node advances the generator.

    Attributes:
        node: its id.
        numbers: 32-bit numbers that it draws if the generator holds no normal number; None if the
            node leaves one there.
        run: runs it on synthetic values, which advances the generator as far; None if it always
            draws `numbers`.
    """

    node: str
    numbers: int | None
    run: Callable[[], Any] | None = None


Advances = Sequence[Advance] | None
"""The advances of all random nodes of a model, in its order; None if that of one is not known."""


Draws = Callable[[int, int], Source]
"""From a stage and a micro-batch to the generator states at which their random nodes start."""


def begin_step_streams(
    advances: Sequence[Advances], agree: Callable[[Tensor], Tensor]
) -> Draws | None:
    """Begin a step, and leave torch's default generator at the state after it.

    A model without random nodes leaves it as it is, and has no draws.

    Args:
        advances: of each micro-batch, `(num_microbatches,)`.
        agree: from the state of this process's generator to the one that all processes use.
    """
    if all(one is not None and not one for one in advances):
        return None
    torch.set_rng_state(agree(torch.get_rng_state()))
    known = [one for one in advances if one is not None]
    if len(known) < len(advances):
        seed = int(torch.randint(2**62, ()).item())
        return lambda _, m: SeededStream(seed, m)
    pairs = [(m, advance) for m, part in enumerate(known) for advance in part]
    position = {(m, advance.node): i for i, (m, advance) in enumerate(pairs)}
    state, nodes = torch.get_rng_state(), [advance for _, advance in pairs]
    cursors: dict[int, GeneratorCursor] = {}
    torch.set_rng_state(GeneratorCursor(state, nodes).move_to(len(nodes)))
    return lambda k, m: _PlainSource(
        cursors.setdefault(k, GeneratorCursor(state, nodes)), position, m
    )


class GeneratorCursor:
    """The state of a generator that advances through all nodes of a step."""

    def __init__(self, state: Tensor, advances: Sequence[Advance]) -> None:
        self._begin = self.state = state
        self._advances = advances
        self.position = 0

    def move_to(self, position: int) -> Tensor:
        """The state before a node; usually the node is further on."""
        if position < self.position:
            self.state, self.position = self._begin, 0
        skipped = 0
        for advance in self._advances[self.position : position]:
            if advance.run and (advance.numbers is None or holds_normal(self.state)):
                self.state = _run(advance.run, mt19937.advance(self.state, skipped))
                skipped = 0
            else:
                skipped += advance.numbers or 0
        if skipped:
            self.state = mt19937.advance(self.state, skipped)
        self.position = position
        return self.state


@dataclass(frozen=True, slots=True)
class _PlainSource:
    """The cursor of a stage, in one micro-batch."""

    cursor: GeneratorCursor
    position: Mapping[tuple[int, str], int]
    microbatch: int

    def start(self, node: str) -> Tensor:
        return self.cursor.move_to(self.position[self.microbatch, node])

    def end(self, state: Tensor) -> None:
        self.cursor.state = state
        self.cursor.position += 1


def _run(operator: Callable[[], Any], state: Tensor) -> Tensor:
    """The state of the generator after an operator that starts from this state."""
    generator = torch.default_generator
    with borrow_generator(generator):
        generator.set_state(state)
        operator()
        return generator.get_state()
