"""The planner's commands: `solve`, `check`, `diff`, `show`, `simulate`, `explain`, `report`.

`cluster` has some of its own.

Standard output has data, standard error has messages. The exit codes are those of
`docs/formats.md`. The search is imported where it is needed: numba, HiGHS and PuLP take half a
second.
"""

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skyfx.solver.analysis.plan_diff import Difference
from skyfx.solver.analysis.validation import validate
from skyfx.solver.cli import options, terminal
from skyfx.solver.cli.cluster import cluster_app
from skyfx.solver.cli.explain import explain_command
from skyfx.solver.cli.report import report_command
from skyfx.solver.cli.simulate import simulate_command
from skyfx.solver.core import files, plan_table, units
from skyfx.solver.core.cluster import Cluster
from skyfx.solver.core.graph import Graph
from skyfx.solver.core.plan import Assumptions, Plan

if TYPE_CHECKING:
    from skyfx.solver.analysis.recheck import Recheck

app = typer.Typer(
    help="Split a PyTorch model over unequal devices, with a proof of how good the split is.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"skyfx {metadata.version('skyfx')}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version."),
]


@app.callback()
def skyfx(version: Version = False) -> None:
    """Split a PyTorch model over unequal devices, with a proof of how good the split is."""


@app.command("solve")
def solve_command(
    graph: options.GraphFile,
    cluster: options.ClusterFile,
    output: options.Output = None,
    mode: options.ModeOption = "training",
    objective: options.ObjectiveOption = "throughput",
    communication: options.CommunicationOption = "relay",
    overlap: options.OverlapOption = "none",
    schedule: options.ScheduleOption = "1f1b",
    num_microbatches: options.Microbatches = 8,
    optimizer_state_ratio: options.StateRatio = 2.0,
    strategy: options.StrategyOption = "optimal",
    time_limit: options.TimeLimit = 60.0,
    gap: options.Gap = 0.0,
    seed: options.Seed = 0,
    solver: options.SolverName = "HiGHS",
    pin: options.Pins = None,
    recompute: options.RecomputeOption = "auto",
    ignore_peaks: options.IgnorePeaks = False,
    write_lp: options.LpFile = None,
    json: options.Json = False,
    force: options.Force = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Plan GRAPH on CLUSTER and write PLAN.

    For example: skyfx solve bert.graph.json two.cluster.json -o bert.plan.json
    """
    with terminal.exit_codes(verbose=verbose, quiet=quiet):
        terminal.check_output(output, "plan", json=json, force=force)
        assumptions = Assumptions(
            mode=mode,
            objective=objective,
            schedule=schedule,
            microbatches=num_microbatches,
            optimizer_state_ratio=optimizer_state_ratio,
            overlap=overlap,
            communication=communication,
            pins=tuple(pin or ()),
            recompute=recompute,
        )
        model, graph_sha256 = files.load(graph, Graph)
        devices, cluster_sha256 = files.load(cluster, Cluster)
        if write_lp is not None:
            from skyfx.solver.planning.search import export

            export(model, devices, assumptions, write_lp, force=force)
        from skyfx.solver.planning.planner import solve

        with terminal.live_line(quiet=quiet) as progress:
            solution = solve(
                model,
                devices,
                assumptions,
                strategy=strategy,
                time_limit_s=time_limit,
                gap=gap,
                seed=seed,
                solver=solver,
                enforce_peaks=not ignore_peaks,
                graph_sha256=graph_sha256,
                cluster_sha256=cluster_sha256,
                cluster_name=cluster.name,
                progress=progress,
            )
        terminal.write_output(solution.plan, output, json=json, force=force)
        if not json and not quiet:
            plan_table.render(solution.plan, terminal.console(stderr=True))
        if solution.interrupted:
            terminal.say(f"skyfx: interrupted; the best plan so far: {_in_short(solution.plan)}")
            raise typer.Exit(terminal.ExitCode.INTERRUPTED)


@app.command()
def check(
    graph: options.GraphFile,
    cluster: options.ClusterFile,
    plan: options.PlanFile,
    bound: options.BoundToo = False,
    time_limit: options.TimeLimit = 60.0,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Check every rule and every figure of PLAN; exit 0 if it is valid, 1 if it is not.

    For example: skyfx check bert.graph.json two.cluster.json bert.plan.json --bound
    """
    with terminal.exit_codes(verbose=verbose, quiet=quiet):
        model, graph_sha256 = files.load(graph, Graph)
        devices, cluster_sha256 = files.load(cluster, Cluster)
        checked = files.read(plan, Plan)
        faults = validate(model, devices, checked)
        again = None
        if bound and not faults:
            from skyfx.solver.analysis.recheck import recheck
            from skyfx.solver.costs.recomputation import with_recomputation
            from skyfx.solver.planning.recomputation import bounded_problem
            from skyfx.solver.problem.problem import Problem

            planned = with_recomputation(model, checked.segments())
            asked = Problem(model, devices, checked.assumptions)
            problem = bounded_problem(asked, planned)
            again = recheck(problem, checked.lower_bound, time_limit)
    made_from = ((graph, checked.graph, graph_sha256), (cluster, checked.cluster, cluster_sha256))
    for path, reference, sha256 in made_from:
        if reference.sha256 != sha256 and not quiet:
            terminal.say(f"skyfx: warning: {plan} was made from another version of {path}")
    if json:
        answer = {"valid": not faults, "faults": faults} | ({"bound": again} if again else {})
        terminal.print_json(answer)
    else:
        typer.echo("\n".join(faults) or f"valid: {_in_short(checked)}")
        if again is not None:
            typer.echo(_verdict(again, checked))
    if faults or (again is not None and again.verdict == "refuted"):
        raise typer.Exit(terminal.ExitCode.NOT_RIGHT)


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="A *.plan.json file.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    json: options.Json = False,
) -> None:
    """Print the difference of the plans A and B; exit 0 if they run the same, 1 if not.

    For example: skyfx diff bert.plan.json slow.plan.json
    """
    with terminal.exit_codes():
        found = Difference.of(files.read(a, Plan), files.read(b, Plan))
    if json:
        terminal.print_json(found.as_json())
    else:
        typer.echo("\n".join(found.lines()))
    if found.differ:
        raise typer.Exit(terminal.ExitCode.NOT_RIGHT)


@app.command()
def show(plan: options.PlanFile, json: options.Json = False) -> None:
    """Print PLAN as a table, or with --json as it is in the file.

    For example: skyfx show bert.plan.json
    """
    with terminal.exit_codes():
        shown = files.read(plan, Plan)
    if json:
        terminal.print_document(shown)
    else:
        plan_table.render(shown, terminal.console(stderr=False))


app.command("simulate")(simulate_command)
app.command("explain")(explain_command)
app.command("report")(report_command)
app.add_typer(cluster_app, name="cluster")


def _verdict(again: "Recheck", plan: Plan) -> str:
    value, bound = units.seconds(again.value), units.seconds(plan.lower_bound)
    return {
        "confirmed": f"bound confirmed: nothing is below {bound}, also by {again.by}",
        "refuted": f"bound refuted: a plan is below {bound}, by {again.by}",
        "open": f"bound not derived again: {again.by} reaches {value} of {bound}",
    }[again.verdict]


def _in_short(of: Plan) -> str:
    value, gap = units.seconds(of.objective_value), units.percent(of.gap)
    return f"{len(of.stages)} stages, {of.assumptions.objective} {value}, gap {gap}"
