"""The splits that other projects make: `python -m benchmarks.planner.yardsticks [--write]`.

Each captured graph is split over the eight devices by skyfx and by six simple rules; the table has
the bottleneck of each rule as a multiple of that of skyfx's plan, by skyfx's cost model.
"""

import argparse
import gzip
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skyfx.solver import Assumptions, Cluster, Graph, Node, read, solve
from skyfx.solver.core.files import decode
from skyfx.solver.core.plan import Mode
from skyfx.solver.methods.heuristics import baselines
from skyfx.solver.problem.instance import UnitPlacement
from skyfx.solver.problem.problem import Problem

CAPTURED = Path(__file__).parent / "data" / "captured"
ROOT = Path(__file__).parents[2]
RESULT = ROOT / "docs" / "planner-yardsticks.md"
MODELS = ("bert", "gpt2", "t5", "resnet", "swin", "unet")
MODES: tuple[Mode, ...] = ("training", "inference")
GAP, TIME_LIMIT_S = 0.01, 10.0
NO_FIT = "does not fit"

Floats = NDArray[np.float64]
Rule = Callable[[Problem], UnitPlacement | None]
Row = list[float | None]
"""A bottleneck for each rule as a multiple of skyfx's; None where the split does not fit."""


def parameters_balanced(problem: Problem) -> UnitPlacement:
    """The contiguous split with the smallest largest sum of parameters."""
    return _least_maximum(problem, _sizes(problem, lambda node: node.parameter_bytes))


def time_balanced(problem: Problem) -> UnitPlacement:
    """The contiguous split with the smallest largest time, as measured on the first device."""
    return _least_maximum(problem, problem.time_s[0])


def bytes_balanced(problem: Problem) -> UnitPlacement:
    """Each device in turn is filled up to an equal share of the bytes; the last takes the rest."""
    sizes = _sizes(problem, lambda node: node.parameter_bytes + node.output_bytes)
    # Accelerate's slack above the equal share: 1.25 times the mean size of a module.
    share = sizes.sum() / problem.num_devices + 1.25 * sizes.mean()
    return _stages(_filled(sizes, share, problem.num_devices))


def memory_proportional(problem: Problem) -> UnitPlacement:
    """Numbers of nodes in proportion to the devices' memory; equal without limits."""
    limits = problem.memory_limit
    weights = limits if np.isfinite(limits).all() else np.ones(problem.num_devices)
    counts = np.cumsum([0] + [len(members) for members in problem.members])
    wanted = counts[-1] * np.cumsum(weights)[:-1] / weights.sum()
    inner = [int(np.abs(counts - count).argmin()) for count in wanted]
    return _stages([0, *inner, problem.num_units])


RULES: dict[str, tuple[Rule, str]] = {
    "even": (
        baselines.even,
        "Equal numbers of nodes. Source: Sky Computing, `allocator_config = dict(type='even')`.",
    ),
    "dynamic": (
        baselines.dynamic,
        "From the even split, repair memory, then even out the measured times of neighbours. "
        "Source: Sky Computing, `allocator_config = dict(type='dynamic')`; here boundaries "
        "move both ways.",
    ),
    "parameters": (
        parameters_balanced,
        "The smallest largest sum of parameters. Source: DeepSpeed, "
        "`PipelineModule(partition_method='parameters')`.",
    ),
    "bytes": (
        bytes_balanced,
        "Each device in turn is filled up to an equal share of bytes and 1.25 times the mean size "
        "of a unit; the last takes the rest. Source: accelerate, `infer_auto_device_map` with "
        "`get_balanced_memory` (`device_map='balanced'`), which counts parameters and buffers "
        "alone; here outputs count too, and a device takes at least one unit.",
    ),
    "time on one": (
        time_balanced,
        "The smallest largest time, all times as measured on the type of the first device. "
        "Source: torchgpipe, `torchgpipe.balance.balance_by_time`, which comes near to this split "
        "by another algorithm.",
    ),
    "memory": (
        memory_proportional,
        "Numbers of nodes in proportion to the devices' memory. Source: exo, "
        "`RingMemoryWeightedPartitioningStrategy`, which puts the devices in order of memory; here "
        "they stay in the cluster's order.",
    ),
}


def _sizes(problem: Problem, of: Callable[[Node], float]) -> Floats:
    nodes = problem.graph.nodes
    return np.array([sum(of(nodes[j]) for j in members) for members in problem.members])


def _stages(boundaries: list[int]) -> UnitPlacement:
    return [(d, range(a, b)) for d, (a, b) in enumerate(pairwise(boundaries)) if b > a]


def _filled(sizes: Floats, most: float, num_devices: int) -> list[int]:
    """Boundaries of stages that each take what fits within `most`, and the last all the rest."""
    total = np.cumsum(sizes)
    boundaries = [0]
    for _ in range(num_devices - 1):
        start = boundaries[-1]
        before = total[start - 1] if start else 0.0
        # Of a unit larger than `most` there is no smaller part, so a stage takes one at least.
        end = max(int(np.searchsorted(total, before + most, side="right")), start + 1)
        boundaries.append(min(end, len(sizes)))
    return [*boundaries, len(sizes)]


def _least_maximum(problem: Problem, sizes: Floats) -> UnitPlacement:
    """The stages filled in turn up to the smallest limit with which the last is within it too."""
    low = max(sizes.max(), sizes.sum() / problem.num_devices)
    high = sizes.sum()
    for _ in range(60):
        middle = (low + high) / 2
        last = sizes[_filled(sizes, middle, problem.num_devices)[-2] :].sum()
        low, high = (low, middle) if last <= middle else (middle, high)
    return _stages(_filled(sizes, high, problem.num_devices))


def _first(problem: Problem, count: int) -> Problem:
    """The same graph on the first devices alone."""
    devices = problem.cluster.devices[:count]
    names = {device.name for device in devices}
    links = tuple(x for x in problem.cluster.links if {x.source, x.target} <= names)
    cluster = replace(problem.cluster, devices=devices, links=links)
    return Problem(problem.graph, cluster, problem.assumptions)


def _bottleneck(problem: Problem, rule: Rule) -> float | None:
    stages = rule(problem)
    if stages is None:
        return None
    cost = problem.cost(stages)
    return cost.bottleneck_s if problem.fits(cost, stages) else None


def problems() -> Iterator[tuple[str, Problem]]:
    """The captured graphs on the eight devices, each with its name."""
    cluster = read(CAPTURED / "eight.cluster.json", Cluster)
    for name in MODELS:
        for mode in MODES:
            packed = CAPTURED / f"{name}.{mode}.graph.json.gz"
            graph = decode(gzip.decompress(packed.read_bytes()), Graph, packed.name)
            yield f"{name}, {mode}", Problem(graph, cluster, Assumptions(mode=mode))


def compare(problem: Problem) -> tuple[float, Row, Row]:
    """Skyfx's bottleneck in seconds, and the rules' multiples of it.

    Returns:
        The bottleneck, the multiples on all devices, and those on the best number of first devices.
    """
    plan = solve(
        problem.graph,
        problem.cluster,
        problem.assumptions,
        gap=GAP,
        time_limit_s=TIME_LIMIT_S,
        enforce_peaks=False,
    ).plan
    parts = [_first(problem, count) for count in range(1, problem.num_devices + 1)]
    everywhere: Row = []
    best: Row = []
    for rule, _ in RULES.values():
        values = [_bottleneck(part, rule) for part in parts]
        ratios = [None if value is None else value / plan.bottleneck_s for value in values]
        everywhere.append(ratios[-1])
        best.append(min((ratio for ratio in ratios if ratio is not None), default=None))
    return plan.bottleneck_s, everywhere, best


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _table(names: list[str], values: list[float], rows: list[Row]) -> str:
    """One row a graph, and one with the medians of those that fit."""

    def said(ratio: float | None) -> str:
        return NO_FIT if ratio is None else f"{ratio:.2f}"

    head = ["graph", "skyfx ms", *RULES]
    lines = [_line(head), _line(["---"] * len(head))]
    for name, value, row in zip(names, values, rows, strict=True):
        lines.append(_line([name, f"{value * 1e3:.4g}", *map(said, row)]))
    fitting = [
        [ratio for ratio in column if ratio is not None] for column in zip(*rows, strict=True)
    ]
    medians = [statistics.median(column) if column else None for column in fitting]
    return "\n".join([*lines, _line(["median", "", *map(said, medians)])])


def _preface() -> str:
    git = ["git", "--no-optional-locks"]
    short = [*git, "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(short, cwd=ROOT, capture_output=True, text=True, check=True)
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "solver"], cwd=ROOT)
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, commit {commit.stdout.strip()}"
        f"{' with later changes to `solver/`' if changed.returncode else ''}, "
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}."
    )


def _document(all_devices: str, first_devices: str) -> str:
    rules = "\n".join(f"- **{name}**: {said}" for name, (_, said) in RULES.items())
    return f"""# The planner and simpler rules

`python -m benchmarks.planner.yardsticks --write`, {_preface()}

What the splits that other projects make would cost, by skyfx's cost model: the bottleneck of each
as a multiple of the bottleneck of skyfx's plan (gap {GAP:.0%}, at most {TIME_LIMIT_S:.0f} s), so
1.00 is as good. The graphs are the captured ones on the eight unlike devices of
`benchmarks/planner/data/captured/`. Nothing here was run on such devices.

Each rule cuts the graph's order into contiguous stages, on the devices in the cluster's order. The
rules are written again over the graph's operators, where the projects split modules or layers; the
projects themselves were not run. Most were made for equal devices.

{rules}

The rules that sum up fill the first devices first where several splits are as good. "{NO_FIT}" is
a split that needs more memory than a device has. A median is that of the splits that fit.

## On all eight devices

{all_devices}

## On the best number of first devices

The cluster lists its devices from fast to slow, and who splits by such a rule would hardly give the
slow ones a full share. Here each rule gets the first device, the first two and so on to all eight,
and the best of these counts.

{first_devices}
"""


def main() -> None:
    """Solve, compare, print, and with `--write` keep the tables in the documentation."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.planner.yardsticks", description=__doc__
    )
    parser.add_argument("--only", default="", help="graphs whose name holds this text")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    options = parser.parse_args()
    chosen = [(name, problem) for name, problem in problems() if options.only in name]
    if not chosen:
        parser.error(f"no graph's name holds {options.only!r}")
    names = [name for name, _ in chosen]
    values, everywhere, best = zip(*(compare(problem) for _, problem in chosen), strict=True)
    tables = [_table(names, list(values), list(rows)) for rows in (everywhere, best)]
    print("on all devices", tables[0], "on the best number of first devices", tables[1], sep="\n")
    if options.write:
        RESULT.write_text(_document(*tables))


if __name__ == "__main__":
    main()
