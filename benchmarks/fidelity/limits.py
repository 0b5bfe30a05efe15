"""Plans within memory limits, run under them: `python -m benchmarks.fidelity.limits [--write]`.

Each model is planned for four hosts of which none may hold what the best plan without limits takes.
Each worker then trains in a control group in which the kernel counts what it takes: with more than
its device has, it would have been killed. As the runtime sets malloc up, and with glibc's own
settings. Minutes; needs root, as `benchmarks.common.emulated_hosts` does, and control groups of
version 1.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.cgroup_memory import OTHERS_BYTES, groups
from benchmarks.common.documents import when_and_where
from benchmarks.common.emulated_hosts import Host, emulated
from benchmarks.fidelity.memory_limited_worker import STEPS
from benchmarks.fidelity.models import CASES

MODULE = "benchmarks.fidelity.limits"
RESULT = Path(__file__).parents[2] / "docs" / "limits.md"
HOSTS = [Host(name, 1.0, 1000) for name in "abcd"]
SHARES = (0.9, 0.8, 0.7)

MALLOC: dict[str, Mapping[str, str]] = {"skyfx": {}, "glibc": {"MALLOC_ARENA_MAX": "8"}}
"""What the runtime finds set in the environment, it leaves alone. Eight a core are glibc's own."""

Row = dict[str, Any]

TEXT = f"""# Plans within memory limits

For each model the best plan for four like hosts without limits, then one for hosts that may hold
only so much of its largest peak (`limit`), with a tenth in reserve
(`solver/refinement/cut_search.py`). Each worker trains {STEPS} steps by it in a control group.
`charged` is what the kernel counted for it at the most, with its parameters, which were there
before, and without {OTHERS_BYTES // 2**20} MiB for what is no tensor, in parts of the device's
memory, on the host that came nearest to it: above 1 it would have been killed. Once with malloc as
the runtime sets it up, once with glibc's own settings. `step` is the time of a step in parts of the
same plan's where devices have no limits; `planned` is the plan's bottleneck in parts of that of the
best plan without limits, and `recomputed` the part of computing that runs again in backward.

How limits are kept (`runtime/memory/call_memory.py`): malloc keeps what is freed. Each action of a
stage ends with a look at the kernel's count. Near the limit the heap's free pages go back; where
holes take it above the limit twice, blocks of 256 KiB and more are mapped by the kernel from then
on, and cleared each time. What is in use above the limit is a `StageError`.

"""


def main() -> None:
    """Run all models at all limits, with both settings of malloc."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fidelity.limits",
        description="plans within memory limits, run under them",
    )
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    parser.add_argument("--only", default="", help="models whose name contains this")
    options = parser.parse_args()
    tasks = [f"{name}@{share}" for name in CASES if options.only in name for share in SHARES]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for malloc, environment in MALLOC.items():
            rows += [{"malloc": malloc, **row} for row in _run(Path(folder), environment, tasks)]
    print(text(rows))
    if options.write:
        RESULT.write_text(text(rows))


def text(rows: Sequence[Row]) -> str:
    """The document."""
    head = (
        "model | limit | MB | stages | gap % | planned | recomputed % | predicted, of limit | "
        "charged | step | glibc's own"
    )
    lines = [f"| {head} |", f"| {' | '.join('---' for _ in head.split('|'))} |"]
    ours, others = ([row for row in rows if row["malloc"] == malloc] for malloc in MALLOC)
    for row, other in zip(ours, others, strict=True):
        name, _, share = row["task"].partition("@")
        cells = [name, share, f"{row['limit'] / 1e6:.0f}"]
        if "stages" in row:
            cells += [str(row["stages"]), f"{100 * row['gap']:.1f}", f"{row['slower']:.2f}"]
            cells += [f"{100 * row['recomputed']:.1f}", f"{row['predicted']:.2f}"]
            cells += [f"{row['charged']:.2f}", f"{row['limited_s'] / row['free_s']:.2f}"]
        else:
            cells += ["none found", *[""] * 6]
        cells += [f"{other['charged']:.2f}" if "charged" in other else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return TEXT + _says(ours, others) + "\n".join(lines) + f"\n\n{when_and_where(MODULE)}\n"


def _says(ours: Sequence[Row], others: Sequence[Row]) -> str:
    run, killed = [], []
    for rows in (ours, others):
        charged = [row["charged"] for row in rows if "charged" in row]
        run.append(len(charged))
        killed.append(sum(one > 1 for one in charged))
    return (
        f"{run[0]} of {len(ours)} have a plan; {killed[0]} of them would have been killed; with "
        f"glibc's own settings {killed[1]} of {run[1]}.\n\n"
    )


def _run(folder: Path, environment: Mapping[str, str], tasks: Sequence[str]) -> list[Row]:
    """Run the tasks; a row for each."""
    with emulated(HOSTS) as running, groups(running):
        command = [
            sys.executable,
            "-m",
            "benchmarks.fidelity.memory_limited_worker",
            str(folder),
            *tasks,
        ]
        running.run(command, {"SKYFX_CACHE": str(folder / "cache"), **environment})
    return [json.loads(line) for line in (folder / "report.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    main()
