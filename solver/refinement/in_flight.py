"""How many micro-batches each stage keeps live, made for the times of one plan.

1F1B keeps as many live on a stage as there are stages from it to the end. That covers the way to
the end and back where all stages take as long and moving takes none; on slow links and unequal
stages it does not, and stages wait:

    live 2, 1   F0 F1 .. .. .. B0 F2 .. .. B1       live 4, 2   F0 F1 F2 F3 .. B0 .. B1
                .. .. F0 B0 .. .. F1 B1 .. ..                   .. .. F0 F1 B0 F2 B1 F3

More live micro-batches take more memory, and fewer than 1F1B's will do where a stage is not what
others wait for. So this is a search: each vector of counts is followed action by action
(`simulate`) and held against the memory. It begins with 1F1B's counts and some multiples of them,
and changes those of neighbouring stages for as long as the step becomes shorter. Orders that are
free to differ from the rule in `schedule` were found to be shorter by less than 2 % on average.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from skyfx.solver.core.schedule import deadlock_reason, in_flight_counts, orders
from skyfx.solver.core.timeline import Timeline
from skyfx.solver.costs.action_times import ActionTimes
from skyfx.solver.costs.simulator import run_schedule

Live = tuple[int, ...]
"""Micro-batches that are live at once on each stage, `(num_stages,)`."""

Fits = Callable[[Live, Timeline], bool]
"""Whether there is memory for as many, in the step that comes of them."""

MULTIPLES = (1.5, 2.0, 3.0)
"""Of 1F1B's counts, from which the search begins as well."""

CHANGES = (1, -1, 2, -2, 4, -4)
"""By how much counts change at a time."""

SHORTER = 1 - 1e-9
"""Of a step: what is no rounding."""

WORK = 30_000
"""Micro-batches times stages that are followed at the most: about a second."""


@dataclass(frozen=True, slots=True)
class Generated:
    """The counts that were found, and what a step takes with them and with those of 1F1B."""

    live: Live
    step_s: float
    first_step_s: float


def generate(
    pace: ActionTimes, num_microbatches: int, fits: Fits, first: Live | None = None
) -> Generated:
    """Search for the counts with the shortest step.

    Args:
        pace: what the actions and messages take.
        num_microbatches: micro-batches in the step.
        fits: asked of every vector but the first.
        first: counts to begin with, 1F1B's by default; what comes of it is no worse.
    """
    search = _Search(pace, num_microbatches, fits, first)
    search.improve()
    return Generated(search.best, search.score[0], search.first_step_s)


class _Search:
    """The best vector so far, and what is known of others."""

    def __init__(self, pace: ActionTimes, m: int, fits: Fits, first: Live | None) -> None:
        self._pace, self._m, self._fits = pace, m, fits
        self._usual = in_flight_counts("1f1b", len(pace.devices), m)
        self._known: dict[Live, tuple[float, int]] = {}
        self._left = max(1, WORK // (m * len(pace.devices)))
        self.best = self._usual if first is None else first
        self.first_step_s = self._followed(self.best).step_s
        self.score = self.first_step_s, self._extra(self.best)
        self._known[self.best] = self.score

    def improve(self) -> None:
        """Take what is better, until nothing near is or enough has been followed."""
        for factor in MULTIPLES:
            self._try(tuple(min(self._m, math.ceil(factor * n)) for n in self._usual))
        self._try((self._m,) * len(self._usual))
        while any(self._try(live) for live in _near(self.best)):
            pass

    def _try(self, live: Live) -> bool:
        """Whether a vector is better than the best one, and so is the best one now."""
        if deadlock_reason(live) or max(live) > self._m or live in self._known or self._left == 0:
            return False
        self._left -= 1
        timeline = self._followed(live)
        fits = self._fits(live, timeline)
        self._known[live] = (timeline.step_s, self._extra(live)) if fits else (math.inf, 0)
        if not self._is_better(*self._known[live]):
            return False
        self.best, self.score = live, self._known[live]
        return True

    def _is_better(self, step_s: float, extra: int) -> bool:
        """Whether a step is shorter by more than rounding, or as long with fewer live."""
        best_s, best_extra = self.score
        return step_s < SHORTER * best_s or (step_s <= best_s and extra < best_extra)

    def _followed(self, live: Live) -> Timeline:
        return run_schedule(self._pace, orders(live, self._m, self._pace.devices))

    def _extra(self, live: Live) -> int:
        """Live micro-batches beyond 1F1B's: between equal steps, the one with fewer is better."""
        return sum(max(0, n - usual) for n, usual in zip(live, self._usual, strict=True))


def _near(live: Live) -> Iterator[Live]:
    """Neighbouring stages change by as many, or one stage gives to another."""
    stages = range(len(live))
    for by in CHANGES:
        for i in stages:
            for j in stages[i:]:
                yield _changed(live, stages[i : j + 1], by)
    for i in stages:
        for j in stages:
            if i != j:
                yield _changed(_changed(live, (i,), 1), (j,), -1)


def _changed(live: Live, stages: Sequence[int], by: int) -> Live:
    return tuple(n + by if k in stages else n for k, n in enumerate(live))
