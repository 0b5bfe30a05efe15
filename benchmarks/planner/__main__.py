"""The planner's benchmark: `python -m benchmarks.planner [--only TEXT] [--write]`.

Each instance is solved by a `skyfx solve` process of its own; `skyfx check` checks its plan.
One table: wall time and peak memory of the process, the plan's value, its bound and gap.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.common.documents import table, when_and_where
from benchmarks.planner.branching_graphs import inception, nas, on_eight, on_host
from benchmarks.planner.instances import layered, sky_computing, unlike_chain
from skyfx.solver import Cluster, Graph, read, write

DATA = Path(__file__).parent / "data"
RESULT = Path(__file__).parents[2] / "docs" / "planner-benchmark.md"
HOST = ("--mode", "inference", "--communication", "host")
QUICK = ("--time-limit", "10")
HEAD = ("instance", "reach", "time s", "MB", "value ms", "bound ms", "gap %", "found by")

Instance = tuple[str, str, Path, Path, tuple[str, ...]]
"""Name, what is to be reached, graph, cluster, and options of `skyfx solve`."""


def instances(folder: Path) -> Iterator[Instance]:
    """Write the instances to a folder."""
    for name in ("L-bert24", "L-gnmt", "L-resnet50", "O-bert_l-3"):
        graph, cluster = (
            DATA / "msr" / f"dnnp-{name}.{kind}.json" for kind in ("graph", "cluster")
        )
        yield f"msr {name}", "proven, 5 s", graph, cluster, (*HOST, "--time-limit", "20")
    rng = np.random.default_rng
    for kind, slow in (
        ("real", rng(32).random(64)[1:] + 1),
        ("whole", rng(35).integers(1, 7, 64)[1:] + 1),
    ):
        thirds = write_instance(folder, f"thirds-{kind}", *sky_computing(slow, thirds=True))
        yield f"483 thirds x 63, {kind} slowdowns", "proven, 2 s", *thirds, ()
        operators = write_instance(folder, f"operators-{kind}", *sky_computing(slow, thirds=False))
        options = ("--gap", "0.005", "--time-limit", "30")
        yield f"1,923 operators x 63, {kind}", "1 %, 30 s", *operators, options
    for name in ("bert", "gpt2", "t5", "resnet", "swin", "unet"):
        for mode in ("training", "inference"):
            graph = folder / f"{name}.{mode}.graph.json"
            packed = DATA / "captured" / f"{graph.name}.gz"
            graph.write_bytes(gzip.decompress(packed.read_bytes()))
            cluster = DATA / "captured" / "eight.cluster.json"
            options = ("--mode", mode, "--gap", "0.01", "--time-limit", "10")
            yield f"{name}, {mode}, x 8", "1 %, 10 s", graph, cluster, options
    eight = read(DATA / "captured" / "eight.cluster.json", Cluster)
    for name, made in (("Inception", inception(0)), ("NAS", nas(1, 12))):
        for number in (3, 6):
            paths = write_instance(folder, f"{name}-{number}", *on_host(made, number))
            yield f"{name}-like, host x {number} + CPU", "proven", *paths, (*HOST, *QUICK)
        paths = write_instance(folder, f"{name}-eight", *on_eight(made, eight))
        yield f"{name}-like, training, x 8", "1 %, 10 s", *paths, ("--gap", "0.01", *QUICK)
    for seed in range(10):
        chain = write_instance(folder, f"chain-{seed}", *unlike_chain(seed))
        options = ("--gap", "0.01", "--time-limit", "60")
        yield f"5,920-node chain x 64, seed {seed}", "1 %, 60 s", *chain, options
    wide = write_instance(folder, "20k", *layered(0, 20_000, 64))
    yield "20,000 nodes x 64", "valid, 120 s", *wide, ("--time-limit", "60")
    many = write_instance(folder, "512", *layered(0, 500, 512))
    yield "500 nodes x 512", "valid, 120 s", *many, ("--time-limit", "60")


def write_instance(folder: Path, name: str, graph: Graph, cluster: Cluster) -> tuple[Path, Path]:
    """Write a graph and a cluster to files."""
    paths = folder / f"{name}.graph.json", folder / f"{name}.cluster.json"
    write(graph, paths[0])
    write(cluster, paths[1])
    return paths


def solve(instance: Instance, folder: Path) -> tuple[str, ...]:
    """One row of the table."""
    name, reach, graph, cluster, options = instance
    plan = folder / "result.plan.json"
    command = [sys.executable, "-m", "skyfx.solver"]
    began = time.monotonic()
    process = subprocess.Popen(
        [
            *(*command, "solve", str(graph), str(cluster), "-o", str(plan), "-q", "--force"),
            "--ignore-peaks",  # public graphs do not say them, and the rows are compared
            *options,
        ]
    )
    _, status, usage = os.wait4(process.pid, 0)
    took = time.monotonic() - began
    if code := os.waitstatus_to_exitcode(status):
        return name, reach, f"{took:.1f}", "", "", "", "", f"exit code {code}"
    check = subprocess.run(
        [*command, "check", str(graph), str(cluster), str(plan), "-q"],
        stdout=subprocess.DEVNULL,
        check=False,
    )
    made = json.loads(plan.read_text())
    gap = "" if made["gap"] is None else f"{made['gap'] * 100:.3f}"
    found = made["solver"]["method"] if check.returncode == 0 else "INVALID PLAN"
    value, bound = made["objective_value"] * 1e3, made["lower_bound"] * 1e3
    memory = f"{usage.ru_maxrss / 1024:.0f}"
    return name, reach, f"{took:.1f}", memory, f"{value:.6g}", f"{bound:.6g}", gap, found


def main() -> None:
    """Solve, print, and with `--write` keep the table in the documentation."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planner", description=__doc__)
    parser.add_argument("--only", default="", help="instances whose name holds this text")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    options = parser.parse_args()
    rows: list[Sequence[str]] = []
    with tempfile.TemporaryDirectory() as name:
        for instance in instances(Path(name)):
            if options.only in instance[0]:
                rows.append(solve(instance, Path(name)))
                print(*rows[-1], sep=" | ", flush=True)
    if options.write:
        RESULT.write_text(f"{_preface()}\n{table(HEAD, rows)}")


def _preface() -> str:
    return (
        f"# The planner's benchmark\n\n{when_and_where('benchmarks.planner')} "
        "Time and memory are of the whole `skyfx solve` process; every plan was checked by "
        "`skyfx check`. What the instances are: `benchmarks/planner/`.\n"
    )


if __name__ == "__main__":
    main()
