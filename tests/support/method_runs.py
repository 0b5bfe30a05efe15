"""One method of the planner alone, as the table of methods runs it."""

from collections.abc import Iterator

from skyfx.solver.methods.bounds.simple_bounds import simple_bound
from skyfx.solver.methods.features import ProblemFeatures
from skyfx.solver.methods.limits import Limits
from skyfx.solver.methods.method import Candidate, MethodUpdate, SearchState
from skyfx.solver.methods.portfolio import METHODS
from skyfx.solver.problem.problem import Problem


def updates(name: str, problem: Problem, known: Candidate | None = None) -> Iterator[MethodUpdate]:
    """What a method yields from a known plan, without limits; its remark where it does not apply.

    Args:
        name: as in `METHODS`.
        problem: to be planned.
        known: the incumbent.
    """
    (entry,) = (entry for entry in METHODS if entry.name == name)
    bound = simple_bound(problem)
    return entry(SearchState(ProblemFeatures(problem), known, bound, Limits()))
