"""`docs/coverage.md`: what came out, in tables."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common.documents import put, table, when_and_where
from benchmarks.coverage.check_model import KINDS
from benchmarks.coverage.others import MODELS

__all__: list[str] = ["put_all", "sections"]

Row = dict[str, Any]


def put_all(path: Path, rows: list[Row]) -> None:
    """Write the sections that there are results for."""
    for heading, text in sections(rows).items():
        put(path, heading, text)


def sections(rows: list[Row]) -> dict[str, str]:
    """The text under each heading."""
    run = [row for row in rows if row["runs_eagerly"]]
    others = [row for row in run if row["family"] == "others" and row["name"] in MODELS]
    known = [row for row in run if row["family"] != "others"]
    texts = {
        "## transformers and timm": _section(known, lambda row: row["family"]),
        "## Other packages": _section(others, _package, f"{len(others)} of {len(MODELS)} models."),
    }
    return {heading: text for heading, text in texts.items() if text}


def _section(run: list[Row], group: Callable[[Row], Any], how_many: str = "") -> str:
    if not run:
        return ""
    whole = [row for row in run if row["kind"] == "right" and row["whole"]]
    parts = [
        _origin(run, how_many),
        _by(run, group),
        "### Not right\n",
        table(
            ("model", "nodes", "what", "why"),
            (
                (_name(row), str(row.get("num_nodes", "")), row["kind"], _escaped(row["reason"]))
                for row in run
                if row["kind"] != "right"
            ),
        ),
        "### Submodules that stay whole\n",
        table(("model", "nodes", "whole", "their part of the parameters"), map(_whole, whole)),
    ]
    return "\n".join(parts)


def _by(rows: list[Row], group: Any) -> str:
    """How many of each kind, by group, and all together."""
    groups = dict.fromkeys(map(group, rows))
    lines = [_counts(name, [row for row in rows if group(row) == name]) for name in groups]
    if len(lines) > 1:
        lines.append(_counts("all", rows))
    head = ("", "run eagerly", "right", "share", "all of it as operators", *KINDS[1:])
    more = ("one micro-batch", "prints", "other draws", "do not train eagerly")
    return table((*head, *more), lines)


def _counts(name: str, rows: list[Row]) -> list[str]:
    kinds = Counter(row["kind"] for row in rows)
    right = [row for row in rows if row["kind"] == "right"]
    others = [row for row in rows if row["family"] != "transformers"]
    return [
        name,
        str(len(rows)),
        str(len(right)),
        f"{100 * len(right) / max(1, len(rows)):.1f} %",
        str(sum(not row["whole"] for row in right)),
        *(str(kinds[kind]) for kind in KINDS[1:]),
        str(sum(row.get("num_microbatches") == 1 for row in others)),
        str(sum(bool(row.get("printed")) for row in rows)),
        str(sum(bool(row.get("random")) for row in rows)),
        str(sum(bool(row.get("untrained")) for row in rows)),
    ]


def _package(row: Row) -> str:
    return str(row["name"]).partition(" ")[0]


def _name(row: Row) -> str:
    return str(row["name"]) if row["family"] == "others" else f"{row['family']} {row['name']}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _whole(row: Row) -> list[str]:
    first, *others = row["whole"]
    more = f" and {len(others)} more" if others else ""
    return [_name(row), str(row["num_nodes"]), f"`{first}`{more}", f"{100 * row['in_whole']:.0f} %"]


def _origin(rows: list[Row], how_many: str) -> str:
    commits = Counter(str(row.get("commit")) for row in rows)
    told = ", ".join(f"{number} at {name}" for name, number in commits.items())
    by_commit = f" By commit: {told}." if len(commits) > 1 else ""
    return f"{when_and_where('benchmarks.coverage')}\n{how_many}{by_commit}\n"
