"""The commands in a folder of small files: in this process, or as a user runs them."""

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from unittest import mock

import pytest
from typer.testing import CliRunner

from skyfx.cli import app
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


def run_command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in this process; it leaves no log handler, module or path behind."""
    with chdir(folder), _unchanged():
        done = CliRunner().invoke(app, arguments, prog_name="skyfx", catch_exceptions=False)
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


@contextmanager
def _unchanged() -> Iterator[None]:
    log = logging.getLogger("skyfx")
    level, handlers = log.level, list(log.handlers)
    modules = set(sys.modules)
    try:
        with mock.patch.object(sys, "path", list(sys.path)):
            yield
    finally:
        log.setLevel(level)
        log.handlers[:] = handlers
        for name in {"model"} & (sys.modules.keys() - modules):  # the one that commands capture
            del sys.modules[name]


@pytest.fixture
def skyfx(folder: Path) -> Run:
    """The command `skyfx`, in this process."""
    return lambda *arguments: run_command(*arguments, folder=folder)


@pytest.fixture
def skyfx_process(folder: Path) -> Run:
    """The planner's commands as a user runs them: a process each."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*PROGRAM, *arguments], cwd=folder, capture_output=True, text=True, check=False
        )

    return run


SOLVE = ("solve", "g.graph.json", "c.cluster.toml")
HARD = ("solve", "hard.graph.json", "hard.cluster.json")
CHECK = ("check", "g.graph.json", "c.cluster.toml", "p.plan.json")
