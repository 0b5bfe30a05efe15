"""What was to be reached, what was, and on which clusters it was not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.hosts import metrics
from benchmarks.hosts.metrics import Row

__all__: list[str] = ["TARGETS", "Target", "spread_8"]

NOISE = 1.02
LOSS = 1e-5

WIDEST = 8


@dataclass(frozen=True, slots=True)
class Target:
    """What was to be reached.

    Attributes:
        name: against what.
        reach: how far, in words.
        figure: of a cluster.
        reached: whether such a figure will do.
        says: a figure in words.
        over_all: what counts of all figures: the mean, or the worst of them.
        counts: whether a cluster is meant.
    """

    name: str
    reach: str
    figure: Callable[[Row], float]
    reached: Callable[[float], bool]
    says: Callable[[float], str]
    over_all: Callable[[Sequence[float]], float]
    counts: Callable[[Row], bool] = lambda row: True

    def found(self, rows: Sequence[Row]) -> tuple[str, str]:
        """What came out over all clusters that are meant, and whether that will do."""
        values = [self.figure(row) for row in rows if self.counts(row)]
        if not values:
            return "not run", ""
        value = self.over_all(values)
        return self.says(value), "yes" if self.reached(value) else "no"

    def short(self, rows: Sequence[Row]) -> list[str]:
        """The clusters whose own figure would not do, with it."""
        return [
            f"{row['cluster']}: {self.says(self.figure(row))}"
            for row in rows
            if self.counts(row) and not self.reached(self.figure(row))
        ]


def spread_8(row: Row) -> bool:
    """Whether the cluster's speeds lie as far apart as any do."""
    return bool(row["spread"] == WIDEST)


def _against(name: str) -> Callable[[Row], float]:
    return lambda row: metrics.times(row, name)


def _less(times: float) -> str:
    return f"{100 * (1 - 1 / times):.0f} % less"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}"


TARGETS = (
    Target(
        "even split, beside what the bound allows",
        "within 5 points of that saving on each cluster",
        metrics.points,
        lambda points: points <= 5,
        lambda points: f"{points:.1f} points",
        max,
    ),
    Target(
        "even split, spread 8",
        "60 % less in the geometric mean",
        _against("even"),
        lambda times: times >= 1 / (1 - 0.6),
        _less,
        metrics.mean,
        spread_8,
    ),
    Target(
        "even split",
        "never slower",
        _against("even"),
        lambda times: times >= 1,
        _times,
        min,
    ),
    Target(
        "best of torch.distributed.pipelining",
        "25 % less in the geometric mean",
        metrics.best_by_hand,
        lambda times: times >= 1 / (1 - 0.25),
        _less,
        metrics.mean,
    ),
    Target(
        "the original's way",
        "8 times faster in the geometric mean",
        _against("original"),
        lambda times: times >= 8,
        _times,
        metrics.mean,
    ),
    Target(
        "best single device",
        "never slower but for 2 % noise, where it can hold the model",
        _against("one device"),
        lambda times: times * NOISE >= 1,
        _times,
        min,
        lambda row: metrics.memory(row, "one device") <= 1,
    ),
    Target(
        "best single device, as if it had the memory",
        "the same, on each cluster",
        _against("one device"),
        lambda times: times * NOISE >= 1,
        _times,
        min,
    ),
    Target(
        "certified bound",
        "the measured step within 5 % of it on each cluster",
        metrics.over_bound,
        lambda ratio: ratio <= 1.05,
        _times,
        max,
    ),
    Target(
        "certified bound, at the pace of one device",
        "the same, were the machine as fast as when the model was measured",
        lambda row: metrics.over_bound(row) / metrics.pace(row),
        lambda ratio: ratio <= 1.05,
        _times,
        max,
    ),
    Target(
        "losses",
        f"the unsplit model's within {LOSS:.0e}",
        metrics.loss_differs,
        lambda difference: difference <= LOSS,
        lambda difference: f"{difference:.0e}",
        max,
    ),
    Target(
        "memory limits",
        "skyfx within them on each cluster",
        metrics.memory,
        lambda share: share <= 1,
        lambda share: f"{share:.2f} of the limit",
        max,
        lambda row: row["limits"] is not None,
    ),
)
