"""The command `skyfx simulate`."""

import json
import shutil
from pathlib import Path

import pytest

from tests.support.cli_runner import SOLVE, Run

# Two stages of a second each; the backwards of this graph take no time.
#
#     one  |0|1|2|3|4|5|6|7| |
#     two  | |0|1|2|3|4|5|6|7|
STEP_S = 9.0


@pytest.fixture
def planned(skyfx: Run) -> Run:
    assert skyfx(*SOLVE, "-o", "p.plan.json", "-q").returncode == 0
    return skyfx


def said(done: object) -> list[list[str]]:
    return [line.split() for line in done.stdout.splitlines()]  # type: ignore[attr-defined]


def test_a_step_is_followed(planned: Run) -> None:
    done = planned("simulate", "p.plan.json")
    assert said(done)[1:] == [
        ["one", "0", "8", "s", "89%"],
        ["two", "1", "8", "s", "89%"],
        ["step", "9", "s,", "by", "the", "plan's", "formula", "9", "s"],
    ]


def test_another_schedule_and_other_numbers_of_micro_batches_are_followed(planned: Run) -> None:
    """Stages of a second each: (M + 1) s, in whatever order backwards that take none come."""
    more = planned("simulate", "p.plan.json", "--num-microbatches", "20")
    assert more.stdout.splitlines()[-1] == "step 21 s"
    other = planned("simulate", "p.plan.json", "--schedule", "gpipe", "--json")
    assert json.loads(other.stdout)["step_s"] == STEP_S
    unknown = planned("simulate", "p.plan.json", "--schedule", "generated")
    assert unknown.returncode == 2


def test_changes_are_each_told_with_and_without_another_plan(planned: Run) -> None:
    """Slowed to a third, `two` takes 24 s after the first second; then `one` does it alone."""
    asked = ("--what-if", "slow two x3", "--what-if", "drop two", "--slow", "one=1")
    done = planned("simulate", "p.plan.json", *asked, "--replan", "--json")
    answer = json.loads(done.stdout)
    assert (answer["step_s"], answer["busy_s"]) == (STEP_S, {"one": 8.0, "two": 8.0})
    slow, drop, same = answer["what_if"]
    assert (slow["change"], slow["step_s"], slow["why_not"]) == ("slow two x3", 25.0, None)
    assert (slow["replanned_step_s"], slow["replanned"]) == (16.0, [["one", 3]])
    assert (drop["step_s"], drop["why_not"]) == (None, "stage 1 is on two")
    assert (drop["replanned_step_s"], drop["replanned"]) == (16.0, [["one", 3]])
    assert (same["change"], same["step_s"]) == ("slow one x1", STEP_S)


def test_jitter_is_drawn_from_the_seed(planned: Run) -> None:
    """Half of a second's actions take longer, and the pipeline waits for the longer ones."""
    asked = ("simulate", "p.plan.json", "--json", "--jitter", "0.1", "--runs", "40")
    first, again, other = (
        json.loads(planned(*asked, "--seed", seed).stdout)["jitter"] for seed in "001"
    )
    assert first == again != other
    assert STEP_S < first["median_s"] < 1.1 * STEP_S
    assert first["median_s"] < first["p95_s"] < 1.3 * STEP_S


def test_a_timeline_is_written_and_not_over_another(planned: Run, folder: Path) -> None:
    done = planned("simulate", "p.plan.json", "--trace", "t.json")
    assert done.returncode == 0
    assert "open it in https://ui.perfetto.dev" in done.stderr
    events = json.loads((folder / "t.json").read_text())["traceEvents"]
    names = [e["args"]["name"] for e in events if e["name"] == "thread_name"]
    assert names == ["one", "two"]
    slices = [e for e in events if e["ph"] == "X"]
    assert len(slices) == 2 * 2 * 8  # stages, directions, micro-batches
    last = next(e for e in slices if (e["name"], e["tid"]) == ("forward 7", 2))
    assert (last["ts"], last["dur"]) == (8e6, 1e6)
    arrows = {ph: [e["id"] for e in events if e["ph"] == ph] for ph in "sf"}
    assert arrows["s"] == arrows["f"]
    assert len(set(arrows["s"])) == 2 * 8  # values and gradients
    again = planned("simulate", "p.plan.json", "--trace", "t.json")
    assert (again.returncode, again.stdout) == (2, "")
    assert "t.json exists" in again.stderr
    assert planned("simulate", "p.plan.json", "--trace", "t.json", "--force").returncode == 0


def test_graph_and_cluster_are_found_by_their_digest(planned: Run, folder: Path) -> None:
    (folder / "away").mkdir()
    shutil.copy(folder / "p.plan.json", folder / "away")
    assert planned("simulate", "away/p.plan.json").returncode == 0  # from the current folder
    (folder / "g.graph.json").rename(folder / "away" / "other-name.graph.json")
    assert planned("simulate", "away/p.plan.json").returncode == 0  # beside the plan
    missing = planned("simulate", "p.plan.json")
    assert missing.returncode == 2
    assert "p.plan.json: its graph 'test' is neither" in missing.stderr
    assert "give --graph FILE" in missing.stderr
    given = planned("simulate", "p.plan.json", "--graph", "away/other-name.graph.json")
    assert given.returncode == 0


def test_what_is_wrong_is_one_line(planned: Run) -> None:
    done = planned("simulate", "p.plan.json", "--slow", "one")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "skyfx: error: change 'slow one x': found 'x', expected a factor such as x2\n"
    )


def test_a_report_takes_a_measured_step(planned: Run, folder: Path) -> None:
    planned("simulate", "p.plan.json", "--slow", "one=1", "--trace", "t.json")
    done = planned("report", "p.plan.json", "-o", "p.html", "--run", "t.json")
    assert done.returncode == 0
    assert "A step takes 9 s as predicted. A step takes 9 s as measured." in " ".join(
        (folder / "p.html").read_text().split()
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]", "t.json: no trace of a step: Expected `object`, got `array`"),
        ('{"traceEvents": [{"ph": "X"}]}', "t.json: no trace of a step: 'stage'"),
        (
            '{"traceEvents": [{"ph": "X", "cat": "forward", "args": '
            '{"stage": 0, "micro-batch": 0}}]}',
            "t.json: the trace has actions of stages [0], the plan has 2 stages",
        ),
    ],
)
def test_what_is_no_measured_step_is_told(planned: Run, folder: Path, text: str, said: str) -> None:
    (folder / "t.json").write_text(text)
    done = planned("report", "p.plan.json", "-o", "p.html", "--run", "t.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert not (folder / "p.html").exists()
