"""Plans for people."""

import subprocess
import sys
from random import Random

import pytest

from skyfx.solver import Assumptions, Plan, solve
from skyfx.solver.core.plan_table import COLUMNS, html, text
from skyfx.solver.core.units import operations, percent, seconds, size
from tests.support import ROOT
from tests.support.planning_instances import cluster, cpus, graph, node, plan_of


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1.5 * 2**20, "1.5 MiB"),
        (9.4 * 2**30, "9.4 GiB"),
        (3 * 2**40, "3.0 TiB"),
        (5000 * 2**40, "5000.0 TiB"),
    ],
)
def test_sizes(num_bytes: float, expected: str) -> None:
    assert size(num_bytes) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0 s"), (1.5, "1.5 s"), (0.0123, "12.3 ms"), (4.2e-5, "42 us"), (5e-9, "5 ns")],
)
def test_seconds(value: float, expected: str) -> None:
    assert seconds(value) == expected


@pytest.mark.parametrize(
    ("flops", "expected"),
    [
        (0, "0 FLOP"),
        (999, "999 FLOP"),
        (1500, "1.5 kFLOP"),
        (2e6, "2.0 MFLOP"),
        (12.34e9, "12.3 GFLOP"),
        (1e12, "1.0 TFLOP"),
        (5e18, "5000.0 PFLOP"),
    ],
)
def test_operations(flops: float, expected: str) -> None:
    assert operations(flops) == expected


def test_percent() -> None:
    assert (percent(0.0125), percent(None)) == ("1.25%", "unknown")


def a_plan(device: str = "d1") -> Plan:
    g = graph([node("a"), node("b", ("a",)), node("c", ("b",))])
    devices = [*cpus(1.0).devices, type(cpus(1.0).devices[0])(name=device, type="cpu")]
    return plan_of(g, cluster(*devices), Assumptions(), [("d0", ["a"]), (device, ["b", "c"])])


def test_the_table_has_a_row_for_each_stage_and_marks_the_bottleneck() -> None:
    title, header, first, second, *summary = text(a_plan()).splitlines()
    assert title.strip() == "test: training, 1f1b, 8 micro-batches"
    assert header.split() == list(filter(None, COLUMNS))
    assert first.split() == ["0", "d0", "1", "a", "1", "s", "0", "s", "0", "s", "1", "s", "0", "B"]
    assert second.split()[:7] == ["1", "d1", "2", "b", "..", "c", "2"]
    assert second.rstrip().endswith("<- bottleneck")
    assert summary == [
        "bottleneck 2 s per micro-batch, step 17 s",
        "throughput 2 s; no plan is below 1 s (half): gap 100.00%, feasible",
        "instead: even split does not fit, dynamic 2.5 s, best single device 3 s",
    ]


def test_a_stage_says_from_which_module_to_which_it_goes() -> None:
    names = ["ids", "bert.embeddings.add", "bert.encoder.layer.0.output.linear", "bert.pooler.tanh"]
    g = graph([node(name, tuple(names[:i][-1:])) for i, name in enumerate(names)])
    plan = plan_of(g, cpus(1.0, 1.0), Assumptions(), [("d0", names[:3]), ("d1", names[3:])])
    _, _, first, second, *_ = text(plan).splitlines()
    assert "  layer.0  " in first
    assert "  bert.pooler  " in second


def test_memory_stands_beside_what_the_device_has() -> None:
    g = graph([node("a", parameter_bytes=512.0)])
    found = solve(g, cpus(1.0, memory=4096.0), Assumptions(optimizer_state_ratio=0)).plan
    assert "1.0 KiB of 4.0 KiB" in text(found)


def test_printing_a_plan_draws_its_table() -> None:
    assert str(a_plan()) == text(a_plan())


PRINTS = """
import random, sys
from skyfx.solver import Assumptions
from tests.support.planning_instances import cpus, graph, node, plan_of

plan = plan_of(graph([node("a")]), cpus(1.0), Assumptions(), [("d0", ["a"])])
random.seed(1)
assert "rich" not in sys.modules
str(plan)
print(random.random())
"""


def test_printing_a_plan_draws_no_random_number() -> None:
    """It imports rich, which draws one."""
    command = [sys.executable, "-c", PRINTS]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(said.stdout) == Random(1).random()


def test_names_are_not_markup() -> None:
    assert "gpu[red]0[/]" in text(a_plan("gpu[red]0[/]"))
    assert "<b>" not in html(a_plan("<b>"))
    assert "&lt;b&gt;" in html(a_plan("<b>"))


def test_notebooks_show_the_same_figures() -> None:
    drawn = a_plan()._repr_html_()
    assert drawn.count("<tr>") == 3
    assert "bottleneck 2 s per micro-batch, step 17 s" in drawn
