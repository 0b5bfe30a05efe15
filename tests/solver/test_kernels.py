"""No compiled kernel outlives the code that it was compiled from."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT

MOVE = """
import numpy as np
from skyfx.solver.costs.moves import Crossing
from skyfx.solver.problem.interval_tables import move

ones = np.ones(2)
print(move(0, 1, 0, Crossing(3 * ones, 0 * ones, ones, 0 * ones), np.ones((2, 2, 2))))
print(*(move.stats.cache_hits.values()))
"""


def run(folder: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", MOVE],
        cwd=folder,
        env={"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_kernel_is_compiled_again_when_what_it_uses_changes(tmp_path: Path) -> None:
    """The function of a move is in another file than the kernel."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "skyfx", tmp_path / "skyfx", ignore=ignored, symlinks=False)
    assert run(tmp_path) == ["4.0"]
    assert run(tmp_path) == ["4.0", "1"]
    moves = tmp_path / "skyfx/solver/costs/moves.py"
    source = moves.read_text()
    moves.write_text(source.replace("wire[1] * size_bytes", "5 * wire[1] * size_bytes"))
    assert run(tmp_path) == ["16.0"]
