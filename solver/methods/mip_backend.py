"""The adapter to PuLP's solvers: the only file that knows HiGHS.

PuLP 3 and 4 disagree in places, and PuLP's statuses call a plan "Optimal" that a limit has stopped.
What is read here is what HiGHS itself says: whether there is a solution, and its dual bound.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import highspy
import numpy as np
import pulp

TOLERANCE = 1e-9
"""At its default of 1e-6 HiGHS undercuts the bottleneck by more than a certificate may be wrong."""

Progress = Callable[[float, float], None]
"""Called with the incumbent's value and the bound, each in the problem's own unit."""


@dataclass(frozen=True, slots=True)
class MipAnswer:
    """What a solver found: each variable's value, or None, and a proven bound on the objective."""

    values: dict[str, float] | None
    bound: float
    infeasible: bool
    interrupted: bool


def version() -> str:
    """The version of HiGHS."""
    return str(highspy.Highs().version())  # type: ignore[no-untyped-call]


def names() -> tuple[str, ...]:
    """The solvers that PuLP knows, here or not."""
    return tuple(pulp.listSolvers())


def minimise(
    problem: pulp.LpProblem,
    start: Mapping[str, float],
    *,
    time_limit_s: float,
    gap: float,
    seed: int = 0,
    solver: str = "HiGHS",
    progress: Progress | None = None,
) -> MipAnswer:
    """Minimise the problem.

    Args:
        problem: with variables named by index.
        start: values of (some of) the integer variables of a known solution.
        time_limit_s: seconds after which the best so far is returned.
        gap: relative gap at which to stop.
        seed: the solver's random seed.
        solver: a name that `pulp.getSolver` knows.
        progress: told of each better solution and, now and then, of the bound (HiGHS only).

    Returns:
        The best solution and bound, also when a limit or Ctrl-C ended the search. Neither, if the
        problem's coefficients are of magnitudes that HiGHS refuses.
    """
    if solver != "HiGHS":
        return _minimise_by_name(problem, solver, time_limit_s, gap)
    highs = _WarmHiGHS(start, progress, msg=False, timeLimit=time_limit_s, gapRel=gap, gapAbs=0.0)
    highs.optionsDict |= {
        "random_seed": seed,
        "primal_feasibility_tolerance": TOLERANCE,
        "mip_feasibility_tolerance": TOLERANCE,
    }
    try:
        problem.solve(highs)
    except _RefusedError:
        return MipAnswer(values=None, bound=-math.inf, infeasible=False, interrupted=False)
    model = problem.solverModel
    info, status = model.getInfo(), model.getModelStatus()
    states = highspy.HighsModelStatus
    found = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    return MipAnswer(
        values={v.name: float(v.varValue) for v in problem.variables()} if found else None,
        bound=float(info.mip_dual_bound) if math.isfinite(info.mip_dual_bound) else -math.inf,
        infeasible=status in (states.kInfeasible, states.kUnboundedOrInfeasible),
        interrupted=status == states.kInterrupt,
    )


def _minimise_by_name(
    problem: pulp.LpProblem, solver: str, time_limit_s: float, gap: float
) -> MipAnswer:
    """Any other of PuLP's solvers: it tells no bound, so only a proven optimum bounds anything.

    Not all of PuLP's adapters tell an optimum from the best when the time was up, so one that took
    all its time proves nothing.
    """
    began = time.monotonic()
    problem.solve(pulp.getSolver(solver, msg=False, timeLimit=time_limit_s, gapRel=gap))
    found = problem.sol_status in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible)
    in_time = time.monotonic() - began < time_limit_s
    proven = problem.sol_status == pulp.LpSolutionOptimal and gap == 0 and in_time
    return MipAnswer(
        values={v.name: float(v.varValue) for v in problem.variables()} if found else None,
        bound=float(pulp.value(problem.objective)) if proven else -math.inf,
        infeasible=problem.status == pulp.LpStatusInfeasible,
        interrupted=False,
    )


class _RefusedError(Exception):
    """HiGHS left rows or columns out, and would solve another problem than was asked."""


class _WarmHiGHS(pulp.HiGHS):  # type: ignore[misc]
    """PuLP's HiGHS with a start, Ctrl-C and progress; PuLP 3 ignores `warmStart` in silence."""

    def __init__(
        self, start: Mapping[str, float], progress: Progress | None, **options: Any
    ) -> None:
        super().__init__(**options)
        self._start, self._progress = start, progress

    def callSolver(self, lp: pulp.LpProblem) -> None:  # noqa: N802 (PuLP's name)
        model = lp.solverModel
        # A row with a coefficient of 1e15 or more (`large_matrix_value`) is left out in silence.
        written = (model.getNumRow(), model.getNumCol())
        if written != (lp.numConstraints(), lp.numVariables()):
            raise _RefusedError
        known = [(v.index, self._start[v.name]) for v in lp.variables() if v.name in self._start]
        if known:
            indices, values = zip(*known, strict=True)
            model.setSolution(
                len(known), np.array(indices, dtype=np.int32), np.array(values, dtype=np.float64)
            )
        if (progress := self._progress) is not None:

            def tell(event: Any) -> None:
                progress(event.data_out.mip_primal_bound, event.data_out.mip_dual_bound)

            model.cbMipImprovingSolution += tell
            model.cbMipInterrupt += tell  # the only one that HiGHS calls without its log
        _run(model)


def _run(model: Any) -> None:
    """Run HiGHS; the first Ctrl-C ends the search with the best so far, a second one is raised.

    highspy's own `solve` would print to standard output then, which belongs to the caller's data.
    """
    model.HandleKeyboardInterrupt = True
    model.startSolve()
    try:
        _wait(model)
    except KeyboardInterrupt:
        model.cancelSolve()
        _wait(model)


def _wait(model: Any) -> None:
    finished = False
    while not finished:
        finished, _ = model.wait(0.1)
