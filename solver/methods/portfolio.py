"""The search for the best plan: one method after the other, until the gap is closed.

Each method starts from the best plan and bound so far. What has been found is never lost, neither
to the time limit nor to Ctrl-C.

`METHODS` is the one table that says which method applies to which problem. No method decides that
for itself, and none asks another one.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from skyfx.solver.errors import InfeasibleError, NoPlanError
from skyfx.solver.methods import requirements as only
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
from skyfx.solver.methods.features import ProblemFeatures
from skyfx.solver.methods.heuristics.baselines import dynamic
from skyfx.solver.methods.heuristics.beam_search import beam_search
from skyfx.solver.methods.heuristics.local_search import local_search, restarted_local_search
from skyfx.solver.methods.heuristics.order_split import order_split
from skyfx.solver.methods.ideals.device_states import MAX_STATES
from skyfx.solver.methods.limits import Limits, TimeUpError
from skyfx.solver.methods.method import Bound, Candidate, MethodUpdate, SearchState
from skyfx.solver.methods.milp.milp_method import integer_program
from skyfx.solver.methods.requirements import Entry
from skyfx.solver.problem import coarsening
from skyfx.solver.problem.problem import Problem

logger = logging.getLogger(__name__)

WORTH_SAYING_S = 1.0
"""Compiling for less than this is not worth a line."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The best plan, the best bound, each method's remark, and whether Ctrl-C ended the search."""

    incumbent: Candidate
    bound: Bound
    remarks: tuple[str, ...] = ()
    interrupted: bool = False


@dataclass(slots=True)
class Portfolio:
    """A search under way: the best plan and bound so far."""

    problem: Problem
    limits: Limits
    incumbent: Candidate | None = None
    methods: Sequence[Entry] = field(default_factory=lambda: METHODS)
    bound: Bound = field(init=False)
    features: ProblemFeatures = field(init=False)
    remarks: dict[str, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.bound = simple_bound(self.problem)
        self.features = ProblemFeatures(self.problem)

    @property
    def state(self) -> SearchState:
        """What the next method is given."""
        return SearchState(self.features, self.incumbent, self.bound, self.limits)

    def run(self) -> SearchResult:
        """Find the best plan.

        Raises:
            InfeasibleError: it is proven that there is no plan.
            NoPlanError: none was found in time.
            KeyboardInterrupt: none was found before Ctrl-C.
        """
        interrupt = self.limits.interrupt
        try:
            for _ in self.updates():
                pass
        except KeyboardInterrupt:
            interrupt.came = True
        if self.incumbent is None:
            raise KeyboardInterrupt if interrupt.came else self._none_in_time()
        return SearchResult(self.incumbent, self.bound, self._all_remarks(), interrupt.came)

    def updates(self) -> Iterator[MethodUpdate]:
        """Run the methods of the table in turn; each update is learned, then handed on.

        Raises:
            InfeasibleError: it is proven that there is no plan.
        """
        for entry in self.methods:
            if self.state.done or self.limits.left_s <= 0:
                return
            limits = self.limits.share(entry.budget)
            with suppress(TimeUpError):
                for update in entry(replace(self.state, limits=limits)):
                    self._learn(entry.name, update)
                    yield update
                    if self.state.done or limits.left_s <= 0:
                        break

    def _learn(self, name: str, update: MethodUpdate) -> None:
        if update.remark:
            self.remarks[name] = update.remark
            logger.info("%s: %s", name, update.remark)
        if update.infeasible and self.incumbent is None:
            raise InfeasibleError(update.infeasible)
        found = Candidate.of(self.problem, update.stages, name)
        if found is not None and (self.incumbent is None or found.value < self.incumbent.value):
            self.incumbent = found
        if update.bound is not None and update.bound.value > self.bound.value:
            self.bound = update.bound
        if update.interrupted:
            self.limits.interrupt.came = True  # then no time is left
        if self.limits.progress is not None:
            value = math.inf if self.incumbent is None else self.incumbent.value
            self.limits.progress(value, self.bound.value)

    def _all_remarks(self) -> tuple[str, ...]:
        if self.limits.compiled_s > WORTH_SAYING_S:
            took = f"{self.limits.compiled_s:.0f} s, once for an installation and beside the limit"
            self.remarks["compiling"] = took
        return tuple(f"{name}: {remark}" for name, remark in self.remarks.items())

    def _none_in_time(self) -> NoPlanError:
        return NoPlanError(
            f"no plan was found in {self.limits.time_limit_s:g} s, though one may exist; "
            "raise the time limit"
        )


def coarse_search(search: SearchState) -> Iterator[MethodUpdate]:
    """Find plans of a long model in slices."""
    coarse = coarsening.coarsen(search.problem)
    limits, known = replace(search.limits, progress=None), Candidate.of(coarse, dynamic(coarse))
    with suppress(InfeasibleError):  # of the slices alone
        for update in Portfolio(coarse, limits, known).updates():
            if update.stages is not None:
                stages = coarsening.refine(search.problem, coarse, update.stages)
                yield MethodUpdate(stages=stages)


def throughput_search(search: SearchState) -> Iterator[MethodUpdate]:
    """Find plans for throughput, and bound the step by their bottleneck.

    A step is mostly its bottleneck, M - 1 times, and most methods know that alone. Plans that are
    not the best for it may have the shorter latency.
    """
    asked = search.problem.assumptions
    problem = replace(search.problem, assumptions=replace(asked, objective="throughput"))
    # More time where no method for steps could be tried; some is left to learn the bound.
    part = 0.4 if search.features.num_states <= MAX_STATES else 0.8
    limits = replace(search.limits.share(part), progress=None)
    known = search.incumbent and Candidate.of(problem, search.incumbent.stages)
    methods = [entry for entry in METHODS if entry.run is not coarse_search]
    nested = Portfolio(problem, limits, known, methods)
    for update in nested.updates():
        if update.stages is not None:
            yield MethodUpdate(stages=update.stages)
    yield MethodUpdate(
        bound=step_bound(search.problem, nested.bound),
        remark=f"throughput of at least {nested.bound.value:.4g} s a micro-batch",
    )


STEPS = (only.STEP, only.RELAY, only.FEW_STATES, only.INCUMBENT)
LEVELS = (only.RELAY, only.THROUGHPUT, only.FEW_LEVEL_STATES, only.INCUMBENT)
SHIFTS = (only.RELAY, only.THROUGHPUT, only.SEVERAL_STAGES, only.SHIFTABLE)
FREE_CHAIN = (only.ENOUGH_MEMORY, only.FREE_MOVES, only.CHAIN, only.RUNS_EVERYWHERE)

METHODS: tuple[Entry, ...] = (
    Entry("slices", coarse_search, (only.LONG,), budget=0.4),
    Entry("interval step dp", interval_step_label_dp, STEPS, budget=0.3),
    Entry("step label dp", step_label_dp, STEPS, budget=0.7),
    Entry("throughput", throughput_search, (only.STEP,)),
    Entry("block-phase milp", block_phase_milp, (only.THROUGHPUT, *FREE_CHAIN)),
    Entry("interval dp", interval_dp, (only.ORDERED_DEVICES,)),
    Entry("interval label dp", interval_label_dp, (only.RELAY, only.FEW_STATES)),
    Entry("memory dual bound", memory_dual_bound, (only.LATENCY, only.MEMORY_BINDS)),
    Entry("order-split", order_split, (only.RELAY, only.MANY_STATES)),
    Entry("local search", local_search, SHIFTS),
    Entry("level dp", level_dp, LEVELS),
    Entry("restarted local search", restarted_local_search, (*SHIFTS, only.UNLISTED_IDEALS)),
    Entry("label dp", label_dp, (only.RELAY, only.FEW_STATES)),
    Entry("level dp (large)", large_level_dp, LEVELS),
    Entry("host window dp", host_window_dp, (only.HOST, only.THROUGHPUT, only.FEW_COUNTS)),
    Entry("host pair dp", host_pair_dp, (only.HOST, only.FEW_STATES)),
    Entry("interval dual bound", interval_dual_bound, (only.RELAY, only.THROUGHPUT, only.CHAIN)),
    Entry("beam search", beam_search, (only.RELAY, only.SEVERAL_DEVICES)),
    Entry("integer program", integer_program),
)
"""In the order in which they are tried: quick plans first, then quick proofs, then the ILP."""
