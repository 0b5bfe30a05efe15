"""Jobs of several processes, as a launcher starts them."""

import os
import subprocess
import sys

from tests.support import ROOT

__all__: list[str] = ["launch"]


def launch(
    num_processes: int, *arguments: str, timeout_s: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run a program as each of so many processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*command, f"--nproc-per-node={num_processes}", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
