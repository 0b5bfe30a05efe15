"""The arguments and options of the planner's commands, with their help."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from skyfx.solver.core.plan import (
    Communication,
    Mode,
    Objective,
    Overlap,
    Recompute,
    Schedule,
    Strategy,
)

GraphFile = Annotated[Path, Argument(metavar="GRAPH", help="A *.graph.json file.")]
ClusterFile = Annotated[
    Path, Argument(metavar="CLUSTER", help="A *.cluster.toml or *.cluster.json file.")
]
PlanFile = Annotated[Path, Argument(metavar="PLAN", help="A *.plan.json file.")]
Output = Annotated[
    Path | None, Option("--output", "-o", metavar="PLAN", help="Where the plan is written.")
]
Force = Annotated[bool, Option("--force", help="Replace the file if it exists.")]
Json = Annotated[bool, Option("--json", help="Print JSON and nothing else.")]
Quiet = Annotated[bool, Option("--quiet", "-q", help="Print nothing but errors.")]
Verbose = Annotated[bool, Option("--verbose", "-v", help="Also print what each method does.")]
ModeOption = Annotated[Mode, Option(help="Whether backward passes count.")]
ObjectiveOption = Annotated[Objective, Option(help="What to minimise.")]
CommunicationOption = Annotated[
    Communication, Option(help="From stage to stage, or through the host's memory.")
]
OverlapOption = Annotated[Overlap, Option(help="Whether devices compute during transfers.")]
ScheduleOption = Annotated[Schedule, Option(help="The pipeline's schedule.")]
Microbatches = Annotated[int, Option(metavar="M", help="Micro-batches per step.")]
RecomputeOption = Annotated[
    Recompute,
    Option(
        help="Whether stages may run parts again in backward instead of keeping their values: "
        "where memory is short, nowhere, or wherever it saves memory."
    ),
]
StateRatio = Annotated[
    float, Option(metavar="R", help="Bytes of optimizer state per byte of parameters that train.")
]
StrategyOption = Annotated[Strategy, Option(help="The best plan, or a baseline.")]
IgnorePeaks = Annotated[
    bool,
    Option(
        "--ignore-peaks",
        help="Only memory_bytes has to fit the devices, not the predicted peaks of the stages.",
    ),
]
TimeLimit = Annotated[
    float,
    Option(metavar="SECONDS", help="Limit of the search; then it returns the best plan so far."),
]
Gap = Annotated[float, Option(metavar="G", help="Relative gap at which to stop.")]
SolverName = Annotated[
    str, Option("--solver", metavar="NAME", help="Any solver that `pulp.getSolver` knows.")
]
Pins = Annotated[
    list[str] | None,
    Option(
        metavar="PATTERN=DEVICE",
        help="Nodes or modules that must run on a device; with PATTERN!=DEVICE, that must not.",
    ),
]
LpFile = Annotated[
    Path | None,
    Option("--write-lp", metavar="LP", help="Also write the integer program to this file."),
]
BoundToo = Annotated[
    bool, Option("--bound", help="Derive the lower bound again by simpler methods.")
]
Seed = Annotated[int, Option(help="The solver's random seed.")]
GraphOption = Annotated[
    Path | None,
    Option("--graph", metavar="GRAPH", help="The plan's graph, if it is not beside it."),
]
ClusterOption = Annotated[
    Path | None,
    Option(
        "--cluster",
        metavar="CLUSTER",
        help="The plan's cluster, if it is not beside it; or another one.",
    ),
]
EachLimit = Annotated[
    float, Option(metavar="SECONDS", help="Limit of each search for a plan on a changed cluster.")
]
WhatIf = Annotated[
    list[str] | None,
    Option(
        "--what-if",
        metavar="CHANGE",
        help="'add a100', 'drop c', 'link a b x2', 'memory a x1.5' or 'slow c x4'; each by itself.",
    ),
]
