"""The command `report`: a plan as a page for the browser."""

from pathlib import Path
from typing import Annotated

import typer

from skyfx.solver import files
from skyfx.solver.cli_simulate import replanning
from skyfx.solver.explain import explained
from skyfx.solver.options import ClusterOption, EachLimit, Force, GraphOption, PlanFile, Quiet
from skyfx.solver.outlook import followed
from skyfx.solver.page import Run, page
from skyfx.solver.plan import Plan
from skyfx.solver.sources import sources
from skyfx.solver.terminal import exit_codes, say
from skyfx.solver.trace import read_trace

__all__: list[str] = ["report_command"]

PageFile = Annotated[
    Path, typer.Option("--output", "-o", metavar="HTML", help="Where the page is written.")
]
RunFile = Annotated[
    Path | None,
    typer.Option(
        "--run", metavar="TRACE", help="A measured step, from Profile.write_trace: drawn below."
    ),
]


def report_command(
    plan: PlanFile,
    output: PageFile,
    graph: GraphOption = None,
    cluster: ClusterOption = None,
    run: RunFile = None,
    time_limit: EachLimit = 5.0,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Draw PLAN on a page that needs no network: timeline, stages, memory, modules and reasons.

    For example: skyfx report bert.plan.json -o bert.html
    """
    with exit_codes():
        files.refuse_overwrite(output, force=force)
        asked = files.read(plan, Plan)
        model, devices = sources(plan, asked, graph, cluster)
        runs = [Run("predicted", followed(model, devices, asked).done)]
        if run is not None:
            runs.append(Run("measured", read_trace(run, asked)))
        said = list(explained(model, devices, asked, replanning(asked, time_limit)))
        with files.replacing(output, force=force) as written:
            written.write_text(page(model, devices, asked, runs, said))
        if not quiet:
            say(f"skyfx: wrote {output}")
