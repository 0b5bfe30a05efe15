"""The command `report`: a plan as a page for the browser."""

from pathlib import Path
from typing import Annotated

from typer import Option

from skyfx.solver.analysis.cluster_changes import Change
from skyfx.solver.analysis.explain import explain_plan
from skyfx.solver.analysis.html_report import DrawnStep, page
from skyfx.solver.analysis.plan_sources import read_with_inputs
from skyfx.solver.analysis.scenarios import scenarios, simulate_plan
from skyfx.solver.cli import options, terminal
from skyfx.solver.cli.simulate import make_replan
from skyfx.solver.core import files
from skyfx.solver.core.chrome_trace import read_trace

PageFile = Annotated[
    Path, Option("--output", "-o", metavar="HTML", help="Where the page is written.")
]
RunFile = Annotated[
    Path | None,
    Option("--run", metavar="TRACE", help="A measured step from Profile.write_trace, drawn below."),
]


def report_command(
    plan: options.PlanFile,
    output: PageFile,
    graph: options.GraphOption = None,
    cluster: options.ClusterOption = None,
    run: RunFile = None,
    what_if: options.WhatIf = None,
    time_limit: options.EachLimit = 5.0,
    force: options.Force = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Draw PLAN on a page that needs no network: timeline, stages, memory and modules.

    Without --what-if it shows the effect of losing each device in use.

    For example: skyfx report bert.plan.json -o bert.html
    """
    with terminal.exit_codes(verbose=verbose, quiet=quiet):
        files.refuse_overwrite(output, force=force)
        asked, model, devices = read_with_inputs(plan, graph, cluster)
        runs = []
        if asked.assumptions.communication == "relay":
            runs.append(DrawnStep("predicted", simulate_plan(model, devices, asked).done))
        if run is not None:
            runs.append(DrawnStep("measured", read_trace(run, asked)))
        search = make_replan(asked, time_limit)
        said = list(explain_plan(model, devices, asked, search))
        losses = dict.fromkeys(f"drop {stage.device}" for stage in asked.stages)
        others = what_if or (losses if len(devices.devices) > 1 else ())
        changes = [Change.of(text, model) for text in others]
        found = list(scenarios(model, devices, asked, changes, search))
        with files.replacing(output, force=force) as written:
            written.write_text(page(model, devices, asked, runs, said, found))
        if not quiet:
            terminal.say(f"skyfx: wrote {output}")
