"""Schedules made for a plan beside 1F1B: `python -m benchmarks.schedules [--write]`.

`--cases N` and `--only TEXT` take fewer pipelines and models.
All steps are simulated (`solver/costs/simulator.py`).
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import median, quantiles

from benchmarks.common.documents import when_and_where
from benchmarks.schedules.cases import Case, captured, four, unequal
from benchmarks.schedules.makespan_bound import lowest_s
from skyfx.solver import Assumptions, solve
from skyfx.solver.core.schedule import in_flight_counts, orders
from skyfx.solver.costs.action_times import ActionTimes
from skyfx.solver.costs.peak_memory import peak_bytes
from skyfx.solver.costs.simulator import run_schedule
from skyfx.solver.problem.problem import Problem
from skyfx.solver.refinement.in_flight import Fits, Generated, generate
from skyfx.solver.refinement.memory_headroom import MemoryHeadroom

RESULT = Path(__file__).parents[2] / "docs" / "schedules.md"
CASES = 60
MODELS = ("bert", "gpt2", "t5", "resnet", "swin", "unet")

Row = Sequence[str]
HEAD = ("memory", "cases", "geometric mean", "best", "quartiles", "worst", "10 % and more")
PLANNED = ("model", "links", "stages", "unequal", "1f1b s", "generated", "interleaved")


def made(case: Case, fits: Fits) -> Generated:
    """The schedule of a case."""
    pace = ActionTimes.of(case.graph, case.cluster, case.placement, case.assumptions)
    return generate(pace, case.assumptions.microbatches, fits)


def within_limits(case: Case) -> Fits:
    """Whether the devices' memory holds as much, at their peaks."""
    problem = Problem(case.graph, case.cluster, case.assumptions)
    peaks = peak_bytes(case.graph, case.cluster, case.placement, case.assumptions)
    names = [device.name for device in case.cluster.devices]
    return MemoryHeadroom(problem, case.placement, dict(zip(names, peaks, strict=True))).fits


def no_more_in_all(case: Case) -> Fits:
    """Whether no more micro-batches are live on all stages together than under 1F1B."""
    usual = sum(in_flight_counts("1f1b", len(case.graph.nodes), case.assumptions.microbatches))
    return lambda live, _: sum(live) <= usual


def gpipe(case: Case) -> Generated:
    """What GPipe takes beside 1F1B, as if it were made."""
    pace = ActionTimes.of(case.graph, case.cluster, case.placement, case.assumptions)
    m, num = case.assumptions.microbatches, len(pace.devices)
    found = [
        run_schedule(pace, orders(in_flight_counts(schedule, num, m), m, pace.devices)).step_s
        for schedule in ("gpipe", "1f1b")
    ]
    return Generated(in_flight_counts("gpipe", num, m), *found)


def lowest(case: Case) -> Generated:
    """What no order is faster than, with memory to spare, as if it were one."""
    pace = ActionTimes.of(case.graph, case.cluster, case.placement, case.assumptions)
    return replace(gpipe(case), step_s=lowest_s(pace, case.assumptions.microbatches))


SETTINGS: dict[str, Callable[[int], Generated]] = {
    "without limits": lambda seed: made(unequal(seed), lambda _, __: True),
    "limits of 1.1 to 2.5 times 1F1B's peaks": lambda seed: made(
        unequal(seed).limited(seed), within_limits(unequal(seed).limited(seed))
    ),
    "no more live in all than 1F1B": lambda seed: made(
        unequal(seed), no_more_in_all(unequal(seed))
    ),
    "GPipe, without limits": lambda seed: gpipe(unequal(seed)),
    "what no order can be below": lambda seed: lowest(unequal(seed)),
}


def distribution(cases: int) -> Iterator[Row]:
    """One row a memory setting."""
    for name, run in SETTINGS.items():
        parts = sorted(found.step_s / found.first_step_s for found in map(run, range(cases)))
        low, _, high = quantiles(parts, n=4)
        yield (
            name,
            str(len(parts)),
            f"{math.exp(sum(map(math.log, parts)) / len(parts)):.3f}",
            f"{parts[0]:.3f}",
            f"{low:.3f}, {median(parts):.3f}, {high:.3f}",
            f"{parts[-1]:.3f}",
            f"{sum(part <= 0.9 for part in parts)}",
        )


def planned(only: str) -> Iterator[Row]:
    """Captured models, planned for unlike devices; steps in parts of 1F1B's."""
    for name in (name for name in MODELS if only in name):
        graph = captured(name)
        for links in ("slow", "fast"):
            cluster = four(graph, links)
            given = Assumptions(overlap="full", objective="step", schedule="generated")
            plan = solve(graph, cluster, given, time_limit_s=5.0, gap=0.01).plan
            other = replace(given, schedule="interleaved")
            cut = solve(graph, cluster, other, time_limit_s=5.0, gap=0.01).plan
            times = [stage.compute_s for stage in plan.stages if stage.compute_s]
            usual = plan.alternatives.simulated_1f1b_s or math.nan
            yield (
                name,
                links,
                str(len(plan.stages)),
                f"{max(times) / min(times):.1f}",
                f"{usual:.3g}",
                f"{plan.simulated_s / usual:.3f}",
                f"{cut.simulated_s / (cut.alternatives.simulated_1f1b_s or math.nan):.3f}",
            )


def table(head: Row, rows: Iterator[Row]) -> str:
    """A Markdown table, printed as it comes."""
    lines = []
    for row in chain((head, ["---"] * len(head)), rows):
        lines.append(f"| {' | '.join(row)} |\n")
        print(lines[-1], end="", flush=True)
    return "".join(lines)


def main() -> None:
    """Simulate, print, and with `--write` keep the tables in the documentation."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.schedules", description=__doc__)
    parser.add_argument("--cases", type=int, default=CASES, help="pipelines a memory setting")
    parser.add_argument("--only", default="", help="models whose name holds this text")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    options = parser.parse_args()
    began = time.process_time()
    first = table(HEAD, distribution(options.cases))
    each_s = (time.process_time() - began) / (3 * options.cases)
    second = table(PLANNED, planned(options.only))
    if options.write:
        RESULT.write_text(_text(first, second, each_s, options.cases))


def _text(distribution: str, planned: str, each_s: float, cases: int) -> str:
    return f"""# Schedules made for a plan

{when_and_where("benchmarks.schedules")} All steps are simulated, at the same times and links as
1F1B's; what is real is measured elsewhere. Figures are parts of 1F1B's step: 0.85 is 15 % less.

## Unequal stages on slow links

{cases} seeded pipelines (`benchmarks/schedules/cases.py`): 4 to 8 stages of 50 to 400 ms, the
slowest at least twice as long as the fastest, links of 20 to 1,000 Mbit/s, messages of 256 KiB to
4 MiB, 6 to 32 micro-batches; transfers overlap. Where a link is busy all the time nothing can be
won. The search took {each_s:.2f} s of processor time on average.

{distribution}
The first two rows are at equal memory limits; in the second some devices have room for little more
than 1F1B takes. The third row redistributes what 1F1B keeps live. The last row is no schedule, but
a bound (`benchmarks/schedules/makespan_bound.py`): each stage and each link does its whole share,
one micro-batch after another, and the first one has to get there.

## Models planned for unlike devices

The planner's own data, on four devices that differ by up to four times; 8 micro-batches, objective
`step`. Slow links are as above, fast ones have 10 Gbit/s. A plan evens its stages out as far as it
can (`unequal`: the slowest over the fastest that computes), and on slow links has few of them.
Interleaved plans are made where they are asked for, worse or not: values cross more boundaries, in
gpt2 and t5 the tied embeddings among them. The plan and its table say what 1f1b would take.

{planned}"""


if __name__ == "__main__":
    main()
