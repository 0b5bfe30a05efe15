"""Pipelines over several processes, as a launcher starts them, equal to the unsplit model."""

import json
from pathlib import Path
from typing import Any

import pytest

from skyfx.solver.core.cluster import Cluster
from skyfx.solver.core.files import read
from tests.support.launcher import forked, launch
from tests.support.models import BATCH, CASES
from tests.support.plans import SIZE

# One launch for all: starting and importing takes longer than any of the runs.
GIVEN = [f"{name}-given" for name in CASES]
MADE = ["t5-interleaved", "unet-interleaved", "bert-generated"]
MEASURED = "bert-measured"
Reports = dict[str, list[dict[str, Any]]]

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """What each of two processes has seen, by run."""
    folder = tmp_path_factory.mktemp("ranks")
    runs = [*GIVEN, *MADE, MEASURED]
    done = launch(2, "tests/jobs/ranks_job.py", str(folder), *runs, timeout_s=540)
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        run: [json.loads((folder / f"{run}.{rank}.json").read_text()) for rank in range(2)]
        for run in runs
    }


@pytest.mark.parametrize("run", GIVEN)
def test_each_rank_has_its_stage_and_all_see_the_unsplit_models_losses(
    run: str, reports: Reports
) -> None:
    found = reports[run]
    for said in found:
        assert said["equal"] == [True] * 7  # losses and norms of gradients, tensors in the end
        assert said["inferred"] == [True] * 5  # alone, and in a stream of four
    assert all(0 < said["held"] < said["all"] for said in found)
    first, second = (said["timeline"] for said in found)
    assert first == second  # all know of all actions, by one clock
    begun = {(k, kind, m): began_s for k, kind, m, began_s in first}
    parts = range(BATCH // SIZE)
    assert begun.keys() == {
        (k, x, m) for k in (0, 1) for x in ("forward", "backward") for m in parts
    }
    assert all(begun[0, "forward", m] < begun[1, "backward", m] for m in parts)


@pytest.mark.parametrize("run", MADE)
def test_schedules_made_for_a_plan_see_the_unsplit_models_losses(
    run: str, reports: Reports
) -> None:
    """Two stages of a rank that do not stand beside each other, and others in flight."""
    for said in reports[run]:
        assert len(said["stages"]) == (4 if run.endswith("interleaved") else 2)
        assert len(set(said["stages"])) == 2
        assert said["equal"] == [True] * 7
        assert said["inferred"] == [True] * 5  # alone, and in a stream of four


def test_hosts_measure_and_plan_together(reports: Reports) -> None:
    """Without a plan: prices from one process, speeds from each, one plan for all."""
    found = reports[MEASURED]
    assert found[0]["plan"] == found[1]["plan"]
    plan = json.loads(found[0]["plan"])
    assert {device for said in found for device in said["stages"]} == {
        stage["device"] for stage in plan["stages"]
    }
    assert plan["bottleneck_s"] > 0
    for said in found:
        assert said["equal"] == [True] * 7


def test_probe_writes_the_devices_and_the_links_between_them(tmp_path: Path) -> None:
    path = tmp_path / "two.cluster.json"
    done = launch(2, "-m", "skyfx", "probe", "-o", str(path))
    assert done.returncode == 0, done.stderr[-3000:]
    cluster = read(path, Cluster)
    names = [device.name for device in cluster.devices]
    assert len(set(names)) == 2
    assert len({device.type for device in cluster.devices}) == 1
    assert all(device.memory_bytes for device in cluster.devices)
    assert {(link.source, link.target) for link in cluster.links} == {
        tuple(names),
        tuple(names[::-1]),
    }
    for link in cluster.links:  # of one machine with itself
        assert 1e6 < link.bandwidth_bytes_per_s < 1e12
        assert 0 < link.latency_s < 1
    again = launch(2, "-m", "skyfx", "probe", "-o", str(path))
    assert again.returncode != 0
    assert "--force" in again.stderr


def test_a_process_that_nothing_has_launched_is_a_job_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "one.cluster.json"
    with forked([{}], "-m", "skyfx", "probe", "-o", str(path)) as (alone,):
        assert alone.wait() == 0, alone.said
    cluster = read(path, Cluster)
    assert len(cluster.devices) == 1
    assert cluster.links == ()
