"""`docs/coverage.md`: what came out, in tables."""

from collections import Counter
from typing import Any

from benchmarks.common.documents import table, when_and_where
from benchmarks.coverage.check_model import KINDS

__all__: list[str] = ["written"]

Row = dict[str, Any]


def written(rows: list[Row]) -> str:
    """The whole document."""
    run = [row for row in rows if row["runs_eagerly"]]
    whole = [row for row in run if row["kind"] == "right" and row["whole"]]
    parts = [
        f"# What can be captured\n\n{_preface(run)}",
        _by(run, lambda row: row["family"]),
        "## Packages other than transformers and timm\n",
        _by([row for row in run if row["family"] == "others"], _package),
        "## Not right\n",
        table(
            ("model", "nodes", "what", "why"),
            (
                (_name(row), str(row.get("num_nodes", "")), row["kind"], _escaped(row["reason"]))
                for row in run
                if row["kind"] != "right"
            ),
        ),
        "## Submodules that stay whole\n",
        table(("model", "nodes", "whole", "their part of the parameters"), map(_whole, whole)),
    ]
    return "\n".join(part for part in parts if part)


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


PREFACE = """\
Tiny, randomly initialised models, one process each: partitioned into three stages as a user would,
`check="full"`, and held against plain torch, micro-batch by micro-batch: two batches in inference,
two steps of training with an optimizer between them, the second with another batch than the
example.

- *Right*: outputs equal in every bit (fp32, CPU; within 1e-5 after the optimizer's step), gradients
  within 1e-6 by their norm, the same buffers and attributes of modules. *Rounding*: within 1e-4.
- *Refused*: by `partition`, in at most three lines. *Wrong*: anything else that differs.
- *Ugly*: a raw or long error, an error after `partition`, a crash, or no end.
- *One micro-batch*: samples mix, and the refusal says to take one. Batches of transformers are one.
- *Prints*: what plain torch does not. *Other draws*: random numbers are drawn otherwise; values are
  not compared then.
"""


def _preface(rows: list[Row]) -> str:
    commits = Counter(str(row.get("commit")) for row in rows)
    told = ", ".join(f"{number} at {name}" for name, number in commits.items())
    more = f"Models by commit: {told}.\n" if len(commits) > 1 else ""
    return f"{when_and_where('benchmarks.coverage')}\n{PREFACE}{more}"
