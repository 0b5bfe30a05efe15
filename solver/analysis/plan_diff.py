"""The difference of two plans: their assumptions, their figures, the nodes that moved."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields

from skyfx.solver.core.plan import Plan, Stage
from skyfx.solver.core.units import percent, seconds


@dataclass(frozen=True, slots=True)
class Difference:
    """Plan `b` against plan `a`.

    `moved` are nodes on different devices; `only_a` and `only_b` are nodes of one plan alone.
    """

    a: Plan
    b: Plan
    moved: dict[str, tuple[str, str]]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]

    @classmethod
    def of(cls, a: Plan, b: Plan) -> "Difference":
        """Compare two plans."""
        before, after = _device_of(a), _device_of(b)
        common = {name: (before[name], after[name]) for name in before if name in after}
        moved = {name: move for name, move in common.items() if move[0] != move[1]}
        only_a = tuple(name for name in before if name not in common)
        return cls(a, b, moved, only_a, tuple(name for name in after if name not in common))

    @property
    def differ(self) -> bool:
        """Whether the plans run differently or have other assumptions."""
        order = [
            [
                (stage.device, stage.live, frozenset(stage.nodes), stage.recompute)
                for stage in plan.stages
            ]
            for plan in (self.a, self.b)
        ]
        return bool(
            self.moved or self.only_a or self.only_b or order[0] != order[1] or [*self._asked()]
        )

    def lines(self) -> Iterator[str]:
        """Lines of text: the assumptions, the figures, then the moved nodes."""
        yield from self._asked()
        for field in ("bottleneck_s", "step_s", "lower_bound"):
            yield self._figure(field)
        yield f"gap: {percent(self.a.gap)} -> {percent(self.b.gap)}"
        for name, plan in (("a", self.a), ("b", self.b)):
            yield f"{name}: " + " -> ".join(map(_described, plan.stages))
        for (source, target), count in Counter(self.moved.values()).most_common():
            first = next(name for name, move in self.moved.items() if move == (source, target))
            yield f"moved from {source} to {target}: {_counted(count, first)}"
        for name, only in (("a", self.only_a), ("b", self.only_b)):
            if only:
                yield f"only in {name}: {_counted(len(only), only[0])}"

    def as_json(self) -> dict[str, object]:
        """The same as a JSON object."""
        figures = ("bottleneck_s", "step_s", "objective_value", "lower_bound", "gap")
        return {
            "differ": self.differ,
            "moved": self.moved,
            "only_a": self.only_a,
            "only_b": self.only_b,
            **{field: [getattr(self.a, field), getattr(self.b, field)] for field in figures},
        }

    def _asked(self) -> Iterator[str]:
        for field in fields(self.a.assumptions):
            one = getattr(self.a.assumptions, field.name)
            two = getattr(self.b.assumptions, field.name)
            if one != two:
                yield f"{field.name}: {one} -> {two}"

    def _figure(self, field: str) -> str:
        one, two = getattr(self.a, field), getattr(self.b, field)
        change = f" ({two / one - 1:+.2%})" if one > 0 else ""
        return f"{field}: {seconds(one)} -> {seconds(two)}{change}"


def _device_of(plan: Plan) -> dict[str, str]:
    return {name: stage.device for stage in plan.stages for name in stage.nodes}


def _described(stage: Stage) -> str:
    live = f", {stage.live} in flight" if stage.live else ""
    again = sum(map(len, stage.recompute))
    recomputed = f", {again} recomputed" if again else ""
    return f"{stage.device} ({len(stage.nodes)}{live}{recomputed})"


def _counted(count: int, first: str) -> str:
    return f"{first!r}" if count == 1 else f"{count} nodes, {first!r} first"
