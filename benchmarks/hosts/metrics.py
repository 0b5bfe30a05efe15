"""The figures of the comparison, from what was measured on a cluster."""

import math
from collections.abc import Iterable
from typing import Any

__all__: list[str] = [
    *("Row", "best_by_hand", "by_hand", "loss_differs", "mean", "named_best_by_hand"),
    *("memory", "over_bound", "pace", "points", "step_s", "times"),
]

Row = dict[str, Any]
"""As `benchmarks.hosts.worker` writes it."""


def step_s(row: Row, name: str) -> float:
    """Seconds of a rival's step."""
    return float(row["rivals"][name]["step_s"])


def times(row: Row, name: str) -> float:
    """How many times longer than skyfx's."""
    return step_s(row, name) / step_s(row, "skyfx")


def by_hand(row: Row, rule: str, schedule: str) -> str:
    """The rival that this rule's cut is; several rules may make the same one."""
    names: list[str] = list(row["cuts"])
    return next(
        name
        for name in names
        for rules, _, ran in [name.removesuffix(")").partition(" (")]
        if ran == schedule and rule in rules.split(", ")
    )


def best_by_hand(row: Row) -> float:
    """Of those that stayed in to the end."""
    return times(row, named_best_by_hand(row))


def named_best_by_hand(row: Row) -> str:
    """The name of the best of those."""
    names: list[str] = [name for name in row["cuts"] if row["rivals"][name]["steps_s"]]
    return min(names, key=lambda name: step_s(row, name))


def memory(row: Row, name: str = "skyfx") -> float:
    """What was charged on the fullest worker, in parts of its limit; 0 where that is not known."""
    charged, limits = row["rivals"][name]["charged"], row["limits"] or []
    return max((x / limit for x, limit in zip(charged, limits, strict=False)), default=0.0)


def over_bound(row: Row) -> float:
    """The measured step over what is proven that none is below."""
    return step_s(row, "skyfx") / float(row["plan"]["bound_s"])


def pace(row: Row) -> float:
    """One device's measured step over its predicted one: how much slower all was than measured."""
    return step_s(row, "one device") / float(row["one_device_s"])


def points(row: Row) -> float:
    """How many hundredths of the even split's step the bound would save beside what skyfx does."""
    return 100 * (step_s(row, "skyfx") - float(row["plan"]["bound_s"])) / step_s(row, "even")


def loss_differs(row: Row) -> float:
    """The largest relative difference of any rival's loss to the unsplit model's."""
    true = row["rivals"]["one device"]["losses"]
    differences = [
        abs(loss / expected - 1)
        for rival in row["rivals"].values()
        for loss, expected in zip(rival["losses"], true, strict=False)
    ]
    return max(differences) if all(map(math.isfinite, differences)) else math.inf


def mean(ratios: Iterable[float]) -> float:
    """The geometric one."""
    logs = [math.log(ratio) for ratio in ratios]
    return math.exp(sum(logs) / len(logs))
