"""A device's memory limit is enforced: what a plan did not foresee fails, and says why."""

import subprocess
import sys

import pytest

from tests.support import ROOT

# Trains within its limit; then the loss wants 256 MiB that nobody has planned for.
SCRIPT = """
import resource, sys, torch
from torch import nn
import skyfx

SIZE = 1024
model = nn.Sequential(*(nn.Linear(SIZE, SIZE) for _ in range(4)))
x = torch.ones(64, SIZE)

def greedy(outputs, targets):
    return nn.functional.mse_loss(outputs, targets) + 0 * torch.empty(2**26)[0]

limits = [None if word == "none" else float(word) * 2**20 for word in sys.argv[1:]]
devices = [skyfx.Device("cpu", memory_bytes=limit) for limit in limits]
with skyfx.partition(model, devices, example_inputs=x, num_microbatches=2) as pipeline:
    optimizer = torch.optim.AdamW(pipeline.parameters())
    for _ in range(3):
        pipeline.train_step(x, x, nn.functional.mse_loss)
        optimizer.step()
        optimizer.zero_grad()
    try:
        pipeline.train_step(x, x, greedy)
        print("trained")
    except skyfx.StageError as error:
        print(error)
    pipeline.train_step(x, x, nn.functional.mse_loss)  # goes on
torch.empty(2**27)
assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY
"""


def said(*limits: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *limits],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


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
