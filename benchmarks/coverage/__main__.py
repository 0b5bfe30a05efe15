"""What can be partitioned: `python -m benchmarks.coverage [--family F] [--only TEXT] [--write]`.

Each model is checked by a process of its own with a time limit
(`benchmarks.coverage.check_model`).
"""

import argparse
import json
import multiprocessing
import re
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common.documents import commit
from benchmarks.coverage import tiny_models
from benchmarks.coverage.check_model import report
from benchmarks.coverage.document import put_all, sections

RESULT = Path(__file__).parents[2] / "docs" / "coverage.md"
TIME_LIMIT_S = 180
"""Of a processor's time; three times as much may pass by the clock, on a machine that is shared."""

FAMILIES = ("transformers", "timm", "others")

Row = dict[str, Any]

_processes = multiprocessing.get_context("forkserver")

SHARED = ["benchmarks.coverage.check_model"]
"""Imported once, torch with it."""


def checked(family: str, name: str) -> Row:
    """The result of one model's process."""
    ours, theirs = _processes.Pipe(duplex=False)
    process = _processes.Process(target=report, args=(family, name, theirs))
    process.start()
    theirs.close()
    began = time.monotonic()
    try:
        while not ours.poll(1):
            if max((time.monotonic() - began) / 3, _seconds(process)) > TIME_LIMIT_S:
                reason = f"not done after {TIME_LIMIT_S} s"
                break
        else:
            return dict(ours.recv())
    except EOFError:
        process.join()
        reason = f"its process has ended with {process.exitcode}"
    finally:
        process.kill()
        process.join()
    return {
        "family": family,
        "name": name,
        "runs_eagerly": True,
        "kind": "ugly",
        "reason": reason,
        "whole": [],
    }


def _seconds(process: BaseProcess) -> float:
    """A processor's time that it has taken."""
    try:
        return sum(psutil.Process(process.pid).cpu_times()[:2])
    except psutil.Error:
        return 0.0


def swept(pairs: Iterable[tuple[str, str]], jobs: int) -> Iterator[Row]:
    """The results of these models, of family and name, as they come."""
    with ThreadPoolExecutor(jobs) as executor:
        yield from executor.map(lambda pair: checked(*pair), pairs)


def main() -> None:
    """Check, print, and with `--write` keep the tables in the documentation."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--family", choices=FAMILIES, help="one family alone")
    parser.add_argument("--only", default="", help="models whose name matches this pattern")
    parser.add_argument("--every", type=int, default=1, help="one of so many models")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--rows", type=Path, help="file of results: go on where it ends")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    parser.add_argument("--share", default="", help="modules that are imported once, by commas")
    options = parser.parse_args()
    _processes.set_forkserver_preload(SHARED + [x for x in options.share.split(",") if x])
    kept = options.rows.read_text().splitlines() if options.rows and options.rows.exists() else []
    rows: list[Row] = [json.loads(line) for line in kept]
    known = {(row["family"], row["name"]) for row in rows}
    families = [options.family] if options.family else FAMILIES
    pairs = [
        (family, name)
        for family in families
        for name in tiny_models.names(family)[:: options.every]
        if re.search(options.only, name) and (family, name) not in known
    ]
    for row in swept(pairs, options.jobs):
        row["commit"] = commit()
        rows.append(row)
        line = json.dumps(row)
        print(line, flush=True)
        if options.rows:
            with options.rows.open("a") as file:
                file.write(f"{line}\n")
    order = {family: i for i, family in enumerate(FAMILIES)}
    rows.sort(key=lambda row: (order[row["family"]], row["name"]))
    print(*sections(rows).values(), sep="\n")
    if options.write:
        put_all(RESULT, rows)


if __name__ == "__main__":
    main()
