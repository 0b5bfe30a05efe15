"""What is known to go wrong in Sky Computing, a test for each fault, named after it.

Its planner casts the solver's output with `int`, does not ask how the solver ended, and overwrites
a device's address with its place in the plan; its costs are those of BERT, without communication,
and its runtime goes through the stages one by one (https://github.com/hpcaitech/SkyComputing).
"""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pulp
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from skyfx.devices.resolve import resolve
from skyfx.measurement.measure import measure
from skyfx.solver import Assumptions, Cluster, Device, Graph, Plan, solve, validate
from skyfx.solver.core.cluster import Wire
from skyfx.solver.errors import NoPlanError
from skyfx.solver.methods import mip_backend, portfolio
from skyfx.solver.methods.heuristics.baselines import dynamic
from skyfx.solver.methods.milp import formulation
from skyfx.solver.methods.milp.milp_method import integer_program
from skyfx.solver.methods.requirements import Entry
from skyfx.solver.problem.instance import UnitPlacement
from skyfx.solver.problem.problem import Problem
from skyfx.tracing.capture import capture
from tests.support.launcher import launch
from tests.support.models import BATCH, Case, resnet
from tests.support.planning_instances import cluster, cpus, graph, hard_problem, node
from tests.support.plans import split_evenly

OFF = 1e-6


class Imprecise(pulp.HiGHS):
    """HiGHS, with binaries as far from 0 and 1 as a solver's tolerance allows."""

    name = "IMPRECISE"

    def actualSolve(self, lp: pulp.LpProblem) -> int:  # noqa: N802 (PuLP's name)
        status = super().actualSolve(lp)
        signs = itertools.cycle((1, -1))
        for variable in lp.variables():
            if variable.cat == "Integer":
                variable.varValue += -OFF if variable.varValue > 0.5 else next(signs) * OFF
        return int(status)


class Hasty(pulp.HiGHS):
    """HiGHS, with no time at all."""

    name = "HASTY"

    def __init__(self, **options: object) -> None:
        super().__init__(**(options | {"timeLimit": 0}))


@pytest.fixture
def by_program_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans come from the integer program, and PuLP knows these solvers as well."""
    known = {kind.name: kind for kind in (Imprecise, Hasty)}
    monkeypatch.setattr(portfolio, "METHODS", [Entry("integer program", integer_program)])
    monkeypatch.setattr(pulp, "listSolvers", lambda: list(known))
    monkeypatch.setattr(pulp, "getSolver", lambda name, **options: known[name](**options))


def mixed() -> tuple[Graph, Cluster]:
    """Four separate nodes for devices in turn: no split of their list into two fits."""
    nodes = [node(f"n{i}", forward_s={"ab"[i % 2]: 1.0}) for i in range(4)]
    return graph(nodes), cluster(*(Device(name=kind, type=kind) for kind in "ab"))


@pytest.mark.usefixtures("by_program_alone")
def test_no_layer_is_lost_to_rounding_solver_output() -> None:
    for g, c in (mixed(), hard_problem(num_nodes=12, num_devices=3)):
        plan = solve(g, c, solver="IMPRECISE").plan
        assert plan.solver.method == "integer program"
        placed = [name for stage in plan.stages for name in stage.nodes]
        assert sorted(placed) == sorted(n.id for n in g.nodes)
        assert validate(g, c, plan) == ()


@pytest.mark.usefixtures("by_program_alone")
def test_a_solver_that_ends_without_a_solution_gives_no_plan() -> None:
    g, c = mixed()
    model = formulation.build(Problem(g, c, Assumptions()), 1.0)
    # PuLP has values of 0 where nothing has been found, and so an objective of 0.
    answer = mip_backend.minimise(model.lp, {}, time_limit_s=9.0, gap=0.0, solver="HASTY")
    assert pulp.value(model.lp.objective) == 0
    assert (answer.values, answer.infeasible) == (None, False)
    assert answer.bound == -float("inf")
    with pytest.raises(NoPlanError, match="no plan was found in 9 s"):
        solve(g, c, solver="HASTY", time_limit_s=9.0)


def test_devices_keep_their_addresses_whatever_order_the_plan_gives_them(tmp_path: Path) -> None:
    order = (1, 2, 0)
    done = launch(3, "tests/jobs/addresses_job.py", str(tmp_path), *map(str, order))
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(3):
        said = json.loads((tmp_path / f"{rank}.json").read_text())
        layer = order.index(rank)
        assert said["held"] == [f"{layer}.weight", f"{layer}.bias"]
        assert said["stages"] == list(order)
        assert said["close"]


def chain(*seconds: float, output_bytes: float = 0.0) -> Graph:
    nodes = [
        node(f"n{i}", (f"n{i - 1}",) if i else (), forward_s={"cpu": s}, output_bytes=output_bytes)
        for i, s in enumerate(seconds)
    ]
    return graph(nodes)


def test_dynamic_moves_boundaries_left_as_well_as_right() -> None:
    def sizes(*slowdowns: float) -> list[int]:
        stages: UnitPlacement | None = dynamic(
            Problem(chain(*[1.0] * 12), cpus(*slowdowns), Assumptions())
        )
        assert stages is not None
        return [len(part) for _, part in stages]

    assert sizes(1.0, 3.0) == [9, 3]
    assert sizes(3.0, 1.0) == [3, 9]
    assert sizes(3.0, 1.0, 3.0) == [2, 8, 2]


def test_a_slow_link_changes_the_plan() -> None:
    g = chain(*[1.0] * 4, output_bytes=1e6)

    def planned(bytes_per_s: float) -> Plan:
        wire = Wire(bandwidth_bytes_per_s=bytes_per_s, latency_s=0.0)
        return solve(g, cluster(*cpus(1.0, 1.0).devices, default=wire)).plan

    fast, slow = planned(1e9), planned(1e5)
    assert [len(stage.nodes) for stage in fast.stages] == [2, 2]
    assert fast.bottleneck_s == pytest.approx(2.001)
    assert [len(stage.nodes) for stage in slow.stages] == [4]  # 10 s for a message, 4 s for all
    assert slow.bottleneck_s == 4.0


class Tagger(nn.Module):
    """Two LSTMs and a small head: what it computes has nothing to do with BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(16, 64, batch_first=True)
        self.second = nn.LSTM(64, 64, batch_first=True)
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)[0])[0][:, -1])


def tagger() -> Case:
    targets = torch.randint(0, 4, (BATCH,))
    return Case(Tagger(), torch.randn(BATCH, 12, 16), targets, functional.cross_entropy)


@pytest.mark.filterwarnings("ignore:The tensor attributes")  # torch.export's, of any nn.LSTM
@pytest.mark.parametrize(
    ("make", "op", "count"),
    [(tagger, "aten.lstm.input", 2), (resnet, "aten.conv2d.default", 7)],
    ids=["lstm", "convolutions"],
)
def test_costs_are_those_of_any_model(make: Callable[[], Case], op: str, count: int) -> None:
    case = make()
    described, places = resolve(["cpu", "cpu"])
    g = measure(capture(case.model, case.batch), places.values())
    (kind,) = {device.type for device in described.devices}
    for n in g.nodes:
        assert (kind in n.forward_s) == (n.op not in ("input", "get_attr")), n.id
    heavy = [n for n in g.nodes if n.op == op]
    assert len(heavy) == count
    assert all(n.forward_s[kind] > 0 and n.backward_s[kind] > 0 for n in heavy)
    assert sum(n.parameter_bytes for n in g.nodes) >= sum(
        4 * p.numel() for p in case.model.parameters()
    )
    plan = solve(g, described).plan
    for stage in plan.stages:
        times = [n.time_s(kind, training=True) for n in g.nodes if n.id in stage.nodes]
        assert stage.compute_s == pytest.approx(sum(times))
    assert validate(g, described, plan) == ()


def test_stages_run_at_the_same_time() -> None:
    layers = [nn.Linear(512, 512) for _ in range(8)]
    case = Case(nn.Sequential(*layers), torch.randn(BATCH, 512), torch.zeros(1), torch.sum)
    case = Case(case.model, torch.randn(BATCH * 32, 512), torch.zeros(BATCH * 32, 512), mse)
    with split_evenly(case, 2) as pipeline:
        done = pipeline.profile(case.batch, case.targets, case.loss_fn, steps=1).timeline
    first, second = ([one for one in done if one.action.stage == k] for k in (0, 1))
    overlaps = [
        (a.action, b.action)
        for a, b in itertools.product(first, second)
        if a.began_s < b.ended_s and b.began_s < a.ended_s
    ]
    assert overlaps
    assert all(a.microbatch != b.microbatch for a, b in overlaps)


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.mse_loss(outputs, targets)
