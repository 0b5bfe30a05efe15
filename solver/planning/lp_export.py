"""The integer program as an LP file, for other solvers."""

from pathlib import Path

from skyfx.solver.core.cluster import Cluster
from skyfx.solver.core.files import replacing
from skyfx.solver.core.graph import Graph
from skyfx.solver.core.plan import Assumptions
from skyfx.solver.methods.bounds.simple_bounds import simple_bound
from skyfx.solver.methods.milp import formulation
from skyfx.solver.planning.search import compile_problem

MAX_ROWS = 3_000_000


def export(
    graph: Graph, cluster: Cluster, assumptions: Assumptions, path: Path, *, force: bool = False
) -> None:
    """Write the integer program in the LP format; `milp/formulation.py` explains its names.

    Raises:
        FileExistsError: the file exists and `force` is false.
        ValueError: the program is too large to be of use.
    """
    problem = compile_problem(graph, cluster, assumptions)
    rows = problem.num_units * problem.num_devices**2
    if rows > MAX_ROWS:
        raise ValueError(
            f"{path}: the integer program of {problem.num_units} units x {problem.num_devices} "
            f"devices has some {rows} constraints, at most {MAX_ROWS} are written; "
            "leave out --write-lp"
        )
    with replacing(path, force=force) as temporary:
        formulation.build(problem, simple_bound(problem).value or 1.0).lp.writeLP(str(temporary))
