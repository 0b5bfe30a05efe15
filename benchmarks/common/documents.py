"""What the benchmarks' documents have in common."""

import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[2]

__all__: list[str] = ["commit", "keep", "put", "table", "when_and_where"]


def commit() -> str:
    """The commit that is checked out."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def when_and_where(module: str) -> str:
    """The command, date, commit and machine of a benchmark."""
    return (
        f"`python -m {module} --write`, {datetime.now(UTC):%Y-%m-%d}, commit {commit()}, "
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}."
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def keep(path: Path, computed: str, by_hand: str) -> None:
    """Write a document whose last part, from the heading `by_hand` on, is written by hand."""
    earlier = path.read_text() if path.exists() else ""
    _, _, last = earlier.partition(by_hand)
    path.write_text(f"{computed}\n{by_hand}{last or chr(10)}")


def put(path: Path, heading: str, computed: str) -> None:
    """Write one section of a document: all from this heading to the next as large."""
    before, _, after = path.read_text().partition(f"{heading}\n")
    _, large, rest = after.partition("\n## ")
    path.write_text(f"{before}{heading}\n\n{computed.strip()}\n{large}{rest}")
