"""Plans that fit, near one that may not: cuts move, and what does not fit is recomputed.

How much comes and goes in a stage depends on where exactly it begins and ends, and on how many
messages wait there, so no sum over its nodes tells it. In rounds, annealing finds stages that about
cost least, with a weight on what is too large. Of the best few segments are chosen, if any may be
recomputed; what these stages need in truth is known in the next round. Every other round is hopeful
of the rest.

    anneal  ->  a few stages  ->  choose their segments  ->  plans
       ^------  what they need  <---------'
"""

import math
import time
from collections.abc import Collection, Iterator

from skyfx.solver.methods.heuristics.annealing import Assessed, Cooling
from skyfx.solver.problem.instance import UnitPlacement
from skyfx.solver.problem.tolerances import OPTIMALITY_TOLERANCE
from skyfx.solver.refinement.cut_moves import Segments, anneal_cuts, segments_of, stages_of
from skyfx.solver.refinement.segment_choice import Recomputing, SegmentChoice

HOT, COLD = 0.1, 1e-3
"""Temperatures, in parts of the objective."""

ROUNDS, IN_VAIN = 20, 4
"""Of annealing, and how many that find nothing better end it."""

MOVES, MOVES_EACH = 3000, 100
"""Of a round at most, and per unit."""

SEARCH_S = 8.0
"""Seconds of all rounds, at the most."""

EXCESS_WEIGHT = 5.0
"""The weight of an excess, in parts of the limit, against the objective."""

SLACK = 0.02
"""The weight of the stages' mean time: stages with time to spare fit more easily."""

NUM_TRIED, UNLIKE = 8, 0.002
"""Of how many stages segments are chosen in a round, and by which part their scores differ."""


def plans_near(
    choice: SegmentChoice, stages: UnitPlacement, seconds: float = SEARCH_S
) -> Iterator[Recomputing]:
    """These stages and others near them, with their segments; of those that fit the best is last.

    Args:
        choice: of the segments.
        stages: in the units of the choice's problem; only devices that have units are changed.
        seconds: after which the search ends.
    """
    problem, stages = choice.problem, [(d, units) for d, units in stages if len(units)]
    order, segments = segments_of(stages)
    unit, estimate = problem.cost(stages).objective_value or 1.0, choice.estimate(order)
    deadline, tried = time.monotonic() + seconds, set[Segments]()
    least, in_vain = math.inf, 0
    nearest = [segments]
    for seed in range(ROUNDS):
        before = least
        for one in nearest:
            if seed and time.monotonic() > deadline:
                return
            tried.add(one)
            chosen = choice.choose(stages_of(order, *one))
            if chosen is None:
                continue
            estimate.learn(one, chosen.needs)
            if not chosen.over and chosen.candidate.value < least:
                least = chosen.candidate.value
                yield chosen
        in_vain = 0 if least < before * (1 - OPTIMALITY_TOLERANCE) or not seed else in_vain + 1
        if in_vain == IN_VAIN:
            return
        seen: dict[Segments, float] = {}

        def assess(
            segments: Segments, seen: dict[Segments, float] = seen, hopeful: bool = seed % 2 == 1
        ) -> Assessed[Segments]:
            value, latency_s, over = estimate.of(segments, hopeful=hopeful)
            score = (value + SLACK * latency_s / len(segments[0])) / unit + EXCESS_WEIGHT * over
            seen[segments] = score + bool(over)  # one that fits comes first, mostly
            return Assessed(score, seen[segments], segments)

        cooling = Cooling(min(MOVES, MOVES_EACH * len(order)), HOT, COLD, deadline)
        segments = anneal_cuts(problem, segments, assess, cooling, seed) or segments
        nearest = _unlike(seen, tried)


def _unlike(scores: dict[Segments, float], tried: Collection[Segments]) -> list[Segments]:
    """The best that have not been tried, of scores that differ."""
    found, last = list[Segments](), -math.inf
    for one in sorted(scores, key=scores.__getitem__):
        if len(found) == NUM_TRIED or scores[one] == math.inf:
            break
        if scores[one] > last * (1 + UNLIKE) and one not in tried:
            found.append(one)
            last = scores[one]
    return found
