"""The planner's commands: `solve`, `check` and `show`.

Standard output is data and standard error is talk. The exit codes are those of `docs/formats.md`.
"""

import enum
import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from skyfx.solver import files, report
from skyfx.solver.cluster import Cluster
from skyfx.solver.errors import InfeasibleError, NoPlanError, SkyfxError
from skyfx.solver.graph import Graph
from skyfx.solver.options import (
    ClusterFile,
    CommunicationOption,
    Force,
    Gap,
    GraphFile,
    Json,
    Microbatches,
    ModeOption,
    ObjectiveOption,
    Output,
    OverlapOption,
    PlanFile,
    Quiet,
    ScheduleOption,
    Seed,
    StateRatio,
    StrategyOption,
    TimeLimit,
)
from skyfx.solver.plan import Assumptions, Plan, relative_gap
from skyfx.solver.solve import Progress, Solution, solve
from skyfx.solver.validate import validate

__all__: list[str] = ["ExitCode", "app", "exit_codes"]

app = typer.Typer(
    help="Split a PyTorch model over unequal devices, with a proof of how good the split is.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


class ExitCode(enum.IntEnum):
    """How a command ended."""

    DONE = 0
    NOT_RIGHT = 1
    UNUSABLE = 2
    INFEASIBLE = 3
    NO_PLAN = 4
    INTERRUPTED = 130


@contextmanager
def exit_codes() -> Iterator[None]:
    """End the command with a line on standard error and the exit code of what was raised."""
    try:
        yield
    except KeyboardInterrupt:
        fault, code = "interrupted, and nothing was written", ExitCode.INTERRUPTED
    except InfeasibleError as error:
        fault, code = str(error), ExitCode.INFEASIBLE
    except NoPlanError as error:
        fault, code = str(error), ExitCode.NO_PLAN
    except BrokenPipeError:  # the reader has gone, as in `skyfx show PLAN | head`: typer's matter
        raise
    except (SkyfxError, ValueError, OSError) as error:
        fault, code = str(error), ExitCode.UNUSABLE
    else:
        return
    _say(f"skyfx: error: {fault}")
    raise typer.Exit(code)


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
    graph: GraphFile,
    cluster: ClusterFile,
    output: Output = None,
    mode: ModeOption = "training",
    objective: ObjectiveOption = "throughput",
    communication: CommunicationOption = "relay",
    overlap: OverlapOption = "none",
    schedule: ScheduleOption = "1f1b",
    num_microbatches: Microbatches = 8,
    optimizer_state_ratio: StateRatio = 2.0,
    strategy: StrategyOption = "optimal",
    time_limit: TimeLimit = 60.0,
    gap: Gap = 0.0,
    seed: Seed = 0,
    json: Json = False,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Plan GRAPH on CLUSTER and write PLAN."""
    with exit_codes():
        _check_output(output, json=json, force=force)
        assumptions = Assumptions(
            mode=mode,
            objective=objective,
            schedule=schedule,
            microbatches=num_microbatches,
            optimizer_state_ratio=optimizer_state_ratio,
            overlap=overlap,
            communication=communication,
        )
        model, graph_sha256 = files.load(graph, Graph)
        devices, cluster_sha256 = files.load(cluster, Cluster)
        with _live_line(quiet=quiet) as progress:
            solution = solve(
                model,
                devices,
                assumptions,
                strategy=strategy,
                time_limit_s=time_limit,
                gap=gap,
                seed=seed,
                graph_sha256=graph_sha256,
                cluster_sha256=cluster_sha256,
                cluster_name=cluster.name,
                progress=progress,
            )
        _hand_over(solution, output, json=json, force=force, quiet=quiet)


@app.command()
def check(
    graph: GraphFile,
    cluster: ClusterFile,
    plan: PlanFile,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check every rule and every figure of PLAN; exit 0 if it is valid, 1 if it is not."""
    with exit_codes():
        model, graph_sha256 = files.load(graph, Graph)
        devices, cluster_sha256 = files.load(cluster, Cluster)
        checked = files.read(plan, Plan)
        faults = validate(model, devices, checked)
    made_from = ((graph, checked.graph, graph_sha256), (cluster, checked.cluster, cluster_sha256))
    for path, reference, sha256 in made_from:
        if reference.sha256 != sha256 and not quiet:
            _say(f"skyfx: warning: {plan} was made from other bytes than those of {path}")
    if json:
        answer = {"valid": not faults, "faults": faults}
        typer.echo(msgspec.json.encode(answer).decode())
    else:
        typer.echo("\n".join(faults) or f"valid: {_in_short(checked)}")
    if faults:
        raise typer.Exit(ExitCode.NOT_RIGHT)


@app.command()
def show(plan: PlanFile, json: Json = False) -> None:
    """Print PLAN as a table, or with --json as it is in the file."""
    with exit_codes():
        shown = files.read(plan, Plan)
    if json:
        typer.echo(files.encode(shown).decode(), nl=False)
    else:
        report.render(shown, _console(stderr=False))


def _check_output(output: Path | None, *, json: bool, force: bool) -> None:
    if output is not None:
        files.refuse_overwrite(output, force=force)
    elif not json:
        raise ValueError("nowhere to put the plan: give -o PLAN, or --json to print it")


def _hand_over(
    solution: Solution, output: Path | None, *, json: bool, force: bool, quiet: bool
) -> None:
    if output is not None:
        files.write(solution.plan, output, force=force)
    if json:
        typer.echo(files.encode(solution.plan).decode(), nl=False)
    elif not quiet:
        report.render(solution.plan, _console(stderr=True))
    if solution.interrupted:
        _say(f"skyfx: interrupted; the best plan so far: {_in_short(solution.plan)}")
        raise typer.Exit(ExitCode.INTERRUPTED)


@contextmanager
def _live_line(*, quiet: bool) -> Iterator[Progress | None]:
    """One line with incumbent, bound and gap while the block runs; on a terminal only."""
    talk = _console(stderr=True)
    if quiet or not talk.is_terminal:
        yield None
        return
    with talk.status("planning") as status:

        def tell(value: float, bound: float) -> None:
            status.update(_progress_line(value, max(0.0, bound)))

        yield tell


def _progress_line(value: float, bound: float) -> str:
    if math.isinf(value):
        return f"planning: no plan yet, none is below {report.seconds(bound)}"
    return (
        f"planning: {report.seconds(value)}, none is below {report.seconds(bound)}, "
        f"gap {report.percent(relative_gap(value, bound))}"
    )


def _in_short(of: Plan) -> str:
    value = report.seconds(of.objective_value)
    gap = report.percent(of.gap)
    return f"{len(of.stages)} stages, {of.assumptions.objective} {value}, gap {gap}"


def _say(line: str) -> None:
    _console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)


def _console(*, stderr: bool) -> Console:
    """As wide as the terminal; where there is none, wide enough for a plan."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=report.WIDTH)
