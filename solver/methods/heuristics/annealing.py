"""Simulated annealing: a search that can leave what is best only among its neighbours.

What is worse stands at times, the less the colder it grows (Kirkpatrick, Gelatt and Vecchi 1983).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

__all__: list[str] = ["Cooling", "anneal"]

State = TypeVar("State")


@dataclass(frozen=True, slots=True)
class Cooling:
    """How long, and how warm in the beginning and in the end, in the unit of the scores."""

    moves: int
    hot: float
    cold: float
    deadline: float
    """By `time.monotonic`."""


def anneal(
    state: State,
    near: Callable[[State], State | None],
    scored: Callable[[State], float],
    cooling: Cooling,
    random: np.random.Generator,
) -> None:
    """Go from state to state; what is worth keeping `scored` keeps.

    Args:
        state: where to begin.
        near: a state near another one, None where that is none.
        scored: the less the better, infinite for what cannot stand.
        cooling: how long and how warm.
        random: says what is accepted.
    """
    score = scored(state)
    for move in range(cooling.moves):
        if time.monotonic() >= cooling.deadline:
            return
        other = near(state)
        if other is None:
            continue
        heat = cooling.hot * (cooling.cold / cooling.hot) ** (move / cooling.moves)
        found = scored(other)
        if found <= score + heat * random.exponential():  # also from one that cannot stand
            state, score = other, found
