"""What fails in one process fails in all, with an error of the same class."""

import json
from typing import Any

import pytest

from skyfx.runtime.distributed.process_group import describe, restore
from skyfx.solver.errors import InfeasibleError, SkyfxError
from tests.jobs.collectives_job import BUILTIN, OWN
from tests.support.launcher import launch


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("reports")
    done = launch(2, "tests/jobs/collectives_job.py", str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_has_its_class_in_every_process(
    failing: int, reports: list[dict[str, Any]]
) -> None:
    for rank, said in enumerate(reports):
        text = "it failed" if rank == failing else f"rank {failing}: it failed"
        for name in OWN + BUILTIN:
            assert said["errors"][name][failing] == [name, text]


def test_an_error_of_another_class_becomes_the_nearest_known_one(
    reports: list[dict[str, Any]],
) -> None:
    nearest = {
        "FileExistsError": "OSError",
        "KeyboardInterrupt": "SkyfxError",
        "SafetensorError": "SkyfxError",
        "ZeroDivisionError": "SkyfxError",
    }
    other, own = (said["others"] for said in reports)
    assert own == {name: [name, "it failed"] for name in nearest}
    assert other == {name: [kind, f"rank 1: {name}: it failed"] for name, kind in nearest.items()}


def test_a_model_that_does_not_fit_is_infeasible_in_every_process(
    reports: list[dict[str, Any]],
) -> None:
    (kind, text), (other_kind, other_text) = (said["infeasible"] for said in reports)
    assert kind == other_kind == "InfeasibleError"
    assert other_text == f"rank 0: {text}"


def test_values_come_to_all(reports: list[dict[str, Any]]) -> None:
    for rank, said in enumerate(reports):
        assert said["values"] == [{"rank": other, "inf": float("inf")} for other in range(2)]
        assert said["first"] == 0
        assert said["own"] == rank


def test_clocks_differ_by_what_no_delay_explains(reports: list[dict[str, Any]]) -> None:
    first, second = (said["clocks"] for said in reports)
    assert first == [0.0, 0.0]
    assert second == [0.0, pytest.approx(1000, abs=30)]


def test_only_listed_classes_are_made_from_a_name() -> None:
    impostor = type("PlanError", (Exception,), {})
    assert describe(impostor("it failed")) == ("SkyfxError", "PlanError: it failed")
    assert describe(KeyboardInterrupt()) == ("SkyfxError", "KeyboardInterrupt")
    assert type(restore(3, *describe(InfeasibleError("no room")))) is InfeasibleError
    assert type(restore(3, *describe(impostor("it failed")))) is SkyfxError
    with pytest.raises(KeyError):
        restore(0, "SystemExit", "no class of ours")
