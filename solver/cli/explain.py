"""The command `explain`: a plan in sentences with numbers."""

import typer

from skyfx.solver.analysis.explain import explain_plan
from skyfx.solver.analysis.plan_sources import read_with_inputs
from skyfx.solver.cli.options import (
    ClusterOption,
    EachLimit,
    GraphOption,
    IgnorePeaks,
    Json,
    PlanFile,
    Verbose,
)
from skyfx.solver.cli.simulate import make_replan
from skyfx.solver.cli.terminal import exit_codes, print_json


def explain_command(
    plan: PlanFile,
    graph: GraphOption = None,
    cluster: ClusterOption = None,
    ignore_peaks: IgnorePeaks = False,
    time_limit: EachLimit = 5.0,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Explain PLAN: its bottleneck, its certificate, and the gain of 10 % more of anything.

    For example: skyfx explain bert.plan.json
    """
    with exit_codes(verbose=verbose):
        asked, model, devices = read_with_inputs(plan, graph, cluster)
        replan = make_replan(asked, time_limit, ignore_peaks=ignore_peaks)
        said = explain_plan(model, devices, asked, replan)
        if json:
            print_json(list(said))
            return
        for sentence in said:
            typer.echo(sentence)
