"""The search for the best plan: one method after the other, until the gap is closed.

Each starts from the best plan and bound so far: what has been found is never lost, to the
time limit as little as to Ctrl-C.
"""

import logging
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from skyfx.solver.errors import InfeasibleError, NoPlanError
from skyfx.solver.methods.bounds.interval_dual import interval_dual_bound
from skyfx.solver.methods.bounds.memory_dual import memory_dual_bound
from skyfx.solver.methods.bounds.simple_bounds import simple_bound, step_bound
from skyfx.solver.methods.exact.block_phase_milp import block_phase_milp
from skyfx.solver.methods.exact.host_pair_dp import host_pair_dp
from skyfx.solver.methods.exact.host_window_dp import host_window_dp
from skyfx.solver.methods.exact.interval_dp import interval_dp
from skyfx.solver.methods.exact.label_dp import interval_label_dp, label_dp
from skyfx.solver.methods.exact.level_dp import large_level_dp, level_dp
from skyfx.solver.methods.exact.step_label_dp import interval_step_label_dp, step_label_dp
from skyfx.solver.methods.heuristics.baselines import dynamic
from skyfx.solver.methods.heuristics.beam_search import beam_search
from skyfx.solver.methods.heuristics.local_search import local_search, restarted_local_search
from skyfx.solver.methods.heuristics.order_split import order_split
from skyfx.solver.methods.ideals.device_states import MAX_STATES, States
from skyfx.solver.methods.limits import Limits, TimeUpError
from skyfx.solver.methods.method import Bound, Candidate, Method, MethodUpdate, SearchState
from skyfx.solver.methods.milp.milp_method import integer_program
from skyfx.solver.problem.coarsening import coarsen, refine
from skyfx.solver.problem.problem import Problem, UnitPlacement

__all__: list[str] = ["Portfolio", "SearchResult"]

logger = logging.getLogger(__name__)

METHODS: dict[str, Method] = {
    "block-phase milp": block_phase_milp,
    "interval dp": interval_dp,
    "interval label dp": interval_label_dp,
    "memory dual bound": memory_dual_bound,
    "order-split": order_split,
    "local search": local_search,
    "level dp": level_dp,
    "restarted local search": restarted_local_search,
    "label dp": label_dp,
    "level dp (large)": large_level_dp,
    "host window dp": host_window_dp,
    "host pair dp": host_pair_dp,
    "interval dual bound": interval_dual_bound,
    "beam search": beam_search,
    "integer program": integer_program,
}
"""In the order in which they are tried: quick plans first, then quick proofs, then the ILP."""

STEP_METHODS: dict[str, tuple[Method, float]] = {
    "interval step dp": (interval_step_label_dp, 0.3),
    "step label dp": (step_label_dp, 0.7),
}
"""What comes before them where a step is to be short, and of the time that is left how much."""

THROUGHPUT, MOSTLY_THROUGHPUT = 0.4, 0.8
"""The search for throughput that then comes gets so much of it; more where they have too many
states of devices to look at."""

COARSE = 0.4
"""Of the time, for a long model in slices."""

WORTH_SAYING_S = 1.0
"""Compiling for less than this is not worth a line."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The best plan, the best bound, what each method said, and whether Ctrl-C ended the search."""

    incumbent: Candidate
    bound: Bound
    remarks: tuple[str, ...] = ()
    interrupted: bool = False


@dataclass(slots=True)
class Portfolio:
    """A search under way: the best plan and bound so far.

    Attributes:
        on_plan: told of each plan found.
        coarsely: whether slices of a long model are looked at first.
    """

    problem: Problem
    limits: Limits
    incumbent: Candidate | None = None
    on_plan: Callable[[UnitPlacement], None] | None = None
    coarsely: bool = True
    bound: Bound = field(init=False)
    remarks: dict[str, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.bound = simple_bound(self.problem)

    def run(self) -> SearchResult:
        """Find the best plan.

        Raises:
            InfeasibleError: it is proven that there is no plan.
            NoPlanError: none was found in time.
            KeyboardInterrupt: none was found before Ctrl-C.
        """
        interrupted = False
        try:
            self._look_coarsely()
            if self.problem.assumptions.objective == "step":
                interrupted = self._look_for_steps()
            for name, method in METHODS.items():
                if interrupted or self._task.done or self.limits.left_s <= 0:
                    break
                interrupted = self._try(name, method)
        except KeyboardInterrupt:
            interrupted = True
        interrupted = interrupted or self.limits.interrupt.came
        if self.incumbent is None:
            raise KeyboardInterrupt if interrupted else self._none_in_time()
        return SearchResult(self.incumbent, self.bound, self._all_remarks(), interrupted)

    def _all_remarks(self) -> tuple[str, ...]:
        if self.limits.compiled_s > WORTH_SAYING_S:
            took = f"{self.limits.compiled_s:.0f} s, once for an installation and beside the limit"
            self.remarks["compiling"] = took
        return tuple(f"{name}: {said}" for name, said in self.remarks.items())

    @property
    def _task(self) -> SearchState:
        return SearchState(self.problem, self.incumbent, self.bound, self.limits)

    def _try(self, name: str, method: Method, part: float = 1.0) -> bool:
        """Run one method in a part of the time; returns whether Ctrl-C ended it."""
        limits = self._part(part)
        with suppress(TimeUpError):
            for answer in method(replace(self._task, limits=limits)):
                self._learn(name, answer)
                if answer.interrupted:
                    return True
                if self._task.done or limits.left_s <= 0:
                    break
        return False

    def _part(self, part: float) -> Limits:
        """The limits with a part of the time that is left."""
        gone_s = self.limits.time_limit_s - self.limits.left_s
        return replace(self.limits, time_limit_s=gone_s + part * self.limits.left_s)

    def _look_coarsely(self) -> None:
        """Hear all plans of the slices of a long model, in a part of the time."""
        coarse = coarsen(self.problem) if self.coarsely and not self._task.done else None
        if coarse is None:
            return

        def on_plan(stages: UnitPlacement) -> None:
            self._learn("slices", MethodUpdate(stages=refine(self.problem, coarse, stages)))

        limits = replace(self._part(COARSE), progress=None)
        known = Candidate.of(coarse, dynamic(coarse))
        with suppress(InfeasibleError, NoPlanError):
            Portfolio(coarse, limits, known, on_plan=on_plan).run()

    def _look_for_steps(self) -> bool:
        """What is for steps alone; returns whether Ctrl-C ended it."""
        for name, (method, part) in STEP_METHODS.items():
            if self._try(name, method, part):
                return True
        if not self._task.done:
            self._learn_from_throughput()
        return False

    def _learn_from_throughput(self) -> None:
        """Hear all plans of a search for throughput, in a part of the time.

        A step is mostly its bottleneck, M - 1 times, and most methods know that alone. Plans that
        are not the best for it may have the shorter latency.
        """
        asked = self.problem.assumptions
        problem = replace(self.problem, assumptions=replace(asked, objective="throughput"))
        few = States.number(problem) <= MAX_STATES
        limits = replace(self._part(THROUGHPUT if few else MOSTLY_THROUGHPUT), progress=None)
        known = None if self.incumbent is None else Candidate.of(problem, self.incumbent.stages)

        def on_plan(stages: UnitPlacement) -> None:
            self._learn("throughput", MethodUpdate(stages=stages))

        search = Portfolio(problem, limits, known, on_plan=on_plan, coarsely=False)
        with suppress(NoPlanError):
            search.run()
        said = f"throughput of at least {search.bound.value:.4g} s a micro-batch"
        self._learn(
            "throughput", MethodUpdate(bound=step_bound(self.problem, search.bound), remark=said)
        )

    def _learn(self, name: str, answer: MethodUpdate) -> None:
        if self.on_plan is not None and answer.stages is not None:
            self.on_plan(answer.stages)
        if answer.remark:
            self.remarks[name] = answer.remark
            logger.info("%s: %s", name, answer.remark)
        if answer.infeasible and self.incumbent is None:
            raise InfeasibleError(answer.infeasible)
        found = Candidate.of(self.problem, answer.stages, name)
        if found is not None and (self.incumbent is None or found.value < self.incumbent.value):
            self.incumbent = found
        if answer.bound is not None and answer.bound.value > self.bound.value:
            self.bound = answer.bound
        if self.limits.progress is not None:
            value = math.inf if self.incumbent is None else self.incumbent.value
            self.limits.progress(value, self.bound.value)

    def _none_in_time(self) -> NoPlanError:
        return NoPlanError(
            f"no plan was found in {self.limits.time_limit_s:g} s, though one may exist; "
            "raise the time limit"
        )
