"""A device's memory limit is enforced: what a plan did not foresee fails, and says why."""

import re
import sys

import pytest

from tests.support.launcher import forked


def said(*limits: str) -> str:
    with forked([{}], "tests/jobs/greedy_job.py", *limits) as (process,):
        assert process.wait() == 0, process.said
        return process.said.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is resident")
def test_what_was_not_foreseen_fails_in_its_stage_and_the_pipeline_goes_on() -> None:
    """Twice: in a block of its own, and in blocks of the heap. The program's own data are free."""
    whole, parts = said("96").splitlines()
    assert "stage 0 on 'cpu' failed in the forward of micro-batch 0: MemoryError" in whole
    taken = re.search(r"of this process have taken (\d+) MiB of the CPUs' memory, of 96 MiB", whole)
    assert taken is not None
    assert 256 + 16 <= int(taken[1]) <= 256 + 96  # beside the parameters, within the limit
    assert "the pipeline may use 96 MiB of 'cpu': give it more" in whole
    assert "failed in the forward of micro-batch 0: MemoryError" in parts
    whole, parts = said("48", "48").splitlines()
    assert "stage 1 on 'cpu:1' failed" in whole
    assert "may use 48 MiB of 'cpu:1'" in whole


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to its data")
def test_a_hard_limit_refuses_the_allocation_no_longer_than_the_pipeline_lasts() -> None:
    refused, _ = said("hard", "96").splitlines()
    assert "failed in the forward of micro-batch 0: RuntimeError" in refused
    assert "the pipeline may use 96 MiB of 'cpu': give it more" in refused


def test_where_a_device_has_no_limit_its_process_has_none() -> None:
    trained = ["trained", "trained"]
    assert said("none").splitlines() == trained
    assert said("48", "none").splitlines() == trained
    assert said("1e9").splitlines() == trained  # the machine's own limit comes first
