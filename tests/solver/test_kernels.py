"""Compiled kernels: none outlives the code that it was compiled from, and one process compiles."""

import itertools
import shutil
import subprocess
import sys
import threading
from pathlib import Path

from skyfx.solver.kernels import kernel
from tests.support import ROOT

MOVE = """
import os
import sys
import numpy as np
from skyfx.solver.costs.moves import Crossing
from skyfx.solver.problem.interval_tables import move

print("ready", flush=True)
input()
if forked := os.fork():  # as programs do that have imported skyfx
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]))
ones = np.ones(2)
print(move(0, 1, 0, Crossing(3 * ones, 0 * ones, ones, 0 * ones), np.ones((2, 2, 2))))
print(*(move.stats.cache_hits.values()))
"""


@kernel()
def advance_sum(rounds: int) -> float:
    total = 0.0
    for i in range(rounds):
        total = total * 0.5 + i
    return total


def started(folder: Path) -> "subprocess.Popen[str]":
    """A process that has imported the kernel, and calls it once it is told to."""
    process = subprocess.Popen(
        [sys.executable, "-c", MOVE],
        cwd=folder,
        env={"PYTHONPATH": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def run(folder: Path, processes: int = 1) -> list[list[str]]:
    """What processes print that call the kernel at the same time."""
    made = [started(folder) for _ in range(processes)]
    for process in made:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=200)[0].split() for process in made]
    assert [process.returncode for process in made] == [0] * processes
    return sorted(said)


def test_a_kernel_is_compiled_once_until_what_it_uses_changes(tmp_path: Path) -> None:
    """The function of a move is in another file than the kernel."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "skyfx", tmp_path / "skyfx", ignore=ignored, symlinks=False)
    assert run(tmp_path, processes=3) == [["4.0"], ["4.0", "1"], ["4.0", "1"]]
    moves = tmp_path / "skyfx/solver/costs/moves.py"
    source = moves.read_text()
    moves.write_text(source.replace("wire[1] * size_bytes", "5 * wire[1] * size_bytes"))
    assert run(tmp_path) == [["16.0"]]


def test_other_threads_go_on_while_a_kernel_runs() -> None:
    """Such as those that tell other processes that this one is alive."""
    stopped, ticks = threading.Event(), itertools.count()
    seen = [0]

    def tick() -> None:
        while not stopped.wait(0.001):
            seen[0] = next(ticks)

    thread = threading.Thread(target=tick)
    advance_sum(1)  # compiled
    thread.start()
    try:
        rounds, moved = 10_000, 0
        while moved < 10:
            before = seen[0]
            advance_sum(rounds)
            moved = seen[0] - before
            rounds *= 2
            assert rounds < 10**11  # minutes
    finally:
        stopped.set()
        thread.join()
