"""A plan as a page: complete, whole by itself, and true to the plan."""

from dataclasses import replace
from pathlib import Path

import pytest

from skyfx.solver import Assumptions, Device, Plan, solve
from skyfx.solver.analysis.cluster_changes import Change
from skyfx.solver.analysis.html_report import DrawnStep, page
from skyfx.solver.analysis.scenarios import scenarios, simulate_plan
from tests.support.cli_runner import SOLVE
from tests.support.cli_runner import Run as Command
from tests.support.html_reader import HtmlReader
from tests.support.planning_instances import cluster, graph, node

MODEL = graph(
    [
        node("x", op="input", forward_s={}),
        node("a", ("x",), module="first.<one>", backward_s={"cpu": 2.0}, gradient_bytes=3e6),
        node("b", ("a",), module="second", backward_s={"cpu": 2.0}),
    ]
)
PAIR = cluster(
    Device(name="one & only", type="cpu", memory_bytes=1e9), Device(name="two", type="cpu")
)


def planned(**fields: object) -> Plan:
    asked = replace(Assumptions(microbatches=4), **fields)  # type: ignore[arg-type]
    return solve(MODEL, PAIR, asked).plan


def drawn(plan: Plan, sentences: tuple[str, ...] = ()) -> HtmlReader:
    done = simulate_plan(MODEL, PAIR, plan).done
    return HtmlReader(page(MODEL, PAIR, plan, [DrawnStep("predicted", done)], sentences))


@pytest.mark.parametrize("overlap", ["none", "full"])
def test_every_action_is_drawn_and_backwards_are_hatched(overlap: str) -> None:
    seen = drawn(planned(overlap=overlap))
    tips = [text for text in seen.texts if text.startswith("stage ") and "micro-batch" in text]
    assert len(tips) == 2 * 2 * 4  # stages, directions, micro-batches
    assert "stage 0, forward of micro-batch 0: 0 s to 1 s" in tips
    assert seen.count("rect", fill="url(#hatch)") == 2 * 4
    assert [text for text in seen.texts if text in ("F0", "F3", "B0", "B3")] == [
        *("F0", "B0", "F3", "B3"),
        *("F0", "B0", "F3", "B3"),
    ]


def test_a_measured_step_is_drawn_on_the_same_scale() -> None:
    """Twice as long as predicted, so that the predicted one has half of the width."""
    plan = planned()
    done = simulate_plan(MODEL, PAIR, plan).done
    slower = [replace(x, began_s=2 * x.began_s, ended_s=2 * x.ended_s) for x in done]
    runs = [DrawnStep("predicted", done), DrawnStep("measured", slower)]
    seen = HtmlReader(page(MODEL, PAIR, plan, runs, ()))
    hatched = [found["width"] for tag, found in seen.tags if found.get("fill") == "url(#hatch)"]
    assert len(hatched) == 2 * 2 * 4
    predicted, measured = (sorted(map(float, map(str, x))) for x in (hatched[:8], hatched[8:]))
    assert measured == pytest.approx([2 * width for width in predicted], abs=0.02)
    assert {"predicted", "measured"} <= set(seen.texts)


def test_it_needs_nothing_else() -> None:
    seen = drawn(planned())
    assert {tag for tag, _ in seen.tags} & {"script", "link", "img", "iframe"} == set()
    assert not any(key in found for _, found in seen.tags for key in ("src", "href"))


def test_names_are_no_markup() -> None:
    texts = drawn(planned(), ("1 < 2",)).texts
    assert "one & only" in texts
    assert "first.<one>" in texts
    assert "1 < 2" in texts


def test_modules_stand_between_their_cuts() -> None:
    texts = drawn(planned()).texts
    begin = texts.index("The model, and where it is cut")
    assert texts[begin + 4 :][:9] == [
        *("0 on one & only", "inputs", "1", "first.<one>", "1"),
        *("cut", "1 value, 1 B forward, 2.9 MiB backward"),
        *("1 on two", "second"),
    ]


def test_operations_stand_in_the_table_of_stages_where_they_are_known() -> None:
    """Of stages that compute for 3 s."""
    plan = planned()
    assert "operations" not in drawn(plan).texts
    known = [replace(s, flops=f) for s, f in zip(plan.stages, (6e9, 1.5e12), strict=True)]
    texts = drawn(replace(plan, stages=tuple(known))).texts
    begin = texts.index("operations")
    assert texts[begin + 1] == "per second"
    rows = texts[begin + 2 :]
    assert rows[rows.index("6.0 GFLOP") + 1] == "2.0 GFLOP/s"
    assert rows[rows.index("1.5 TFLOP") + 1] == "500.0 GFLOP/s"


def test_what_does_not_fit_is_said() -> None:
    plan = planned()
    without = replace(plan, alternatives=replace(plan.alternatives, even=None))
    assert "does not fit into memory" not in drawn(plan).texts
    assert "does not fit into memory" in drawn(without).texts


def test_what_might_be_stands_in_a_table() -> None:
    plan = planned()
    changes = [Change.of("drop two", MODEL), Change.of("slow two x2", MODEL)]
    found = list(scenarios(MODEL, PAIR, plan, changes))
    done = simulate_plan(MODEL, PAIR, plan).done
    texts = HtmlReader(page(MODEL, PAIR, plan, [DrawnStep("predicted", done)], (), found)).texts
    begin = texts.index("What if")
    assert texts[begin + 1 : begin + 7] == [
        *("what if", "this plan", "another plan", "its stages", "drop two", "stage 1 is on two"),
    ]
    assert "What if" not in drawn(plan).texts


def test_the_command_writes_it_and_not_over_another(skyfx: Command, folder: Path) -> None:
    assert skyfx(*SOLVE, "-o", "p.plan.json", "-q").returncode == 0
    done = skyfx("report", "p.plan.json", "-o", "p.html")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "skyfx: wrote p.html\n")
    seen = HtmlReader((folder / "p.html").read_text())
    assert "Stage 0 on one is the bottleneck: 1 s per micro-batch, 1 s computing." in seen.texts
    assert {"drop one", "drop two"} <= set(seen.texts)
    again = skyfx("report", "p.plan.json", "-o", "p.html")
    assert again.returncode == 2
    assert "p.html exists; use --force" in again.stderr
    assert skyfx("report", "p.plan.json", "-o", "p.html", "--force", "-q").stderr == ""
