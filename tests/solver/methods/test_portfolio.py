"""The table of methods: which of them applies, and what it costs to ask."""

import math
import time
from typing import Any

import pytest

from benchmarks.planner.instances import unlike_chain
from skyfx.solver import Assumptions
from skyfx.solver.methods.features import ProblemFeatures
from skyfx.solver.methods.heuristics.baselines import even
from skyfx.solver.methods.ideals.bitset_ideals import BitIdeals
from skyfx.solver.methods.limits import Limits
from skyfx.solver.methods.method import Candidate
from skyfx.solver.methods.portfolio import METHODS, Portfolio
from skyfx.solver.problem.problem import Problem
from tests.support.method_runs import updates
from tests.support.planning_instances import cpus, graph, node


def diamonds(count: int = 3) -> Problem:
    """A chain of diamonds on two unlike devices; of each diamond, the two sides are unordered."""
    nodes = [node("n0")]
    for k in range(0, 3 * count, 3):
        nodes += [node(f"n{k + side}", (f"n{k}",)) for side in (1, 2)]
        nodes.append(node(f"n{k + 3}", (f"n{k + 1}", f"n{k + 2}")))
    return Problem(graph(nodes), cpus(1.0, 1.7), Assumptions(mode="inference"))


def test_all_ideals_are_enumerated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    enumerate_ideals = BitIdeals.levels

    def levels(self: BitIdeals, at_most: int, limits: Limits) -> Any:
        asked.append(at_most)
        return enumerate_ideals(self, at_most, limits)

    monkeypatch.setattr(BitIdeals, "levels", levels)
    features = ProblemFeatures(diamonds())
    number = 2 + 4 * 3  # the empty ideal, the first unit's, and four that each diamond adds
    assert features.levels(number - 1, Limits()) is None
    assert features.levels(number - 2, Limits()) is None
    assert asked == [number - 1]
    listed = features.levels(number, Limits())
    assert listed is not None
    assert sum(len(ideals) for ideals, _ in listed) == number
    assert features.levels(number + 5, Limits()) is listed
    assert features.levels(number - 1, Limits()) is None
    assert features.lists_all_ideals(Limits())
    assert asked == [number - 1, number]


def test_a_method_that_does_not_apply_says_the_first_reason() -> None:
    g, c = unlike_chain(0, layers=2, num_devices=4)
    reasons = {
        name: [update.remark for update in updates(name, Problem(g, c, assumptions))]
        for name, assumptions in (
            ("host pair dp", Assumptions()),
            ("memory dual bound", Assumptions()),
            ("local search", Assumptions(objective="latency")),
            ("level dp", Assumptions()),
            ("block-phase milp", Assumptions()),
            ("step label dp", Assumptions()),
        )
    }
    assert reasons == {
        "host pair dp": ["only in host"],
        "memory dual bound": ["only for latency"],
        "local search": ["only for throughput"],
        "level dp": ["only from a known plan"],
        "block-phase milp": ["only where memory does not bind"],
        "step label dp": [""],
    }


@pytest.mark.slow
def test_a_search_for_throughput_says_nothing_of_the_methods_for_steps() -> None:
    problem = diamonds()
    limits = Limits(began=time.monotonic(), time_limit_s=60.0)
    result = Portfolio(problem, limits, Candidate.of(problem, even(problem))).run()
    silent = {"slices", "interval step dp", "step label dp", "throughput"}
    named = {remark.partition(":")[0] for remark in result.remarks}
    assert named <= {entry.name for entry in METHODS} - silent | {"compiling"}
    assert result.incumbent.value == pytest.approx(result.bound.value)


def test_the_names_of_the_methods_differ() -> None:
    names = [entry.name for entry in METHODS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("part", [0.3, 1.0])
def test_a_part_of_endless_time_is_endless(part: float) -> None:
    assert math.isinf(Limits(time_limit_s=math.inf).share(part).left_s)


def test_a_part_of_the_time_is_one_of_the_time_that_is_left() -> None:
    limits = Limits(began=time.monotonic() - 60.0, time_limit_s=100.0)
    assert limits.share(0.5).left_s == pytest.approx(20.0, abs=1.0)
