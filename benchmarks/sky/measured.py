"""The experiment on real processes: as many unlike hosts as one machine carries, training a BERT.

A host's share of a core is in inverse proportion to its slowdown, its network's rate likewise to
the original's slowdown of the network.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common.documents import table, when_and_where
from benchmarks.common.emulated_hosts import Host, emulated
from benchmarks.hosts.clusters import CORES
from benchmarks.sky import published_code
from benchmarks.sky.worker import Task

__all__: list[str] = ["MBIT", "hosts", "run", "text"]

MBIT = 1000.0

Row = dict[str, Any]


def hosts(kind: str, num: int) -> list[Host]:
    """The first workers of the original."""
    speeds = [
        1 / slowdown for slowdown in published_code.slowdowns(kind, published_code.WORKERS)[:num]
    ]
    network = published_code.network_slowdowns(published_code.WORKERS)
    return [
        Host(f"h{i}", CORES * speed / sum(speeds), round(MBIT / slow))
        for i, (speed, slow) in enumerate(zip(speeds, network, strict=False))
    ]


def run(num: int, kind: str, size: tuple[int, int], turns: int) -> Row:
    """Train on so many hosts, with a model of so many layers and so wide."""
    made = hosts(kind, num)
    layers, width = size
    task = Task(f"{num}, {kind}", tuple(host.share for host in made), layers, width, turns)
    with tempfile.TemporaryDirectory() as folder, emulated(made) as running:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "benchmarks.sky.worker", str(report)]
        cache = {"SKYFX_CACHE": str(Path(folder) / "cache")}
        running.run([*command, json.dumps(asdict(task))], cache)
        row: Row = json.loads(report.read_text())
    return row


def text(rows: Sequence[Row], size: tuple[int, int], turns: int) -> str:
    """The section."""
    layers, width = size
    head = (
        *("hosts", "shares of a core, %", "split", "stages", "predicted, s", "measured, s"),
        *("of even, pipelined", "predicted / measured", "spread, %"),
    )
    lines = [_line(row, name) for row in rows for name in row["rivals"]]
    return (
        f"{when_and_where('benchmarks.sky measured')}\n\n"
        f"BERT with {layers} layers of width {width}, AdamW, its update in the step; 8 "
        f"micro-batches of 2\nsamples of 64 tokens; medians of {turns} steps in turns after one to "
        "warm up, of the original's way\none. Spread: largest less smallest, of the median.\n\n"
        f"{table(head, lines)}"
    )


def _line(row: Row, name: str) -> Sequence[str]:
    rival, even = row["rivals"][name], row["rivals"]["even"]
    steps, predicted = rival["steps_s"], row["predicted_s"][name]
    spread = 100 * (max(steps) - min(steps)) / rival["step_s"]
    return (
        row["cluster"],
        " ".join(f"{100 * share:.0f}" for share in row["shares"]),
        name,
        str(rival["stages"]),
        f"{predicted:.2f}",
        f"{rival['step_s']:.2f}",
        f"{rival['step_s'] / even['step_s']:.2f}",
        f"{predicted / rival['step_s']:.2f}",
        f"{spread:.0f}" if len(steps) > 1 else "",
    )
