"""A device's memory limit is enforced: what a plan did not foresee fails, and says why."""

import sys

import pytest

from tests.support.launcher import forked


def said(*limits: str) -> str:
    with forked([{}], "tests/jobs/greedy_job.py", *limits) as (process,):
        assert process.wait() == 0, process.said
        return process.said.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to its data")
def test_what_was_not_foreseen_fails_in_its_stage_and_no_longer_than_the_pipeline_lasts() -> None:
    alone = said("96")
    assert "failed in the forward of micro-batch 0" in alone
    assert "the pipeline may use 96 MiB of 'cpu': give it more" in alone
    assert "may use 48 MiB of 'cpu:" in said("48", "48")


def test_where_a_device_has_no_limit_its_process_has_none() -> None:
    assert said("none") == "trained"
    assert said("48", "none") == "trained"
    assert said("1e9") == "trained"  # the machine's own limit comes first
