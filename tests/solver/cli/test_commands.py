"""The planner's commands: real files, and a real process per exit code."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from skyfx.solver import Device, Plan, read, validate, write
from skyfx.solver.core.files import digest
from tests.support.cli_runner import CHECK, HARD, PROGRAM, SOLVE, Run
from tests.support.independent_validator import referee_faults
from tests.support.planning_instances import cluster, cpus, graph, hard_problem, node


def test_solve_writes_a_plan_and_shows_it_on_standard_error(skyfx: Run, folder: Path) -> None:
    done = skyfx(*SOLVE, "-o", "p.plan.json")
    assert (done.returncode, done.stdout) == (0, "")
    assert "bottleneck 1 s per micro-batch" in done.stderr
    plan = read(folder / "p.plan.json", Plan)
    assert [s.device for s in plan.stages] == ["one", "two"]
    assert plan.cluster.name == "c.cluster.toml"
    assert plan.graph.sha256 == digest((folder / "g.graph.json").read_bytes())
    assert plan.cluster.sha256 == digest((folder / "c.cluster.toml").read_bytes())


def test_json_is_the_plan_file_and_nothing_else(skyfx_process: Run, folder: Path) -> None:
    done = skyfx_process(*SOLVE, "-o", "p.plan.json", "--json")
    assert done.returncode == 0
    assert done.stdout == (folder / "p.plan.json").read_text()
    assert done.stderr == ""


def test_json_needs_no_file(skyfx: Run, folder: Path) -> None:
    done = skyfx(*SOLVE, "--json")
    assert json.loads(done.stdout)["format"] == "skyfx.plan/1"
    assert not list(folder.glob("*.plan.json"))


def test_quiet_says_nothing(skyfx: Run) -> None:
    done = skyfx(*SOLVE, "-o", "p.plan.json", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_verbose_says_what_each_method_did(skyfx: Run) -> None:
    done = skyfx(*HARD, "--json", "-v", "--time-limit", "3")
    said = done.stderr.splitlines()
    says = json.loads(done.stdout)["solver"]["says"]
    assert says
    assert {
        f"skyfx.solver.methods.portfolio: {x}" for x in says if not x.startswith("compiling")
    } <= {*said}


def test_a_plan_without_a_place_is_refused(skyfx_process: Run) -> None:
    done = skyfx_process(*SOLVE)
    assert done.returncode == 2
    assert done.stderr.startswith("skyfx: error: no output for the plan: give -o PLAN, or --json")


def test_an_existing_file_is_refused_before_solving(skyfx: Run, folder: Path) -> None:
    (folder / "p.plan.json").write_text("mine")
    began = time.monotonic()
    done = skyfx(*HARD, "-o", "p.plan.json")
    assert time.monotonic() - began < 20
    assert done.returncode == 2
    assert "p.plan.json exists; use --force" in done.stderr
    assert (folder / "p.plan.json").read_text() == "mine"
    assert skyfx(*SOLVE, "-o", "p.plan.json", "--force").returncode == 0
    assert read(folder / "p.plan.json", Plan).stages


def test_every_option_reaches_the_plan(skyfx: Run, folder: Path) -> None:
    options = (
        "--mode inference --objective step --communication host --overlap full --schedule gpipe "
        "--num-microbatches 3 --optimizer-state-ratio 1.5 --strategy even --time-limit 5 "
        "--gap 0.1 --seed 7"
    )
    assert skyfx(*SOLVE, "-o", "p.plan.json", *options.split()).returncode == 0
    plan = read(folder / "p.plan.json", Plan)
    a = plan.assumptions
    assert (a.mode, a.objective, a.schedule) == ("inference", "step", "gpipe")
    assert (a.overlap, a.communication) == ("full", "host")
    assert (a.microbatches, a.optimizer_state_ratio) == (3, 1.5)
    assert plan.solver.strategy == "even"


@pytest.mark.parametrize("schedule", ["generated", "tapered", "interleaved"])
def test_a_schedule_that_is_made_for_the_plan_is_written_and_checked(
    skyfx: Run, folder: Path, schedule: str
) -> None:
    assert skyfx(*SOLVE, "-o", "p.plan.json", "--schedule", schedule).returncode == 0
    plan = json.loads((folder / "p.plan.json").read_text())
    assert all(stage["live"] for stage in plan["stages"])
    assert skyfx(*CHECK).returncode == 0
    plan["stages"][0]["live"] = 9
    (folder / "p.plan.json").write_text(json.dumps(plan))
    done = skyfx(*CHECK)
    assert done.returncode == 1
    assert "stage 0: found 9 micro-batches in flight, expected at most 8" in done.stdout


def test_the_defaults_are_those_of_the_format(skyfx: Run, folder: Path) -> None:
    skyfx(*SOLVE, "-o", "p.plan.json")
    a = json.loads((folder / "p.plan.json").read_text())["assumptions"]
    assert a == {
        "mode": "training",
        "objective": "throughput",
        "schedule": "1f1b",
        "microbatches": 8,
        "optimizer_state_ratio": 2.0,
        "overlap": "none",
        "communication": "relay",
        "pins": [],
        "recompute": "auto",
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ("solve", "none.graph.json", "c.cluster.toml", "--json"),
        ("solve", "c.cluster.toml", "g.graph.json", "--json"),
        (*SOLVE, "--json", "--num-microbatches", "0"),
        (*SOLVE, "--json", "--time-limit", "-1"),
        (*SOLVE, "--json", "--gap", "nan"),
        (*SOLVE, "-o", "none/p.plan.json"),
        ("check", "g.graph.json", "c.cluster.toml", "none.plan.json"),
        ("show", "g.graph.json"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_exit_2(skyfx: Run, arguments: tuple[str, ...]) -> None:
    done = skyfx(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("skyfx: error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [("solve",), (*SOLVE, "--mode", "both"), ("fly",)])
def test_unknown_arguments_are_exit_2(skyfx: Run, arguments: tuple[str, ...]) -> None:
    done = skyfx(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage:" in done.stderr


def test_no_possible_plan_is_exit_3(skyfx_process: Run, folder: Path) -> None:
    write(cpus(1.0, 1.0, memory=1.0), folder / "tiny.cluster.json")
    write(graph([node("a", parameter_bytes=1.0)]), folder / "big.graph.json")
    done = skyfx_process("solve", "big.graph.json", "tiny.cluster.json", "-o", "p.plan.json")
    assert done.returncode == 3
    assert done.stderr.startswith("skyfx: error: 'a' needs 4 B, the largest device has 1 B.")
    assert not (folder / "p.plan.json").exists()


def test_no_plan_in_time_is_exit_4(skyfx_process: Run, folder: Path) -> None:
    # a b a b by the types that run them: no intervals of this order fit two devices
    nodes = [node(f"n{i}", forward_s={"ab"[i % 2]: 1.0}) for i in range(4)]
    write(graph(nodes), folder / "mixed.graph.json")
    devices = cluster(*(Device(name=kind, type=kind) for kind in "ab"))
    write(devices, folder / "mixed.cluster.json")
    done = skyfx_process(
        "solve", "mixed.graph.json", "mixed.cluster.json", "--json", "--time-limit", "0"
    )
    assert (done.returncode, done.stdout) == (4, "")
    assert "no plan was found in 0 s" in done.stderr


def on_a_terminal(
    folder: Path, *arguments: str, interrupt_at: str | None = None
) -> tuple[int, str, str]:
    """Run with standard error on a terminal; press Ctrl-C once it shows `interrupt_at`.

    Returns:
        The exit code, standard output and what the terminal has seen.
    """
    reader, terminal = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=terminal,
        text=True,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(terminal)
    seen = ""
    with suppress(OSError):  # how Linux says that the other end of a terminal is closed
        while part := os.read(reader, 4096).decode(errors="replace"):
            seen += part
            if interrupt_at is not None and interrupt_at in seen:
                process.send_signal(signal.SIGINT)
                interrupt_at = None
    os.close(reader)
    stdout, _ = process.communicate(timeout=60)
    return process.returncode, stdout, seen


def test_interrupted_writes_the_best_plan_so_far(folder: Path) -> None:
    code, stdout, seen = on_a_terminal(
        folder, *HARD, "-o", "p.plan.json", "--json", interrupt_at="none is below"
    )
    assert code == 130
    assert "skyfx: interrupted; the best plan so far: " in seen
    assert stdout == (folder / "p.plan.json").read_text()
    g, c = hard_problem()
    plan = read(folder / "p.plan.json", Plan)
    assert validate(g, c, plan) == ()
    assert referee_faults(g, c, plan) == []
    assert plan.solver.status == "feasible"
    assert plan.solver.wall_s < 50


def test_interrupted_before_any_plan_writes_nothing(folder: Path) -> None:
    # 40 separate nodes whose bytes would have to come out even on 8 devices
    random = Random(1)
    sizes = [float(random.randint(10**6, 3 * 10**6)) for _ in range(40)]
    nodes = [node(f"n{i}", parameter_bytes=s, output_bytes=0.0) for i, s in enumerate(sizes)]
    write(graph(nodes), folder / "tight.graph.json")
    write(cpus(*[1.0] * 8, memory=sum(sizes) / 8 + 1), folder / "tight.cluster.json")
    tight = ("solve", "tight.graph.json", "tight.cluster.json", "-o", "p.plan.json")
    code, stdout, seen = on_a_terminal(
        folder, *tight, "--mode", "inference", interrupt_at="no plan yet"
    )
    assert (code, stdout) == (130, "")
    assert "skyfx: error: interrupted, and nothing was written" in seen
    assert not (folder / "p.plan.json").exists()


def test_a_terminal_sees_the_incumbent_the_bound_and_the_gap(folder: Path) -> None:
    code, stdout, seen = on_a_terminal(folder, *HARD, "--json", "--time-limit", "3")
    assert code == 0
    assert json.loads(stdout)["format"] == "skyfx.plan/1"
    assert "none is below" in seen
    assert "gap" in seen


def test_check_says_valid(skyfx: Run) -> None:
    skyfx(*SOLVE, "-o", "p.plan.json")
    done = skyfx(*CHECK)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "valid: 2 stages, throughput 1 s, gap 0.00%\n"
    assert json.loads(skyfx(*CHECK, "--json").stdout) == {"valid": True, "faults": []}


def test_check_prints_each_fault_and_is_exit_1(skyfx_process: Run, folder: Path) -> None:
    skyfx_process(*SOLVE, "-o", "p.plan.json")
    plan = read(folder / "p.plan.json", Plan)
    wrong = replace(plan, step_s=1.0, bottleneck_s=3.0)
    write(wrong, folder / "p.plan.json", force=True)
    done = skyfx_process(*CHECK)
    assert done.returncode == 1
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["bottleneck_s", "step_s"]
    answer = skyfx_process(*CHECK, "--json")
    assert answer.returncode == 1
    assert json.loads(answer.stdout) == {"valid": False, "faults": done.stdout.splitlines()}


def test_check_warns_where_the_files_have_changed(skyfx: Run, folder: Path) -> None:
    skyfx(*SOLVE, "-o", "p.plan.json")
    with (folder / "c.cluster.toml").open("a") as stream:
        stream.write("# a remark\n")
    done = skyfx(*CHECK)
    assert (done.returncode, done.stdout[:6]) == (0, "valid:")
    assert done.stderr == (
        "skyfx: warning: p.plan.json was made from another version of c.cluster.toml\n"
    )
    assert skyfx(*CHECK, "-q").stderr == ""


def test_show_prints_the_table_or_the_file(skyfx: Run, folder: Path) -> None:
    skyfx(*SOLVE, "-o", "p.plan.json")
    done = skyfx("show", "p.plan.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "<- bottleneck" in done.stdout
    assert skyfx("show", "p.plan.json", "--json").stdout == (folder / "p.plan.json").read_text()


@pytest.mark.parametrize(
    "program",
    [PROGRAM, [sys.executable, "-m", "skyfx"], [str(Path(sys.executable).parent / "skyfx")]],
    ids=["solver", "skyfx", "script"],
)
def test_version_is_data(program: list[str]) -> None:
    """Of each way to start the program."""
    done = subprocess.run([*program, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "skyfx"
    assert done.stderr == ""


def test_a_misspelled_field_is_a_warning_unless_quiet(skyfx: Run, folder: Path) -> None:
    text = (folder / "c.cluster.toml").read_text().replace("type =", "slowdwon = 4\ntype =", 1)
    (folder / "c.cluster.toml").write_text(text)
    done = skyfx(*SOLVE, "--json")
    assert done.returncode == 0
    assert done.stderr == (
        "skyfx: warning: c.cluster.toml: devices[0].slowdwon: no such field, it is ignored; the "
        "nearest one is 'slowdown'\n"
    )
    assert skyfx(*SOLVE, "--json", "-q").stderr == ""
