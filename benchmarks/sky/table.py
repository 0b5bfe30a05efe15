"""The tables of the simulated experiment: what each split takes, what is saved in which metric."""

from collections.abc import Mapping, Sequence

from benchmarks.common.documents import table, when_and_where
from benchmarks.sky.metrics import METRICS
from benchmarks.sky.published_code import FASTER, SAVED
from benchmarks.sky.simulated import CUTS, Row

__all__: list[str] = ["savings", "splits", "text"]

Ideals = Mapping[str, Mapping[str, float]]
"""Seconds by metric, by slowdowns."""

ABOUT = """Per cent of the even split's time in the same metric. `No split`: proven; no split of
operators, and so none of thirds, saves more. Of a simulated step nothing is proven."""

SPLITS = """In brackets: of the ideal. Bound and gap are of the metric that the split was sought
for. \\* takes more memory than a worker has: of bottleneck, step and simulated step in a pipeline,
of the last one for the batch as a whole."""


def text(rows: Sequence[Row], ideals: Ideals, size: tuple[int, int]) -> str:
    """The section with all of them, for so many layers and workers."""
    layers, num_workers = size
    where = when_and_where("benchmarks.sky simulated")
    parts = [
        f"{where} {layers} layers, {num_workers} workers.",
        f"### What is saved, beside the even split\n\n{ABOUT}\n\n{savings(rows)}",
        "\n".join(_nearest(rows, aim) for aim in (SAVED, FASTER)),
        f"### Every split\n\n{SPLITS}",
        *(f"{_ideal(kind, of)}\n\n{splits(rows, kind, of)}" for kind, of in ideals.items()),
    ]
    return "\n\n".join(parts)


def savings(rows: Sequence[Row]) -> str:
    """By the heuristic, by each cut's best, and at most."""
    head = ("slowdowns", "setting", "metric", "dynamic", *(f"best, {cut}" for cut in CUTS))
    lines = []
    for (kind, setting, metric), saved in _saved(rows).items():
        lines.append((kind, setting, metric, *(_per_cent(x) for x in saved.values())))
    return table((*head, "no split"), lines)


def splits(rows: Sequence[Row], kind: str, ideal: Mapping[str, float]) -> str:
    """Every split of one kind of slowdowns."""
    head = (
        *("setting", "cut", "split", "workers", "bottleneck, s", "step, s", "simulated, s"),
        *("sequential, s", "bound, s", "gap, %", "planned in, s"),
    )
    return table(head, (_line(row, ideal) for row in rows if row.slowdowns == kind))


def _saved(rows: Sequence[Row]) -> dict[tuple[str, str, str], dict[str, float | None]]:
    """Parts of the even split's time, by slowdowns, setting and metric, then by split."""
    found = {}
    for kind, setting in dict.fromkeys((row.slowdowns, row.setting) for row in rows):
        here = [row for row in rows if (row.slowdowns, row.setting) == (kind, setting)]
        for metric in METRICS:
            seconds = {
                "dynamic": _least([r for r in here if r.split == "dynamic"], metric),
                **{cut: _least([r for r in here if r.cut == cut], metric) for cut in CUTS},
                "no split": _bound(here, metric),
            }
            even = _least([r for r in here if r.split == "even"], metric)
            found[kind, setting, metric] = {
                name: None if even is None or s is None else 1 - s / even
                for name, s in seconds.items()
            }
    return found


def _least(rows: Sequence[Row], metric: str) -> float | None:
    """Seconds of the best of these, among those that the workers have the memory for."""
    fitting = [
        row.found.seconds[metric]
        for row in rows
        if row.found is not None and (row.found.fits_whole if _whole(metric) else row.found.fits)
    ]
    return min(fitting, default=None)


def _bound(rows: Sequence[Row], metric: str) -> float | None:
    sought = [r for r in rows if r.cut == "operators" and r.split == f"best {metric}"]
    return next((row.bound_s for row in sought), None)


def _whole(metric: str) -> bool:
    return metric == "sequential"


def _nearest(rows: Sequence[Row], aim: float) -> str:
    """Which saving is nearest to the published one, as one may read it."""
    every = [
        (abs(saved - aim), saved, key, name)
        for key, of in _saved(rows).items()
        for name, saved in of.items()
        if saved is not None and name != "no split"
    ]
    if not every:
        return ""
    _, saved, (kind, setting, metric), name = min(every)
    return (
        f"Nearest to {100 * aim:.1f} %: {100 * saved:.1f} %, {metric}, {kind} slowdowns, "
        f"{setting}, {name}."
    )


def _ideal(kind: str, ideal: Mapping[str, float]) -> str:
    return (
        f"Slowdowns: {kind}. Ideal: bottleneck {ideal['bottleneck']:.4g} s, all work at all "
        f"workers' speeds together; sequential {ideal['sequential']:.4g} s, all of it on the "
        "fastest."
    )


def _line(row: Row, ideal: Mapping[str, float]) -> Sequence[str]:
    def cell(metric: str) -> str:
        if row.found is None:
            return "none found"
        seconds = row.found.seconds[metric]
        mark = "" if (row.found.fits_whole if _whole(metric) else row.found.fits) else "\\*"
        beside = f" ({seconds / ideal[metric]:.4f})" if metric in ideal else ""
        return f"{seconds:.4g}{mark}{beside}"

    metric = row.split.removeprefix("best ")
    gap = ""
    if row.found is not None and row.bound_s:
        gap = f"{100 * (row.found.seconds[metric] / row.bound_s - 1):.2f}"
    return (
        row.setting,
        row.cut,
        row.split,
        "" if row.found is None else str(row.found.num_stages),
        *(cell(metric) for metric in METRICS),
        "" if row.bound_s is None else f"{row.bound_s:.4g}",
        gap,
        "" if row.took_s is None else f"{row.took_s:.1f}",
    )


def _per_cent(part: float | None) -> str:
    return "" if part is None else f"{100 * part:.1f}"
