"""skyfx against what one would do otherwise, on unlike hosts: `python -m benchmarks.hosts --write`.

Some ninety minutes on a machine with nothing else to do; needs root, Debian's iproute2 and control
groups of version 1, as `benchmarks.common.emulated_hosts` does. What has been run is kept
(`--rows`): after an interruption the same command goes on from there.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.cgroup_memory import groups
from benchmarks.common.documents import keep
from benchmarks.common.emulated_hosts import Host, emulated
from benchmarks.hosts.clusters import CORES, Cluster, clusters
from benchmarks.hosts.table import text

RESULT = Path(__file__).parents[2] / "docs" / "hosts.md"
BY_HAND = "## Why"
"""From here on the document is written by hand."""

Row = dict[str, Any]


def main() -> None:
    """Run the clusters, print the table, and with `--write` keep it in docs/."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hosts", description="skyfx and its rivals on unlike hosts"
    )
    parser.add_argument("--rows", type=Path, default="hosts.jsonl", help="what has been run")
    parser.add_argument("--only", default="", help="clusters that have this in their names")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    options = parser.parse_args()
    failed: list[str] = []
    for size in (4, 8):
        chosen = [x for x in clusters() if len(x.hosts) == size and options.only in x.name]
        while left := [x for x in chosen if x.name not in {*_rows(options.rows), *failed}]:
            try:
                _run(left, options.rows)
            except RuntimeError as error:
                done = _rows(options.rows)  # the first that is missing is the one that failed
                failed += [x.name for x in left if x.name not in done][:1]
                print(f"{error}; failed so far: {failed}", file=sys.stderr)
    rows = _rows(options.rows)
    found = [rows[x.name] for x in clusters() if x.name in rows]
    print(text(found))
    if options.write:
        keep(RESULT, text(found), BY_HAND)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; the same command tries them again")


def _rows(path: Path) -> dict[str, Row]:
    """What has been run, by the clusters' names."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {row["cluster"]: row for row in map(json.loads, lines)}


def _run(chosen: Sequence[Cluster], rows: Path) -> None:
    """Run clusters of one size, one after another, in the same processes."""
    size = len(chosen[0].hosts)
    hosts = [Host(f"h{i}", CORES / size, 1000) for i in range(size)]
    command = [sys.executable, "-m", "benchmarks.hosts.worker", str(rows.absolute())]
    cache = {"SKYFX_CACHE": str(rows.absolute().with_suffix(".cache"))}
    with emulated(hosts) as running, groups(running):
        running.run([*command, *(one.name for one in chosen)], cache)


if __name__ == "__main__":
    main()
