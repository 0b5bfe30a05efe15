"""The check in two processes, of which each has some of the stages."""

import json
from pathlib import Path

import pytest

from tests.support.launcher import launch


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    folder = tmp_path_factory.mktemp("check")
    done = launch(2, "tests/jobs/check_job.py", str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("run", ["whole", "outputs", "parts", "weights"])
def test_all_processes_say_the_same(reports: list[dict[str, str]], run: str) -> None:
    first, second = (report[run] for report in reports)
    assert first == second
    assert first.startswith("verified against plain torch: ")
    assert "equal to the last bit" in first
    assert ("gradients (6)" in first) == (run != "outputs")
    assert ("not verified: that the captured graph" in first) == (run in ("parts", "weights"))


@pytest.mark.parametrize("run", ["whole, inference", "parts, inference"])
def test_the_first_inference_is_held_against_the_whole_model(
    reports: list[dict[str, str]], run: str
) -> None:
    first, second = (report[run] for report in reports)
    assert first == second
    assert ("outputs (1)" in first) == ("whole" in run)
    assert ("not verified: that the captured graph" in first) == ("parts" in run)
    assert "equal to the last bit" in first


def test_samples_in_dimension_1_are_cut_there(reports: list[dict[str, str]]) -> None:
    assert [report["batch_dims"] for report in reports] == ["True", "True"]


def test_quantised_weights_go_from_process_to_process(reports: list[dict[str, str]]) -> None:
    assert [report["quantised"] for report in reports] == ["True", "True"]


@pytest.mark.parametrize("run", ["wrong", "wrong parts", "wrong inference"])
def test_what_one_process_does_otherwise_is_refused_in_all(
    reports: list[dict[str, str]], run: str
) -> None:
    refused = [report[run] for report in reports]
    assert all(("in inference: " in text) == (run == "wrong inference") for text in refused)
    assert all("the stages would not do what Net does" in text for text in refused)
    told = ["rank 0: " in text or "rank 1: " in text for text in refused]
    assert any(told) == ("parts" in run)  # else both find what is wrong for themselves
