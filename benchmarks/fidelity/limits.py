"""Plans within memory limits, run under them: `python -m benchmarks.fidelity.limits [--write]`.

Each model is planned for four hosts of which none may hold what the best plan without limits takes.
Each worker then trains in a control group that the kernel kills when it takes more than its device
may: as the runtime sets malloc up, and with glibc's own settings. Minutes; needs root, as
`benchmarks.emulated` does, and control groups of version 1.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.emulated import Host, Running, emulated
from benchmarks.fidelity.limited import MEMORY, OTHERS_BYTES, STEPS
from benchmarks.fidelity.models import CASES
from benchmarks.planner.__main__ import when_and_where

RESULT = Path(__file__).parents[2] / "docs" / "limits.md"
HOSTS = [Host(name, 1.0, 1000) for name in "abcd"]
SHARES = (0.9, 0.8, 0.7)
LIMIT_S = 1200

MALLOC: dict[str, Mapping[str, str]] = {"skyfx": {}, "glibc": {"MALLOC_ARENA_MAX": "8"}}
"""What the runtime finds set in the environment, it leaves alone. Eight a core are glibc's own."""

Row = dict[str, Any]

TEXT = f"""# Plans within memory limits

For each model the best plan for four like hosts without limits, then one for hosts that may hold
only so much of its largest peak (`limit`), with a tenth in reserve (`solver/fitting.py`). Each
worker trains {STEPS} steps by it in a control group whose limit is that of the device, less its
parameters, which are there already, plus {OTHERS_BYTES // 2**20} MiB for what is no tensor: the
kernel kills what takes more. `charged` is what the kernel counted at the most, in parts of the
limit. Once with malloc as the runtime sets it up there, once with glibc's own settings. `step` is
the time of a step in parts of the same plan's where devices have no limits, so that malloc keeps
what is freed.

"""


def main() -> None:
    """Run all models at all limits, with both settings of malloc."""
    parser = argparse.ArgumentParser(description="plans within memory limits, run under them")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    parser.add_argument("--only", default="", help="models whose name contains this")
    options = parser.parse_args()
    tasks = [f"{name}@{share}" for name in CASES if options.only in name for share in SHARES]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for malloc, environment in MALLOC.items():
            left = list(tasks)
            while left:
                found = _some(Path(folder), environment, left)
                rows += [{"malloc": malloc, **row} for row in found]
                left = left[len(found) :]
    print(text(rows))
    if options.write:
        RESULT.write_text(text(rows))


def text(rows: Sequence[Row]) -> str:
    """The document."""
    head = (
        "model | limit | MB | stages | gap % | predicted, of limit | charged | step | glibc's own"
    )
    lines = [f"| {head} |", f"| {' | '.join('---' for _ in head.split('|'))} |"]
    ours = [row for row in rows if row["malloc"] == "skyfx"]
    others = {row["task"]: row for row in rows if row["malloc"] != "skyfx"}
    for row in ours:
        name, _, share = row["task"].partition("@")
        cells = [name, share]
        if "stages" in row:
            cells += [f"{row['limit'] / 1e6:.0f}", str(row["stages"]), f"{100 * row['gap']:.1f}"]
            cells += [f"{row['predicted']:.2f}", _end(row), _ratio(row), _end(others[row["task"]])]
        else:
            cells += [f"{row['limit'] / 1e6:.0f}", "none found", "", "", "", "", ""]
        lines.append(f"| {' | '.join(cells)} |")
    run = [row for row in ours if "stages" in row]
    killed = [
        sum("charged" not in row for row in part)
        for part in (run, [others[r["task"]] for r in run])
    ]
    says = (
        f"{len(run)} of {len(ours)} have a plan; {killed[0]} of them were killed, "
        f"{killed[1]} with glibc's own settings.\n"
    )
    return (
        TEXT
        + says
        + "\n"
        + "\n".join(lines)
        + f"\n\n{when_and_where('benchmarks.fidelity.limits')}\n"
    )


def _end(row: Row) -> str:
    return f"{row['charged']:.2f}" if "charged" in row else "killed"


def _ratio(row: Row) -> str:
    return f"{row['limited_s'] / row['free_s']:.2f}" if "limited_s" in row else ""


def _some(folder: Path, environment: Mapping[str, str], tasks: Sequence[str]) -> list[Row]:
    """Run tasks until one is killed or all are done; a row for each of these."""
    report = folder / "report.jsonl"
    report.unlink(missing_ok=True)
    with emulated(HOSTS) as running, _groups(running):
        command = [sys.executable, "-m", "benchmarks.fidelity.limited", str(folder), *tasks]
        workers = running.start(command, {"SKYFX_CACHE": str(folder / "cache"), **environment})
        try:
            killed = _killed(workers)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
    rows = [json.loads(line) for line in report.read_text().splitlines()]
    if not killed and len(rows) < len(tasks):
        raise RuntimeError(f"the workers ended after {rows}")
    return rows


def _killed(workers: Sequence[subprocess.Popen[bytes]]) -> bool:
    """Wait for them to end; whether one was killed."""
    end = time.monotonic() + LIMIT_S
    while all(worker.poll() in (None, 0) for worker in workers) and time.monotonic() < end:
        if all(worker.poll() == 0 for worker in workers):
            return False
        time.sleep(0.5)
    time.sleep(1.0)  # the one that was killed, and those that miss it
    if not any(worker.poll() == -signal.SIGKILL for worker in workers):
        raise RuntimeError(f"workers ended with {[worker.poll() for worker in workers]}")
    return True


@contextmanager
def _groups(running: Running) -> Iterator[None]:
    """A control group for the memory of each host."""
    folders = [MEMORY / f"{running.prefix}{i}" for i in range(len(running.hosts))]
    for folder in folders:
        folder.mkdir()
    try:
        yield
    finally:
        for folder in folders:
            folder.rmdir()


if __name__ == "__main__":
    main()
