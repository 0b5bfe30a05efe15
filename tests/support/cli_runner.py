"""The planner's commands as a user runs them: real processes in a folder of small files."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from skyfx.solver import write
from tests.support.planning_instances import graph, hard_problem, node

Run = Callable[..., subprocess.CompletedProcess[str]]
PROGRAM = [sys.executable, "-m", "skyfx.solver"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small graph `g`, a cluster `c`, and a graph and a cluster too `hard` to finish."""
    small = graph([node("x", op="input", forward_s={}), node("a", ("x",)), node("b", ("a",))])
    write(small, tmp_path / "g.graph.json")
    (tmp_path / "c.cluster.toml").write_text(
        'format = "skyfx.cluster/1"\n'
        + "".join(f'[[devices]]\nname = "{name}"\ntype = "cpu"\n' for name in ("one", "two"))
    )
    hard_graph, hard_cluster = hard_problem()
    write(hard_graph, tmp_path / "hard.graph.json")
    write(hard_cluster, tmp_path / "hard.cluster.json")
    return tmp_path


@pytest.fixture
def skyfx(folder: Path) -> Run:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*PROGRAM, *arguments], cwd=folder, capture_output=True, text=True, check=False
        )

    return run


SOLVE = ("solve", "g.graph.json", "c.cluster.toml")
HARD = ("solve", "hard.graph.json", "hard.cluster.json")
CHECK = ("check", "g.graph.json", "c.cluster.toml", "p.plan.json")
