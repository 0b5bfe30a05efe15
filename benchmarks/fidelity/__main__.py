"""What is predicted beside what is measured: `python -m benchmarks.fidelity --write`, half an hour.

Needs root and Debian's iproute2, for unlike hosts on this machine (see
`benchmarks.common.emulated_hosts`).
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.documents import keep
from benchmarks.common.emulated_hosts import Host, emulated
from benchmarks.fidelity.table import text

RESULT = Path(__file__).parents[2] / "docs" / "fidelity.md"
BY_HAND = "## What falls short, and why"
"""From here on the document is written by hand."""

CLUSTERS: dict[str, tuple[Sequence[Host], Sequence[str]]] = {
    "spread 3, 100 Mbit/s": (
        [Host("a", 0.45, 100), Host("b", 0.3, 100), Host("c", 0.2, 100), Host("d", 0.25, 100)],
        ("bert", "gpt2", "unet", "resnet"),
    ),
    "spread 5, 20 to 500 Mbit/s": (
        [Host("a", 0.5, 50), Host("b", 0.3, 200), Host("c", 0.1, 500), Host("d", 0.2, 20)],
        ("bert", "gpt2"),
    ),
    "even, 1000 Mbit/s": (
        [Host("a", 0.3, 1000), Host("b", 0.3, 1000), Host("c", 0.3, 1000), Host("d", 0.3, 1000)],
        ("bert", "gpt2", "unet", "resnet"),
    ),
}


def main() -> None:
    """Run the clusters, print the table, and with `--write` keep it in docs/."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fidelity", description=__doc__)
    parser.add_argument(
        "--keep", type=Path, default="fidelity", help="folder for all figures, graphs and plans"
    )
    parser.add_argument("--model", default="", help="the one model that is run on them")
    parser.add_argument("--only", default="", help="clusters that have this in their names")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}, of all kept")
    arguments = parser.parse_args()
    kept = arguments.keep / "rows.json"
    rows: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else []
    for name, (hosts, models) in CLUSTERS.items():
        if arguments.only in name:
            chosen = [model for model in models if arguments.model in model]
            found = _run(hosts, chosen, arguments.keep / name.replace("/", " per "))
            rows = [row for row in rows if row["cluster"] != name]
            rows += [{"cluster": name, **row} for row in found]
            kept.write_text(json.dumps(rows, indent=1))
    print(text(rows))
    if arguments.write:
        keep(RESULT, text(rows), BY_HAND)


def _run(hosts: Sequence[Host], models: Sequence[str], keep: Path) -> list[dict[str, Any]]:
    """All models on one cluster: what its first worker reports."""
    with tempfile.TemporaryDirectory() as folder, emulated(hosts) as running:
        report = Path(folder) / "report.jsonl"
        command = [
            sys.executable,
            "-m",
            "benchmarks.fidelity.worker",
            ",".join(models),
            str(report),
        ]
        running.run(command, {"SKYFX_CACHE": f"{folder}/cache"})
        shutil.copytree(folder, keep, dirs_exist_ok=True)
        return [json.loads(line) for line in report.read_text().splitlines()]


if __name__ == "__main__":
    main()
