"""The comparison's document: what was reached, every ratio, what falls short, how it ran."""

from collections.abc import Callable, Sequence

from benchmarks.common.documents import table, when_and_where
from benchmarks.hosts.metrics import (
    Row,
    best_by_hand,
    by_hand,
    loss_differs,
    mean,
    memory,
    named_best_by_hand,
    over_bound,
    pace,
    step_s,
    times,
)
from benchmarks.hosts.targets import TARGETS, spread_8

__all__: list[str] = ["text"]

RULES = ("blocks", "bytes", "parameters", "time", "memory")
SCHEDULES = ("1f1b", "gpipe")

TEXT = """# Against what one would do otherwise

Training steps on unlike hosts, emulated on one machine of two cores
(`benchmarks/common/emulated_hosts.py`): each a network namespace with a shaped link and a share of
a core, all shares together 1.2 cores. Every model meets every spread of speeds, with four workers
and with eight; a third of the clusters have memory limits (`benchmarks/hosts/clusters.py`). 8
micro-batches of 2 samples; a step is the forward and the backward of all of them. All rivals begin
with the same parameters, run in turns in the same processes and update by plain gradient descent
after each step, which is not in its time. Figures are medians of five steps after one to warm up;
of one where a step takes more than 15 s and for the original's way. In brackets: the first step
alone, of cuts by hand that were no more than third, or far behind the best.

- **skyfx**: what `partition` would plan and run, with `objective="step"`, `schedule="generated"`
  and `time_limit_s=60`, from what was measured on these hosts. Its seconds are given; of all
  others, how many times longer they take.
- **even**: as many operators for each worker, in the order of the ranks, run by skyfx.
- **torch.distributed.pipelining** by hand: the model as a sequence of blocks, a `PipelineStage` for
  each worker in the order of the ranks, run by torch's own `Schedule1F1B` / `ScheduleGPipe`. Cut
  into equal numbers of blocks, by bytes (parameters, gradients, what backward needs), by
  parameters, by time on one device, and by bytes in proportion to the workers' memory. The U-Net's
  skips are handed on from block to block by hand, without which torch could not run it; GPT-2 has
  output weights of its own, since torch ties none across stages.
- **original**: Sky Computing's way: the even split, one stage after another, the batch as a whole.
- **one device**: the fastest worker trains the whole model alone, without skyfx.
- **over bound**: skyfx's measured step over the plan's `lower_bound`: what no plan can be faster
  than by the cost model's formula for a step (latency plus seven bottlenecks) and measured costs.

\\\\* took more memory than a worker has, where there are limits, and would have been killed; it
counts all the same.

"""

RAN = """Spread: largest less smallest step, of the median. Processor, and stops by the kernel's
bandwidth control: of skyfx's last step, all workers together. Predicted: the plan's simulated step
over the measured; of one device likewise, which says how much faster or slower the machine was
when the model was measured. Memory: of skyfx's step, the kernel's count, in parts of the
limit. Loss: the largest relative difference of any rival's to that of the unsplit model, over all
steps.
"""

HEAD = (
    *("cluster", "shares of a core, %", "Mbit/s", "skyfx, s", "stages", "over bound", "even"),
    *(f"by {rule}" for rule in RULES),
    *("best by hand", "original", "one device"),
)

RAN_HEAD = (
    *("cluster", "skyfx's spread, %", "even's", "best by hand's", "processor, of the shares, %"),
    *(
        "stopped",
        "predicted",
        "one device's",
        "memory",
        "loss",
        "update, % of the step",
        "seconds in all",
    ),
)


def text(rows: Sequence[Row]) -> str:
    """The document, as far as it is computed."""
    summary, short = [], []
    for target in TARGETS:
        found, reached = target.found(rows)
        which = target.short(rows)
        summary.append((target.name, target.reach, found, reached, str(len(which))))
        if which:
            short.append(f"- **{target.name}**, {target.reach}: {'; '.join(which)}.")
    head = ("", "to be reached", "found", "reached", "clusters that are not there")
    return "\n".join(
        [
            TEXT + table(head, summary),
            table(HEAD, [*map(_cells, rows), *_means(rows)]),
            "## What falls short\n",
            *(short or ["Nothing."]),
            "\n## How it ran\n",
            RAN,
            table(RAN_HEAD, map(_ran, rows)),
            when_and_where("benchmarks.hosts"),
            "",
        ]
    )


def _cells(row: Row) -> Sequence[str]:
    def pair(rule: str) -> str:
        return " / ".join(_ratio(row, by_hand(row, rule, schedule)) for schedule in SCHEDULES)

    return (
        row["cluster"] + (", limited" if row["limits"] else ""),
        " ".join(f"{100 * share:.0f}" for share in row["shares"]),
        " ".join(map(str, row["mbit"])),
        f"{step_s(row, 'skyfx'):.2f}{_mark(row, 'skyfx')}",
        str(len(row["plan"]["stages"])),
        f"{over_bound(row):.2f}",
        _ratio(row, "even"),
        *map(pair, RULES),
        f"{best_by_hand(row):.2f}",
        _ratio(row, "original"),
        _ratio(row, "one device"),
    )


def _means(rows: Sequence[Row]) -> list[Sequence[str]]:
    """The geometric means of the clusters with the widest spread, and of all."""

    def line(name: str, some: Sequence[Row]) -> Sequence[str]:
        def of(figure: Callable[[Row], float]) -> str:
            return f"{mean(map(figure, some)):.2f}"

        def pair(rule: str) -> str:
            return " / ".join(
                of(lambda row, s=s: times(row, by_hand(row, rule, s))) for s in SCHEDULES
            )

        even, original, alone = (
            of(lambda row, name=name: times(row, name))
            for name in ("even", "original", "one device")
        )
        return (
            *(name, "", "", of(lambda row: step_s(row, "skyfx")), "", of(over_bound), even),
            *map(pair, RULES),
            *(of(best_by_hand), original, alone),
        )

    groups = {"spread 8": list(filter(spread_8, rows)), "all": rows}
    return [line(f"geometric mean, {name}", some) for name, some in groups.items() if some]


def _ran(row: Row) -> Sequence[str]:
    ours = row["rivals"]["skyfx"]
    return (
        row["cluster"],
        *(_spread(row, name) for name in ("skyfx", "even", named_best_by_hand(row))),
        f"{100 * sum(ours['cpu']) / sum(row['shares']):.0f}",
        str(sum(ours["throttled"])),
        f"{row['plan']['simulated_s'] / ours['step_s']:.3f}",
        f"{1 / pace(row):.3f}",
        f"{memory(row):.2f}" if row["limits"] else "",
        f"{loss_differs(row):.0e}",
        f"{100 * ours['update_s'] / ours['step_s']:.1f}",
        f"{row['wall_s']:.0f}",
    )


def _ratio(row: Row, name: str) -> str:
    ratio = f"{times(row, name):.2f}{_mark(row, name)}"
    return ratio if row["rivals"][name]["steps_s"] else f"({ratio})"


def _mark(row: Row, name: str) -> str:
    return "\\*" if memory(row, name) > 1 else ""


def _spread(row: Row, name: str) -> str:
    steps = row["rivals"][name]["steps_s"]
    return f"{100 * (max(steps) - min(steps)) / step_s(row, name):.1f}" if len(steps) > 1 else ""
