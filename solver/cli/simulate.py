"""The command `simulate`: a plan's step, action by action, also on changed clusters."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.table import Table
from typer import Option, echo

from skyfx.solver.analysis.cluster_changes import Change
from skyfx.solver.analysis.plan_sources import read_with_inputs
from skyfx.solver.analysis.scenarios import (
    COLUMNS,
    Replan,
    Scenario,
    busy_s,
    scenarios,
    simulate_plan,
    spread,
)
from skyfx.solver.cli import options, terminal
from skyfx.solver.core import files
from skyfx.solver.core.chrome_trace import chrome_trace
from skyfx.solver.core.plan import Plan, Schedule
from skyfx.solver.core.timeline import Timeline
from skyfx.solver.core.units import seconds

GAP = 0.01
"""The gap of new plans for changed clusters."""

Slow = Annotated[
    list[str] | None,
    Option("--slow", metavar="DEVICE=FACTOR", help="As --what-if 'slow DEVICE xFACTOR'."),
]
Anew = Annotated[bool, Option("--replan", help="Also find the best plan for each change.")]
OtherSchedule = Annotated[
    Literal["1f1b", "gpipe"] | None,
    Option(help="Simulate this schedule; skyfx solve makes the others for a plan."),
]
OtherMicrobatches = Annotated[
    int | None, Option(metavar="M", min=1, help="Micro-batches in the step.")
]
OwnLinks = Annotated[
    bool, Option("--own-links", help="The messages of a device do not share its port.")
]
Jitter = Annotated[
    float, Option(metavar="SIGMA", help="An action takes e^N(0, SIGMA) times as long; 0.1 is 10 %.")
]
Runs = Annotated[int, Option(metavar="N", help="Steps with jitter.")]
TraceFile = Annotated[
    Path | None,
    Option("--trace", metavar="TRACE", help="Also write a timeline for ui.perfetto.dev."),
]

Jittered = tuple[float, float, float] | None
"""The jitter, and the median and the 95th percentile of a step with it."""


def simulate_command(
    plan: options.PlanFile,
    graph: options.GraphOption = None,
    cluster: options.ClusterOption = None,
    what_if: options.WhatIf = None,
    slow: Slow = None,
    replan: Anew = False,
    ignore_peaks: options.IgnorePeaks = False,
    schedule: OtherSchedule = None,
    num_microbatches: OtherMicrobatches = None,
    own_links: OwnLinks = False,
    jitter: Jitter = 0.0,
    runs: Runs = 100,
    seed: options.Seed = 0,
    trace: TraceFile = None,
    time_limit: options.TimeLimit = 60.0,
    json: options.Json = False,
    force: options.Force = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Simulate a step of PLAN action by action, also on changed clusters.

    For example: skyfx simulate bert.plan.json --what-if 'add gpu' --what-if 'drop b' --replan
    """
    with terminal.exit_codes(verbose=verbose, quiet=quiet):
        if trace is not None:
            files.refuse_overwrite(trace, force=force)
        planned, model, devices = read_with_inputs(plan, graph, cluster)
        asked = _asked(planned, schedule, num_microbatches)
        slowed = ["slow {} x{}".format(*text.partition("=")[::2]) for text in slow or ()]
        changes = [Change.of(text, model) for text in [*(what_if or ()), *slowed]]
        timeline = simulate_plan(model, devices, asked, shared=not own_links)
        search = make_replan(asked, time_limit, ignore_peaks=ignore_peaks) if replan else None
        found = list(scenarios(model, devices, asked, changes, search))
        deviation = (jitter, *spread(model, devices, asked, jitter, runs, seed)) if jitter else None
        if trace is not None:
            run = ([stage.device for stage in asked.stages], timeline.done)
            with files.replacing(trace, force=force) as written:
                written.write_bytes(chrome_trace({"predicted": run}))
            if not quiet:
                terminal.say(f"skyfx: wrote {trace}; open it in https://ui.perfetto.dev")
        if json:
            terminal.print_json(_as_json(asked, timeline, found, deviation))
        else:
            # The plan's formula has the plan's assumptions.
            formula = f", by the plan's formula {seconds(asked.step_s)}" if asked == planned else ""
            _print(asked, timeline, found, deviation, formula)


def _print(
    plan: Plan, timeline: Timeline, found: list[Scenario], jitter: Jittered, formula: str
) -> None:
    out, step_s = terminal.console(stderr=False), timeline.step_s
    table = Table("device", "stages", "busy", "of the step", box=None)
    for name, busy in busy_s(plan, timeline).items():
        stages = [str(k) for k, s in enumerate(plan.stages) if s.device == name]
        table.add_row(name, " ".join(stages), seconds(busy), f"{busy / step_s:.0%}")
    out.print(table)
    echo(f"step {seconds(step_s)}{formula}")
    if jitter is not None:
        sigma, middle, p95 = jitter
        echo(f"with jitter {sigma:g}: median {seconds(middle)}, 95th percentile {seconds(p95)}")
    if found:
        table = Table(*COLUMNS, box=None)
        for one in found:
            table.add_row(*one.row(step_s))
        out.print(table)


def _as_json(
    plan: Plan, timeline: Timeline, found: list[Scenario], jitter: Jittered
) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "step_s": timeline.step_s,
        "busy_s": busy_s(plan, timeline),
        "what_if": [
            {
                "change": one.change,
                "step_s": one.planned_s,
                "why_not": one.why_not or None,
                "replanned_step_s": one.replanned_s,
                "replanned": one.replanned
                and [[stage.device, len(stage.nodes)] for stage in one.replanned.stages],
            }
            for one in found
        ],
    }
    if jitter is not None:
        answer["jitter"] = dict(zip(("sigma", "median_s", "p95_s"), jitter, strict=True))
    return answer


def _asked(plan: Plan, schedule: Schedule | None, num_microbatches: int | None) -> Plan:
    """The plan with another schedule or another number of micro-batches."""
    assumed = plan.assumptions
    schedule = schedule or assumed.schedule
    m = num_microbatches or assumed.microbatches
    return replace(plan, assumptions=replace(assumed, schedule=schedule, microbatches=m))


def make_replan(plan: Plan, time_limit_s: float, *, ignore_peaks: bool = False) -> Replan:
    """The planner for another cluster, under the assumptions of this plan."""
    from skyfx.solver.planning.planner import solve  # numba, HiGHS and PuLP take half a second

    rules: dict[str, Any] = {"time_limit_s": time_limit_s, "enforce_peaks": not ignore_peaks}
    return lambda graph, cluster: solve(graph, cluster, plan.assumptions, gap=GAP, **rules).plan
