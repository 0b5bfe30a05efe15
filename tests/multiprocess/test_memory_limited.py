"""A model that is larger than any of the processes that run it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.jobs.memory_limited_job import LAYERS, batch, model
from tests.support.launcher import launch

MEMORY = Path("/sys/fs/cgroup/memory")
LIMIT_BYTES = 384 * 2**20
"""Three quarters of the model."""


@pytest.fixture
def limits() -> Iterator[str]:
    """Control groups 0 and 1 that may use no more, by the beginning of their path."""
    prefix = str(MEMORY / f"skyfx-{os.getpid()}-")
    folders = [Path(f"{prefix}{i}") for i in range(2)]
    try:
        for folder in folders:
            folder.mkdir()
            (folder / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
        yield prefix
    finally:
        for folder in folders:
            if folder.exists():
                folder.rmdir()


@pytest.mark.skipif(
    not os.access(MEMORY / "memory.limit_in_bytes", os.W_OK),
    reason="the kernel limits a process's memory by control groups (version 1), which needs root",
)
def test_each_process_holds_its_stage_alone(tmp_path: Path, limits: str) -> None:
    whole_bytes = LIMIT_BYTES * 4 // 3
    hungry = f"echo $$ > {limits}0/cgroup.procs; exec {sys.executable} -c 'b\"1\" * {whole_bytes}'"
    assert subprocess.run(["sh", "-c", hungry], check=False).returncode == -signal.SIGKILL
    torch.manual_seed(0)
    whole = model()
    state = whole.state_dict()
    assert sum(x.nbytes for x in state.values()) == whole_bytes
    names, weights = list(state), tmp_path / "weights"
    weights.mkdir()
    for i, some in enumerate((names[: LAYERS // 3], names[LAYERS // 3 :])):
        save_file({name: state[name] for name in some}, weights / f"{i}.safetensors")
    with torch.no_grad():
        expected = torch.cat([whole(part) for part in batch().split(4)])
    done = launch(2, "tests/jobs/memory_limited_job.py", str(weights), str(tmp_path), limits)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert sum(said["held"] for said in found) == LAYERS
    for said in found:
        assert 0 < said["held"] < LAYERS
        assert said["outputs"] == expected[:, :4].tolist()
