"""A problem with other memory: nothing that was worked out for the old one is kept wrongly."""

from functools import cached_property

import numpy as np
import pytest

from skyfx.solver import Assumptions
from skyfx.solver.problem.problem import OneInFlightProblem, Problem
from tests.support.planning_instances import cpus, graph, node


def equal_devices(kind: type[Problem] = Problem) -> Problem:
    """A chain on three devices that memory alone can tell apart, and that limit nothing yet."""
    nodes = [node(f"n{i}", (f"n{i - 1}",) if i else (), saved_bytes=2.0) for i in range(4)]
    return kind(graph(nodes), cpus(1.0, 1.0, 1.0), Assumptions())


def cached_names() -> list[str]:
    return sorted(
        name
        for kind in Problem.__mro__
        for name, value in vars(kind).items()
        if isinstance(value, cached_property) and name != "_wiring"  # a function; `wires` reads it
    )


@pytest.mark.parametrize("kind", [Problem, OneInFlightProblem])
def test_every_cached_value_is_that_of_the_changed_memory(kind: type[Problem]) -> None:
    problem = equal_devices(kind)
    for name in cached_names():
        getattr(problem, name)
    changed = problem.with_memory(1, 5.0)
    assert type(changed) is kind
    assert changed.cluster.devices[1].memory_bytes == 5.0
    anew = kind(problem.graph, changed.cluster, problem.assumptions)
    for name in cached_names():
        np.testing.assert_equal(getattr(changed, name), getattr(anew, name), err_msg=name)
    old = {name: repr(getattr(problem, name)) for name in cached_names()}
    differ = {name for name, value in old.items() if value != repr(getattr(anew, name))}
    assert differ == {"identical_devices", "memory_binds", "memory_limit"}


def test_what_costs_time_is_worked_out_once() -> None:
    problem = equal_devices()
    time_s = problem.time_s
    assert problem.with_memory(0, 1e9).time_s is time_s
