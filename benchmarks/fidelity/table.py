"""The table of the fidelity benchmark, and what its columns come to."""

import itertools
from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.common.documents import when_and_where

Row = dict[str, Any]

HEAD = (
    "cluster | model | plan | stages | pace | stage compute, error % | step predicted s "
    "| measured s | error % | formula's error % | peak memory, error %"
)

TEXT = """# What is predicted, and what comes true

Predicted from measured operators, calibration segments and links; run as a pipeline over four
processes on unlike hosts, emulated on one machine: network namespaces with shaped links, shares of
a core by the kernel's bandwidth control (`benchmarks/common/emulated_hosts.py`). 6 micro-batches of
16 samples, 1F1B, transfers overlapping computation, AdamW. The step is simulated action by action,
as `skyfx simulate` does (`solver/costs/simulator.py`); beside it stands the error of the plan's own
formula, latency plus five bottlenecks. Peak memory is predicted by `solver/costs/peak_memory.py`,
and measured as what the C library has in use. Measured: means of two steps after one to warm up.
Stage compute and memory: the largest error among the stages that take at least a twentieth of the
largest.

The machine is virtual, and other guests take their part of it now and then. So each host times a
fixed piece of work (products of matrices, sums of vectors) when it has measured the model, and
before and after the steps: `pace` is how much slower the fastest and the slowest host were beside
the steps. "At the pace found" is the error of what is predicted for hosts that are as fast as that.

"""


def text(rows: Sequence[Row]) -> str:
    """The document."""
    lines = [f"| {HEAD} |", f"| {' | '.join('---' for _ in HEAD.split('|'))} |"]
    for row in rows:
        step = row["step_s"] / row["measured_s"] - 1
        formula = row["formula_s"] / row["measured_s"] - 1
        cells = (
            row["cluster"],
            row["model"],
            row["plan"],
            row["stages"],
            f"{min(row['drift']):.2f} to {max(row['drift']):.2f}",
            f"{100 * worst(compute_errors(row)):+.1f}",
            f"{row['step_s']:.2f}",
            f"{row['measured_s']:.2f}",
            f"{100 * step:+.1f}",
            f"{100 * formula:+.1f}",
            f"{100 * worst(memory_errors(row)):+.1f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return (
        TEXT
        + summary(rows)
        + "\n"
        + "\n".join(lines)
        + f"\n\n{when_and_where('benchmarks.fidelity')}\n"
    )


def summary(rows: Sequence[Row]) -> str:
    """Medians, 95th percentiles and the order of the plans."""
    compute = [e for row in rows for e in compute_errors(row)]
    memory = [e for row in rows for e in memory_errors(row)]
    step = [row["step_s"] / row["measured_s"] - 1 for row in rows]
    paced = [e for row in rows for e in compute_errors(_at_the_pace_found(row))]
    paced_step = [row["drifted_s"] / row["measured_s"] - 1 for row in rows]
    lines = [
        "| | cases | median error % | 95th percentile % | reach |",
        "| --- | --- | --- | --- | --- |",
    ]
    for what, errors, reach in (
        ("stage compute", compute, "3 / 8"),
        ("— at the pace found", paced, ""),
        ("step time", step, "3 / 8"),
        ("— at the pace found", paced_step, ""),
        ("peak memory of a stage", memory, "5 / 5"),
    ):
        middle, p95 = median_and_p95(errors)
        lines.append(f"| {what} | {len(errors)} | {100 * middle:.1f} | {100 * p95:.1f} | {reach} |")
    lines.append(f"| Kendall tau over plans | {len(rows)} | {tau(rows):.3f} | | 0.95 |")
    return "\n".join(lines) + "\n"


def median_and_p95(errors: Sequence[float]) -> tuple[float, float]:
    """Of their sizes, whatever their signs."""
    sizes = sorted(abs(e) for e in errors)
    return median(sizes), sizes[min(len(sizes) - 1, int(0.95 * len(sizes)))]


def compute_errors(row: Row) -> list[float]:
    """Of each stage that counts: predicted over measured, less 1."""
    return _errors(row["compute_s"], row["busy_s"])


def _at_the_pace_found(row: Row) -> Row:
    compute_s = [s * drift for s, drift in zip(row["compute_s"], row["drift"], strict=True)]
    return row | {"compute_s": compute_s}


def memory_errors(row: Row) -> list[float]:
    """The same of peak memory."""
    return _errors(row["memory"], row["peak"])


def tau(rows: Sequence[Row]) -> float:
    """Kendall's, over all pairs of plans for one model on one cluster."""
    agreed = total = 0
    for a, b in itertools.combinations(rows, 2):
        if (a["cluster"], a["model"]) == (b["cluster"], b["model"]):
            signs = (a["step_s"] - b["step_s"]) * (a["measured_s"] - b["measured_s"])
            agreed += (signs > 0) - (signs < 0)
            total += 1
    return agreed / total if total else 1.0


def worst(errors: Sequence[float]) -> float:
    """The one furthest from 0."""
    return max(errors, key=abs, default=0.0)


def _errors(predicted: Sequence[float], measured: Sequence[float]) -> list[float]:
    most = max(measured)
    return [p / m - 1 for p, m in zip(predicted, measured, strict=True) if m >= most / 20]
