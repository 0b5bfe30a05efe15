"""What would make a problem solvable that is not: the smallest change of each kind."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from skyfx.solver.core.graph import Node
from skyfx.solver.core.units import size
from skyfx.solver.problem.problem import Problem

Fits = Callable[[Problem], bool]
"""Whether a problem has a plan, as far as can be told."""

PRECISION = 0.005
"""To which part of what is missing a device's memory is worked out."""


FACTORS = (2, 4, 8)
"""How many times more micro-batches are tried."""

PER_SAMPLE = ("output_bytes", "gradient_bytes", "saved_bytes", "workspace_bytes")
"""What is the less, the fewer samples a micro-batch has."""

MAX_DEVICES = 8
"""So many of the largest devices are tried."""


def relaxations(problem: Problem, fits: Fits) -> Iterator[str]:
    """Name each change of the assumptions after which `fits` is true."""
    assumptions = problem.assumptions
    if assumptions.training:
        fewer = _microbatches(problem, fits)
        if fewer:
            yield f"{fewer} micro-batches instead of {assumptions.microbatches}"
        if smaller := smaller_microbatches(problem, fits):
            yield smaller
        if assumptions.schedule == "gpipe" and fits(_with(problem, schedule="1f1b")):
            yield "the 1f1b schedule"
        yield from _optimizer(problem, fits)
        if fits(_with(problem, mode="inference")):
            yield "planning for inference"
    for pin in assumptions.pins:
        rest = tuple(other for other in assumptions.pins if other != pin)
        if fits(_with(problem, pins=rest)):
            yield f"leaving out the pin '{pin}'"


def memory_of(problem: Problem, fits: Fits) -> Iterator[str]:
    """The device that needs the least memory more for a plan to exist, and how much."""
    everything = float(problem.need_bytes(problem.num_devices).sum() + problem.peak_bytes.max())
    best: tuple[float, int] | None = None
    for d in np.argsort(-problem.memory_limit, kind="stable").tolist()[:MAX_DEVICES]:
        has = float(problem.memory_limit[d])
        low, high = 0.0, everything - has if best is None else best[0] * (1 - 3 * PRECISION)
        if high <= 0 or not fits(problem.with_memory(d, has + high)):
            continue
        start = high
        while high - low > PRECISION * start:
            middle = (low + high) / 2
            if fits(problem.with_memory(d, has + middle)):
                high = middle
            else:
                low = middle
        best = high, d
    if best is not None:
        name = problem.cluster.devices[best[1]].name
        yield f"{size(best[0])} more memory on {name!r}"


def _optimizer(problem: Problem, fits: Fits) -> Iterator[str]:
    now = problem.assumptions.optimizer_state_ratio
    for ratio, example in ((1.0, "SGD with momentum"), (0.0, "plain SGD")):
        if ratio < now and fits(_with(problem, optimizer_state_ratio=ratio)):
            yield f"an optimizer such as {example} (state ratio {ratio:g} instead of {now:g})"
            return


def smaller_microbatches(problem: Problem, fits: Fits) -> str:
    """The fewest micro-batches, each of fewer samples, that fit; empty if none do."""
    asked, samples = problem.assumptions.microbatches, problem.graph.microbatch_size
    for factor in FACTORS:
        if samples % factor == 0 and fits(_in_parts(problem, factor)):
            count = samples // factor
            each = "sample" if count == 1 else "samples"
            return f"num_microbatches={asked * factor} fits, each of {count} {each}"
    return ""


def _in_parts(problem: Problem, factor: int) -> Problem:
    """The problem with as many more micro-batches, which take as much less."""

    def part(node: Node) -> Node:
        changes: dict[str, Any] = {name: getattr(node, name) / factor for name in PER_SAMPLE}
        for name in ("forward_s", "backward_s", "kept"):
            changes[name] = {key: x / factor for key, x in getattr(node, name).items()}
        return replace(node, **changes)

    graph = replace(
        problem.graph,
        nodes=tuple(map(part, problem.graph.nodes)),
        microbatch_size=problem.graph.microbatch_size // factor,
    )
    more = replace(problem.assumptions, microbatches=problem.assumptions.microbatches * factor)
    return Problem(graph, problem.cluster, more)


def _microbatches(problem: Problem, fits: Fits) -> int:
    """The largest number of micro-batches that fits; 0 where none does."""
    low, high = 0, problem.assumptions.microbatches
    while high - low > 1:
        middle = (low + high) // 2
        if fits(_with(problem, microbatches=middle)):
            low = middle
        else:
            high = middle
    return low


def _with(problem: Problem, **changed: object) -> Problem:
    assumptions = replace(problem.assumptions, **changed)  # type: ignore[arg-type]
    return Problem(problem.graph, problem.cluster, assumptions)
