"""Pins, the program as a file, other solvers, the bound again, what differs, help and imports."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from skyfx.cli import app
from skyfx.solver import Plan, read, write
from tests.support.cli_runner import CHECK, HARD, SOLVE, Run


def test_a_pin_is_kept_and_stands_in_the_plan(skyfx: Run, folder: Path) -> None:
    done = skyfx(*SOLVE, "-o", "p.plan.json", "--pin", "a=two", "--pin", "b!=two")
    assert done.returncode == 0
    plan = read(folder / "p.plan.json", Plan)
    assert [s.device for s in plan.stages] == ["two", "one"]
    assert plan.assumptions.pins == ("a=two", "b!=two")
    assert skyfx(*CHECK).returncode == 0


@pytest.mark.parametrize(
    ("pin", "said"),
    [
        ("a", "found 'a', expected PATTERN=DEVICE or PATTERN!=DEVICE"),
        ("a=three", "no device 'three' (one, two)"),
        ("q*=one", "'q*' matches no node and no module"),
    ],
)
def test_a_wrong_pin_is_exit_2(skyfx: Run, pin: str, said: str) -> None:
    done = skyfx(*SOLVE, "--json", "--pin", pin)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_pins_against_each_other_are_exit_3(skyfx: Run) -> None:
    done = skyfx(*SOLVE, "--json", "--pin", "a=one", "--pin", "a=two")
    assert done.returncode == 3
    assert "pinned by 'a=one' and 'a=two'" in done.stderr


def test_the_integer_program_is_written(skyfx: Run, folder: Path) -> None:
    done = skyfx(*SOLVE, "--json", "-q", "--write-lp", "p.lp")
    assert done.returncode == 0
    text = (folder / "p.lp").read_text()
    assert "Minimize" in text
    assert "Subject To" in text
    again = skyfx(*SOLVE, "--json", "-q", "--write-lp", "p.lp")
    assert again.returncode == 2
    assert "p.lp exists" in again.stderr
    assert skyfx(*SOLVE, "--json", "-q", "--write-lp", "p.lp", "--force").returncode == 0


def test_an_unknown_solver_is_exit_2(skyfx: Run) -> None:
    done = skyfx(*SOLVE, "--json", "--solver", "abacus")
    assert done.returncode == 2
    assert "solver is 'abacus', expected " in done.stderr


def test_check_confirms_the_bound_by_other_means(skyfx: Run) -> None:
    skyfx(*SOLVE, "-o", "p.plan.json")
    done = skyfx(*CHECK, "--bound")
    assert done.returncode == 0
    assert done.stdout.splitlines()[1].startswith("bound confirmed: nothing is below 1 s, also by")
    answer = json.loads(skyfx(*CHECK, "--bound", "--json").stdout)
    assert answer["valid"]
    assert answer["bound"]["verdict"] == "confirmed"


def test_check_refutes_a_bound_above_another_plan(skyfx: Run, folder: Path) -> None:
    # everything on one device takes 2 s; that this were optimal is a lie
    skyfx(*SOLVE, "-o", "p.plan.json", "--pin", "*=one")
    plan = read(folder / "p.plan.json", Plan)
    assert plan.lower_bound == 2.0
    lie = replace(plan, assumptions=replace(plan.assumptions, pins=()))
    write(lie, folder / "p.plan.json", force=True)
    assert skyfx(*CHECK).returncode == 0
    done = skyfx(*CHECK, "--bound")
    assert done.returncode == 1
    assert done.stdout.splitlines()[1].startswith("bound refuted: a plan is below 2 s")


def test_check_says_where_the_bound_is_out_of_reach(skyfx: Run, folder: Path) -> None:
    assert skyfx(*HARD, "-o", "p.plan.json", "-q", "--time-limit", "2").returncode == 0
    plan = read(folder / "p.plan.json", Plan)
    higher = (plan.lower_bound + plan.objective_value) / 2
    lifted = replace(plan, lower_bound=higher, gap=plan.objective_value / higher - 1)
    write(lifted, folder / "p.plan.json", force=True)
    files = ("hard.graph.json", "hard.cluster.json", "p.plan.json")
    done = skyfx("check", *files, "--bound", "--time-limit", "1")
    assert done.returncode == 0
    assert "bound not derived again: " in done.stdout


def test_diff_says_what_moved(skyfx: Run) -> None:
    skyfx(*SOLVE, "-o", "p.plan.json")
    skyfx(*SOLVE, "-o", "q.plan.json", "--pin", "*=one")
    same = skyfx("diff", "p.plan.json", "p.plan.json")
    assert same.returncode == 0
    done = skyfx("diff", "p.plan.json", "q.plan.json")
    assert done.returncode == 1
    assert "bottleneck_s: 1 s -> 2 s (+100.00%)" in done.stdout
    assert "moved from two to one: 'b'" in done.stdout
    answer = json.loads(skyfx("diff", "p.plan.json", "q.plan.json", "--json").stdout)
    assert answer["moved"] == {"b": ["two", "one"]}


def imported_by(module: str) -> set[str]:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_planner_never_imports_torch() -> None:
    assert "torch" not in imported_by("skyfx.solver.cli.app, skyfx.solver.planning.planner")


def test_commands_import_what_searches_only_when_they_search() -> None:
    assert not {"numpy", "numba", "pulp", "highspy", "jinja2"} & imported_by("skyfx.cli")


def test_every_command_has_an_example_that_begins_with_it() -> None:
    groups = [group.typer_instance for group in app.registered_groups]
    of_groups = [command for group in groups if group for command in group.registered_commands]
    assert len(of_groups) == 3
    for command in [*app.registered_commands, *of_groups]:
        assert command.callback is not None
        name = command.name or command.callback.__name__
        example = (command.callback.__doc__ or "").partition("For example: ")[2].split()
        assert name in example, name
        assert example[0] in ("skyfx", "torchrun"), name
