"""Simulated annealing: a search that can leave the best state among its neighbours.

A worse state is accepted at times, the less often the colder it is (Kirkpatrick, Gelatt and Vecchi
1983).
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

State = TypeVar("State")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Cooling:
    """How many moves, and the first and the last temperature, in the unit of the scores."""

    moves: int
    hot: float
    cold: float
    deadline: float
    """By `time.monotonic`."""


@dataclass(frozen=True, slots=True)
class Assessed(Generic[Result]):
    """How good a state is.

    Attributes:
        score: what annealing lowers, infinite for a state that is not allowed.
        value: what the best result has least of, infinite where the state gives no result.
        result: what the search is for.
    """

    score: float
    value: float = math.inf
    result: Result | None = None


def anneal(
    state: State,
    neighbour: Callable[[State], State | None],
    assess: Callable[[State], Assessed[Result]],
    cooling: Cooling,
    random: np.random.Generator,
) -> Result | None:
    """Go from state to state.

    Args:
        state: the first one.
        neighbour: a state near another one; None where that is none.
        assess: how good a state is.
        cooling: how long and how warm.
        random: decides what is accepted.

    Returns:
        The first result of the least value, None where no state gave one.
    """
    current = best = assess(state)
    for move in range(cooling.moves):
        if time.monotonic() >= cooling.deadline:
            break
        other = neighbour(state)
        if other is None:
            continue
        heat = cooling.hot * (cooling.cold / cooling.hot) ** (move / cooling.moves)
        candidate = assess(other)
        if candidate.value < best.value:
            best = candidate
        # Also from a state that is not allowed.
        if candidate.score <= current.score + heat * random.exponential():
            state, current = other, candidate
    return best.result if best.value < math.inf else None
