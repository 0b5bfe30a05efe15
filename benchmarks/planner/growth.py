"""How the planner's cost grows: `python -m benchmarks.planner.growth [--only TEXT] [--write]`.

Chains of BERT-like operators and general layered graphs, on devices of four types with one kind of
link and memory for 1.6 or 2 times the need: solve time against nodes, then against devices. Each
solve is a process of its own and ends at a gap of 2 %, or when its time is up. `--write` keeps the
table and the plot in the documentation; it needs matplotlib (`pip install --group plots`).
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common.documents import table, when_and_where
from benchmarks.planner.__main__ import Instance, solve, write_instance
from benchmarks.planner.instances import four_types_chain, layered

DOCS = Path(__file__).parents[2] / "docs"
NODES = (250, 500, 1000, 2000, 4000, 8000, 16_000)
DEVICES = (2, 4, 8, 16, 32, 64, 128, 256)
AT_DEVICES, AT_NODES = 16, 2000
OPTIONS = ("--gap", "0.02", "--time-limit", "30")
KINDS = {"chain": four_types_chain, "layered": layered}
HEAD = ("graph", "nodes", "devices", "time s", "MB", "gap %", "found by")

Row = tuple[str, int, int, float, str, str, str]


def sizes() -> Iterator[tuple[str, int, int]]:
    """Kind of graph, nodes and devices of each solve."""
    for kind in KINDS:
        yield from ((kind, nodes, AT_DEVICES) for nodes in NODES)
        yield from ((kind, AT_NODES, devices) for devices in DEVICES if devices != AT_DEVICES)


def measured(kind: str, nodes: int, devices: int, folder: Path) -> Row:
    """Solve one instance."""
    paths = write_instance(folder, f"{kind}-{nodes}-{devices}", *KINDS[kind](0, nodes, devices))
    instance: Instance = (kind, "", *paths, OPTIONS)
    _, _, time_s, memory, _, _, gap, method = solve(instance, folder)
    return kind, nodes, devices, float(time_s), memory, gap, method


def draw(rows: list[Row], path: Path) -> None:
    """Both curves of both kinds, on one picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for axis, x, fixed, at, label in (
        (axes[0], 1, 2, AT_DEVICES, f"nodes, on {AT_DEVICES} devices"),
        (axes[1], 2, 1, AT_NODES, f"devices, for {AT_NODES:,} nodes"),
    ):
        for kind, mark in zip(KINDS, "os", strict=True):
            points = sorted((row[x], row[3]) for row in rows if (row[0], row[fixed]) == (kind, at))
            axis.loglog(*zip(*points, strict=True), marker=mark, label=kind)
        axis.set(xlabel=label)
        axis.grid(visible=True, which="both", alpha=0.3)
    axes[0].set(ylabel="seconds to a gap of 2 %, 30 at most")
    axes[0].legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Solve, print, and with `--write` keep table and plot in the documentation."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.planner.growth", description=__doc__
    )
    parser.add_argument("--only", default="", help="sizes that hold this text, as in chain-250-16")
    parser.add_argument("--write", action="store_true", help="write docs/planner-growth.*")
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        for size in (size for size in sizes() if options.only in "-".join(map(str, size))):
            rows.append(measured(*size, Path(name)))
            print(*rows[-1], sep=" | ", flush=True)
    if options.write:
        draw(rows, DOCS / "planner-growth.png")
        found = table(HEAD, [list(map(str, row)) for row in rows])
        (DOCS / "planner-growth.md").write_text(f"{_preface()}\n{found}")


def _preface() -> str:
    return (
        f"# How the planner's cost grows\n\n{when_and_where('benchmarks.planner.growth')} "
        "Wall time and peak memory of whole `skyfx solve` processes that end at a gap of 2 %, or "
        "when their 30 seconds are up. Some end earlier with a larger gap, which the table tells: "
        "no method has more to say. Below 1,000 nodes the integer program is tried, and takes all "
        "the time that it gets.\n\n"
        "![Solve time against nodes and devices](planner-growth.png)\n"
    )


if __name__ == "__main__":
    main()
