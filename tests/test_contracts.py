"""The import contracts hold, and a tree that breaks one is found out."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONTRACTS = """
[importlinter]
root_package = skyfx
"""


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
    assert "Contracts: 3 kept, 0 broken." in found.stdout, found.stdout + found.stderr


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("solver/graph.py", "import torch", "The solver never imports torch"),
        ("solver/graph.py", "import skyfx.runtime.stage", "The rooms"),
        ("runtime/stage.py", "import skyfx.solver.solving", "The runtime never solves"),
        ("runtime/stage.py", "import skyfx.captures", "The rooms"),
    ],
)
def test_a_forbidden_import_is_found(tree: Path, file: str, line: str, contract: str) -> None:
    path = tree / file
    path.write_text(f"{path.read_text()}\n\n{line}\n")
    found = lint(tree)
    assert found.returncode == 1
    broken = [row for row in found.stdout.splitlines() if row.endswith("BROKEN")]
    assert any(row.startswith(contract) for row in broken), found.stdout
