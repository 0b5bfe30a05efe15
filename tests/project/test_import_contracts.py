"""The import contracts hold, and a tree that breaks one is found out."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support import ROOT


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as m; m()"]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(
        [*command, "--no-cache"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("skyfx", "solver", "runtime"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contracts_hold(tree: Path) -> None:
    found = lint(tree)
    assert "Contracts: 7 kept, 0 broken." in found.stdout, found.stdout + found.stderr


BROKEN = {
    "skyfx: from": ("skyfx/tracing/capture.py", "import skyfx.measurement.measure"),
    "runtime: from": ("runtime/rng/mt19937.py", "import skyfx.runtime.transport.local"),
    "solver: from": ("solver/costs/cost_model.py", "import skyfx.solver.planning.planner"),
    "methods: from": ("solver/methods/method.py", "import skyfx.solver.methods.portfolio"),
    "The solver never imports torch": ("solver/core/graph.py", "import torch"),
    "The runtime never solves": (
        "runtime/execution/stage.py",
        "import skyfx.solver.planning.planner",
    ),
    "Devices are known without a model": (
        "skyfx/devices/resolve.py",
        "import skyfx.tracing.capture",
    ),
}


def test_every_contract_is_found_broken(tree: Path) -> None:
    for file, line in BROKEN.values():
        path = tree / file
        path.write_text(f"{path.read_text()}\n\n{line}\n")
    found = lint(tree)
    assert found.returncode == 1
    broken = [row for row in found.stdout.splitlines() if row.endswith("BROKEN")]
    for contract in BROKEN:
        assert any(row.startswith(contract) for row in broken), (contract, found.stdout)


def test_the_runtime_does_not_reach_up(tree: Path) -> None:
    path = tree / "runtime/execution/stage.py"
    path.write_text(f"{path.read_text()}\n\nimport skyfx.tracing.capture\n")
    assert "skyfx.runtime is not allowed to import skyfx.tracing" in lint(tree).stdout


def test_packages_are_the_folders() -> None:
    configured = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        ".".join((*prefix, *path.parent.relative_to(ROOT / top).parts))
        for top, prefix in {
            "skyfx": ("skyfx",),
            "solver": ("skyfx", "solver"),
            "runtime": ("skyfx", "runtime"),
        }.items()
        for path in (ROOT / top).rglob("__init__.py")
        if not {"solver", "runtime"} & {*path.relative_to(ROOT / top).parts[:1]} or top != "skyfx"
    }
    assert set(configured["packages"]) == folders
