"""The command `explain`: a plan in sentences with numbers."""

import typer

from skyfx.solver.analysis.explain import explain_plan
from skyfx.solver.analysis.plan_sources import read_with_inputs
from skyfx.solver.cli import options, terminal
from skyfx.solver.cli.simulate import make_replan


def explain_command(
    plan: options.PlanFile,
    graph: options.GraphOption = None,
    cluster: options.ClusterOption = None,
    ignore_peaks: options.IgnorePeaks = False,
    time_limit: options.EachLimit = 5.0,
    json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Explain PLAN: its bottleneck, its certificate, and the gain of 10 % more of anything.

    For example: skyfx explain bert.plan.json
    """
    with terminal.exit_codes(verbose=verbose):
        asked, model, devices = read_with_inputs(plan, graph, cluster)
        replan = make_replan(asked, time_limit, ignore_peaks=ignore_peaks)
        said = explain_plan(model, devices, asked, replan)
        if json:
            terminal.print_json(list(said))
            return
        for sentence in said:
            typer.echo(sentence)
