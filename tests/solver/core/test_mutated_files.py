"""A file with one change is refused in one line that says where, or accepted rightly."""

import json
import re
from functools import cache
from random import Random

import pytest

from skyfx.solver import Assumptions, Cluster, Graph, Plan, solve, validate
from skyfx.solver.core.files import decode, encode
from skyfx.solver.errors import FormatError, InfeasibleError, NoPlanError
from tests.support.file_mutations import mutated
from tests.support.independent_validator import referee_faults
from tests.support.planning_instances import cluster, graph, node
from tests.support.tiers import num_cases

from skyfx.solver import Device, Link  # isort: skip

FIELDS = re.compile(
    r"\b(format|name|microbatch_size|nodes|outputs|devices|links|default_link|graph|cluster|"
    r"assumptions|stages|bottleneck_s|step_s|objective_value|lower_bound|gap|solver|alternatives|"
    r"simulated_s)\b"
)


@cache
def good() -> tuple[Graph, Cluster, Plan]:
    nodes = [
        node("x", op="input", forward_s={}),
        node("a", ("x",), backward_s={"cpu": 2.0}, gradient_bytes=3.0, parameter_bytes=5.0),
        node("b", ("a",), module="m", saved_bytes=2.0, colocate="c", flops=7.0),
        node("c", ("b", "a"), colocate="c", backward_flops=9.0),
    ]
    link = Link(source="d0", target="d1", bandwidth_bytes_per_s=2.0, latency_s=0.1)
    devices = (
        Device(name="d0", type="cpu", memory_bytes=90.0),
        Device(name="d1", type="cpu", slowdown=2.0),
    )
    g, c = graph(nodes), cluster(*devices, links=(link,))
    return g, c, solve(g, c, Assumptions(pins=("x=d0",))).plan


def try_once(random: Random) -> str:
    """Change one of the three files and use it; says how it ended."""
    g, c, plan = good()
    kind = random.choice([Graph, Cluster, Plan])
    raw = mutated(encode({Graph: g, Cluster: c, Plan: plan}[kind]), random)
    try:
        read = decode(raw, kind, "some.json")
    except FormatError as error:
        said = str(error)
        assert "\n" not in said
        assert said.startswith("some.json: ")
        assert len(said) < 400
        if "malformed" not in said and is_object(raw):
            assert FIELDS.search(said), said
        return "refused"
    if kind is Plan:
        assert bool(validate(g, c, read)) == bool(referee_faults(g, c, read))
        return "read"
    return use(read if kind is Graph else g, read if kind is Cluster else c)


def is_object(raw: bytes) -> bool:
    try:
        return isinstance(json.loads(raw), dict)
    except (ValueError, RecursionError):
        return False


def use(g: Graph, c: Cluster) -> str:
    try:
        plan = solve(g, c, time_limit_s=5.0).plan
    except (InfeasibleError, NoPlanError):
        return "no plan"
    assert validate(g, c, plan) == ()
    assert referee_faults(g, c, plan) == []
    return "planned"


@pytest.mark.parametrize("seed", range(10))
def test_one_change_is_refused_in_one_line_or_accepted_rightly(seed: int) -> None:
    random = Random(seed)
    ends = [try_once(random) for _ in range(max(50, num_cases(1000) // 10))]
    assert {"refused", "planned"} <= set(ends)
