"""What can be captured: `python -m benchmarks.coverage [--family F] [--only TEXT] [--write]`.

Each model is checked by a process of its own with a time limit
(`benchmarks.coverage.check_model`).
"""

import argparse
import json
import multiprocessing
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.common.documents import when_and_where
from benchmarks.coverage import tiny_models
from benchmarks.coverage.check_model import report

RESULT = Path(__file__).parents[2] / "docs" / "coverage.md"
TIME_LIMIT_S = 180
FAMILIES = ("transformers", "timm")

Row = dict[str, Any]

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["benchmarks.coverage.check_model"])  # torch is imported once


def checked(family: str, name: str) -> Row:
    """The result of one model's process."""
    ours, theirs = _processes.Pipe(duplex=False)
    process = _processes.Process(target=report, args=(family, name, theirs))
    process.start()
    theirs.close()
    try:
        if ours.poll(TIME_LIMIT_S):
            return dict(ours.recv())
        reason = f"not done after {TIME_LIMIT_S} s"
    except EOFError:
        process.join()
        reason = f"its process has ended with {process.exitcode}"
    finally:
        process.kill()
        process.join()
    return {"family": family, "name": name, "runs_eagerly": True, "reason": reason, "whole": []}


def swept(families: Iterable[str], only: str) -> Iterator[Row]:
    """The results of all models, as they come."""
    names = [
        (f, n) for f in families for n in getattr(tiny_models, f"{f}_names")() if re.search(only, n)
    ]
    with ThreadPoolExecutor(2) as executor:
        yield from executor.map(lambda pair: checked(*pair), names)


def table(rows: list[Row]) -> str:
    """The whole result in Markdown."""
    parts = [
        "| | run eagerly | right | share | all of it as operators | do not train eagerly |\n"
        "| --- | --- | --- | --- | --- | --- |"
    ]
    for family in dict.fromkeys(row["family"] for row in rows):
        run = [r for r in rows if r["family"] == family and r["runs_eagerly"]]
        right = [r for r in run if not r["reason"]]
        fine = sum(not r["whole"] for r in right)
        untrained = sum(bool(r.get("untrained")) for r in run)
        share = f"{100 * len(right) / max(1, len(run)):.1f} %"
        parts.append(f"| {family} | {len(run)} | {len(right)} | {share} | {fine} | {untrained} |")
    parts += ["\n## Not right\n", "| model | nodes | why |\n| --- | --- | --- |"]
    for row in rows:
        if row["runs_eagerly"] and row["reason"]:
            reason = row["reason"].replace("|", "\\|")
            parts.append(
                f"| {row['family']} {row['name']} | {row.get('num_nodes', '')} | {reason} |"
            )
    parts += [
        "\n## Submodules that stay whole\n",
        "| model | nodes | whole | their part of the parameters |\n| --- | --- | --- | --- |",
    ]
    for row in rows:
        if row["runs_eagerly"] and not row["reason"] and row["whole"]:
            first, *others = row["whole"]
            more = f" and {len(others)} more" if others else ""
            part = f"{100 * row['in_whole']:.0f} %"
            name = f"{row['family']} {row['name']}"
            parts.append(f"| {name} | {row['num_nodes']} | `{first}`{more} | {part} |")
    return "\n".join(parts) + "\n"


def main() -> None:
    """Check, print, and with `--write` keep the tables in the documentation."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--family", choices=FAMILIES, help="one family alone")
    parser.add_argument("--only", default="", help="models whose name matches this pattern")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    options = parser.parse_args()
    rows = []
    for row in swept([options.family] if options.family else FAMILIES, options.only):
        rows.append(row)
        print(json.dumps(row), flush=True)
    print(table(rows))
    if options.write:
        RESULT.write_text(f"# What can be captured\n\n{_preface()}\n{table(rows)}")


def _preface() -> str:
    return (
        f"{when_and_where('benchmarks.coverage')} Tiny, randomly initialised models, one process\n"
        "each: captured, split into three stages at operators, run, and compared with the unsplit\n"
        "model. Right means: outputs equal in every bit (fp32, CPU), gradients and buffers within\n"
        "1e-6 by their norm. Models that draw random numbers are compared as one graph.\n"
    )


if __name__ == "__main__":
    main()
