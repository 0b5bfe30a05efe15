"""Processes that do not all do the same: one clear error in each within seconds, or the result."""

import json
from pathlib import Path
from typing import Any

import pytest

from skyfx.runtime.distributed.heartbeat import SILENT_S
from tests.support.launcher import launch, torchrun

SOON_S, LATE_S = 20.0, SILENT_S + 10.0
"""All have to end within the first; one whose peer may only be slow is asked within the second."""

SAME = "Give all processes the same"
ORDER = "all processes have to make the same calls, in the same order"
TOLD = {
    "other seeds": "'0.0.weight' (and 3 more) has other values on rank 1 than on rank 0.\nSeed or "
    "load the model alike in all processes, or let all take the first one's: "
    'partition(..., initial="first")',
    "other arguments": f"partition: gap is 0.01 on rank 0, 0.02 on rank 1. {SAME}",
    "other widths": "the model is not the same in all processes: 'weight' is 8x8 float32 on rank "
    "0, 9x8 float32 on rank 1",
    "other example shapes": "partition: example_inputs is 8x8 float32 on rank 0, 10x8 float32 on "
    f"rank 1. {SAME}",
    "a wrong example on rank 0": "the batch holds 0 samples, expected at least 1",
    "other batches": "train_step (step 1): the batch has other values on rank 1 than on rank 0. "
    f"{SAME}, or None to all but rank 1",
    "other batch sizes": "train_step (step 1): the batch is 8x8 float32 on rank 0, 10x8 float32 on "
    f"rank 1. {SAME}, or None to all but rank 1",
    "other targets": "train_step (step 1): the targets have other values on rank 1 than on rank 0. "
    f"{SAME}, or None to all but rank 0",
    "state_dict on rank 0": f"rank 0 calls state_dict, rank 1 train_step (step 1): {ORDER}",
    "evaluation on rank 0": f"rank 0 calls pipeline(batch), rank 1 train_step (step 1): {ORDER}",
    "other modules": f"state_dict: module is 1 on rank 0, 0 on rank 1. {SAME}",
    "other states": "load_state_dict: the state has other values on rank 1 than on rank 0. " + SAME,
    "other norms": f"clip_grad_norm_: max_norm is 1.0 on rank 0, 2.0 on rank 1. {SAME}",
    "shorter stream": f"rank 0 calls stream (its end), rank 1 stream (batch 3): {ORDER}",
    "stream left early": f"rank 0 calls stream (batch 3), rank 1 train_step (step 1): {ORDER}",
    "profile on rank 0": f"rank 0 calls profile, rank 1 clip_grad_norm_: {ORDER}",
    "partition on rank 0": f"rank 0 calls partition, rank 1 train_step (step 1): {ORDER}",
    "no batch at the first stage": "the batch is None in the process of the first stage, which "
    "reads it",
    "no batch at all": "the batch is None in the process of the first stage, which reads it",
    "no targets at the last stage": "train_step (step 1): rank 0 reads the targets and got None, "
    "rank 1 got values. Give the targets to rank 0",
    "more targets than samples": "the batch holds 8 samples, but the targets h",
    "a batch that one rank cannot read": "the batch is a str, expected a tensor, a tuple of the "
    "model's positional arguments or a dict of its keyword arguments",
    "another nesting and None": "None was given for a batch that is nested in another way, or "
    "holds other constants, than those that this process has seen: give it there once",
    "autocast on rank 0": "train_step (step 2): autocast is (('cpu', torch.bfloat16),) on rank 0, "
    f"off on rank 1. {SAME}",
    "another rate on rank 0": "train_step (step 2): changed attributes is 0.2.p=0.5 on rank 0, "
    f"none on rank 1. {SAME}",
    "checkpoint on rank 0": f"rank 0 calls checkpoints, rank 1 train_step (step 2): {ORDER}",
    "the same again": "",
}

pytestmark = pytest.mark.timeout(600)


def reports(folder: Path, num_processes: int, how: str) -> list[dict[str, Any]]:
    done = launch(num_processes, "tests/jobs/careless_job.py", str(folder), how)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(num_processes)]


def test_what_differs_is_said_in_all_processes_which_can_go_on(tmp_path: Path) -> None:
    for rank, said in enumerate(reports(tmp_path, 2, "mismatches")):
        assert said.keys() == TOLD.keys()
        for name, expected in TOLD.items():
            kind, _, text = said[name]["error"].partition(": ")
            assert text.removeprefix(f"rank {1 - rank}: ").startswith(expected)
            assert (kind in ("DisagreementError", "TypeError", "ValueError")) == bool(expected)
            assert said[name]["seconds"] < SOON_S


@pytest.mark.parametrize("num_processes", [2, 3])
def test_none_where_nothing_is_read_and_the_first_ones_values_give_the_same(
    num_processes: int, tmp_path: Path
) -> None:
    """Losses and outputs in every digit; also for micro-batches of shapes that are new."""
    for said in reports(tmp_path, num_processes, "right"):
        assert said["others"] == [said["everywhere"]] * 3


def test_a_process_that_has_ended_is_waited_for_by_nobody(tmp_path: Path) -> None:
    """`if rank == 0: pipeline.state_dict()` at a script's end, and other numbers of steps."""
    caller, ended = reports(tmp_path, 2, "leave")
    assert caller["error"].endswith(
        "has left: its program has ended, and state_dict needs all processes"
    )
    assert caller["seconds"] < LATE_S
    assert ended["error"] == ""
    *callers, ended = reports(tmp_path, 3, "fewer steps")
    for said in callers:
        assert said["error"].endswith(
            "has left: its program has ended, and train_step (step 4) needs all processes"
        )
        assert said["seconds"] < LATE_S
    assert ended["error"] == ""


def test_a_call_on_rank_0_and_a_barrier_of_the_program_elsewhere(tmp_path: Path) -> None:
    """Started by torchrun, as users do."""
    done = torchrun(3, "tests/jobs/careless_job.py", str(tmp_path), "barrier")
    assert done.returncode == 0, done.stderr[-3000:]
    first, *others = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3))
    kind, _, text = first["error"].partition(": ")
    assert kind == "DisagreementError"
    assert " calls state_dict, rank " in text
    assert " waits in torch's barrier (careless_job.py:" in text
    assert done.stderr.count(text) >= len(others)  # there torch says that a connection was closed
    for said in (first, *others):
        assert said["error"]
        assert said["seconds"] < LATE_S
