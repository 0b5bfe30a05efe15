"""What the documents say is run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

TRAIN = """
import torch
from torch import nn

def build():
    return nn.Sequential(*(nn.Linear(16, 16) for _ in range(3))), torch.randn(16, 16)
"""


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.M | re.S)


def assert_runs(*command: str, folder: Path) -> None:
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_readme_begins_with_the_two_commands() -> None:
    first = re.search(r"^```\w*\n(.*?)^```", DOCUMENTS[0].read_text(), re.M | re.S)
    assert first is not None
    commands = first[1].splitlines()
    assert commands == ["python3 scripts/demo.py", "python3 scripts/test.py"]
    assert all((ROOT / command.split()[1]).exists() for command in commands)


def test_the_readmes_python_runs(tmp_path: Path) -> None:
    code = blocks(ROOT / "README.md", "python")
    assert len(code) == 3
    assert_runs(sys.executable, "-c", "\n".join(code), folder=tmp_path)


def test_the_readmes_offline_commands_run(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAIN)
    offline = blocks(ROOT / "README.md", "console")[1].splitlines()
    assert [line.split()[1] for line in offline] == [
        *("capture", "solve", "check", "show", "explain", "simulate", "report"),
    ]
    for line in offline:
        assert_runs(sys.executable, "-m", *shlex.split(line), folder=tmp_path)


def test_the_example_trains_and_says_so(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, ROOT / "examples/word_senses.py", "--steps", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "gap" in ended.stdout
    assert "largest difference to one device's loss: 0.0e+00" in ended.stdout


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        assert (document.parent / target).exists(), target
