"""The command `simulate`: a plan's step, action by action, also on changed clusters."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

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
from skyfx.solver.cli.options import (
    ClusterOption,
    Force,
    GraphOption,
    IgnorePeaks,
    Json,
    PlanFile,
    Quiet,
    Seed,
    TimeLimit,
    Verbose,
    WhatIf,
)
from skyfx.solver.cli.terminal import console, exit_codes, print_json, say
from skyfx.solver.core import files
from skyfx.solver.core.chrome_trace import chrome_trace
from skyfx.solver.core.cluster import Cluster
from skyfx.solver.core.graph import Graph
from skyfx.solver.core.plan import Plan, Schedule
from skyfx.solver.core.timeline import Timeline
from skyfx.solver.core.units import seconds

GAP = 0.01
"""The gap of new plans for changed clusters."""

Slow = Annotated[
    list[str] | None,
    typer.Option("--slow", metavar="DEVICE=FACTOR", help="As --what-if 'slow DEVICE xFACTOR'."),
]
Anew = Annotated[bool, typer.Option("--replan", help="Also find the best plan for each change.")]
OtherSchedule = Annotated[
    Literal["1f1b", "gpipe"] | None,
    typer.Option(help="Simulate this schedule; skyfx solve makes the others for a plan."),
]
OtherMicrobatches = Annotated[
    int | None, typer.Option(metavar="M", min=1, help="Micro-batches in the step.")
]
OwnLinks = Annotated[
    bool, typer.Option("--own-links", help="The messages of a device do not share its port.")
]
Jitter = Annotated[
    float,
    typer.Option(metavar="SIGMA", help="An action takes e^N(0, SIGMA) times as long; 0.1 is 10 %."),
]
Runs = Annotated[int, typer.Option(metavar="N", help="Steps with jitter.")]
TraceFile = Annotated[
    Path | None,
    typer.Option("--trace", metavar="TRACE", help="Also write a timeline for ui.perfetto.dev."),
]


def simulate_command(
    plan: PlanFile,
    graph: GraphOption = None,
    cluster: ClusterOption = None,
    what_if: WhatIf = None,
    slow: Slow = None,
    replan: Anew = False,
    ignore_peaks: IgnorePeaks = False,
    schedule: OtherSchedule = None,
    num_microbatches: OtherMicrobatches = None,
    own_links: OwnLinks = False,
    jitter: Jitter = 0.0,
    runs: Runs = 100,
    seed: Seed = 0,
    trace: TraceFile = None,
    time_limit: TimeLimit = 60.0,
    json: Json = False,
    force: Force = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Simulate a step of PLAN action by action, also on changed clusters.

    For example: skyfx simulate bert.plan.json --what-if 'add gpu' --what-if 'drop b' --replan
    """
    with exit_codes(verbose=verbose, quiet=quiet):
        if trace is not None:
            files.refuse_overwrite(trace, force=force)
        planned, model, devices = read_with_inputs(plan, graph, cluster)
        asked = _asked(planned, schedule, num_microbatches)
        changes = [Change.of(text, model) for text in [*(what_if or ()), *_slowed(slow or ())]]
        timeline = simulate_plan(model, devices, asked, shared=not own_links)
        search = make_replan(asked, time_limit, ignore_peaks=ignore_peaks) if replan else None
        found = scenarios(model, devices, asked, changes, search)
        answer = _Answer(asked, timeline, list(found), as_planned=asked == planned)
        if jitter:
            answer.jitter = (jitter, *spread(model, devices, asked, jitter, runs, seed))
        if trace is not None:
            _write_trace(trace, asked, timeline, force=force, quiet=quiet)
        answer.tell(json=json)


class _Answer:
    """The results of the command."""

    def __init__(
        self, plan: Plan, timeline: Timeline, found: Sequence[Scenario], *, as_planned: bool
    ) -> None:
        self._plan, self._timeline, self._scenarios = plan, timeline, found
        self._as_planned = as_planned
        self._busy_s = busy_s(plan, timeline)
        self.jitter: tuple[float, float, float] | None = None

    def tell(self, *, json: bool) -> None:
        """Print it."""
        if json:
            print_json(self._as_json())
            return
        out, step_s = console(stderr=False), self._timeline.step_s
        table = Table("device", "stages", "busy", "of the step", box=None)
        for name, busy in self._busy_s.items():
            stages = [str(k) for k, s in enumerate(self._plan.stages) if s.device == name]
            table.add_row(name, " ".join(stages), seconds(busy), f"{busy / step_s:.0%}")
        out.print(table)
        typer.echo(f"step {seconds(step_s)}{self._formula()}")
        if self.jitter is not None:
            sigma, middle, p95 = self.jitter
            typer.echo(
                f"with jitter {sigma:g}: median {seconds(middle)}, 95th percentile {seconds(p95)}"
            )
        if self._scenarios:
            out.print(self._table())

    def _formula(self) -> str:
        """The step of the plan's formula, if the simulation has the plan's assumptions."""
        planned = f", by the plan's formula {seconds(self._plan.step_s)}"
        return planned if self._as_planned else ""

    def _table(self) -> Table:
        table = Table(*COLUMNS, box=None)
        for one in self._scenarios:
            table.add_row(*one.row(self._timeline.step_s))
        return table

    def _as_json(self) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "step_s": self._timeline.step_s,
            "busy_s": self._busy_s,
            "what_if": [
                {
                    "change": one.change,
                    "step_s": one.planned_s,
                    "why_not": one.why_not or None,
                    "replanned_step_s": one.replanned_s,
                    "replanned": None
                    if one.replanned is None
                    else [[stage.device, len(stage.nodes)] for stage in one.replanned.stages],
                }
                for one in self._scenarios
            ],
        }
        if self.jitter is not None:
            answer["jitter"] = dict(zip(("sigma", "median_s", "p95_s"), self.jitter, strict=True))
        return answer


def _asked(plan: Plan, schedule: Schedule | None, num_microbatches: int | None) -> Plan:
    """The plan with another schedule or another number of micro-batches."""
    assumed = plan.assumptions
    other = replace(
        assumed,
        schedule=schedule or assumed.schedule,
        microbatches=num_microbatches or assumed.microbatches,
    )
    return replace(plan, assumptions=other)


def _write_trace(path: Path, plan: Plan, timeline: Timeline, *, force: bool, quiet: bool) -> None:
    names = [stage.device for stage in plan.stages]
    with files.replacing(path, force=force) as written:
        written.write_bytes(chrome_trace({"predicted": (names, timeline.done)}))
    if not quiet:
        say(f"skyfx: wrote {path}; open it in https://ui.perfetto.dev")


def _slowed(said: Sequence[str]) -> list[str]:
    return ["slow {} x{}".format(*text.partition("=")[::2]) for text in said]


def make_replan(plan: Plan, time_limit_s: float, *, ignore_peaks: bool = False) -> Replan:
    """The planner for another cluster, under the assumptions of this plan."""
    from skyfx.solver.planning.planner import solve  # numba, HiGHS and PuLP take half a second

    def planned(graph: Graph, cluster: Cluster) -> Plan:
        return solve(
            graph,
            cluster,
            plan.assumptions,
            gap=GAP,
            time_limit_s=time_limit_s,
            enforce_peaks=not ignore_peaks,
        ).plan

    return planned
