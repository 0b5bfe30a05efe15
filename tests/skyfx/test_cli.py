"""From a model to a running plan, by the command line alone: each step is a real process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from skyfx.solver import Cluster, Graph, Plan
from skyfx.solver.core import files
from tests.support.cli_runner import run_command
from tests.support.independent_validator import referee_faults

MODEL = """
import torch
from torch import nn

def build():
    layers = [nn.Linear(32, 32) for _ in range(4)]
    return nn.Sequential(*layers), torch.randn(16, 32)

class Reads(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.table = nn.RNN(4, 4), nn.Linear(4, 4)

    def forward(self, x, table):
        return self.layer(x + self.table(table)[: len(x), None])[0]

def timed():
    return Reads(), (torch.randn(5, 16, 4), torch.randn(16, 4))

def bare():
    return nn.Linear(2, 2)

def sized(width):
    return nn.Linear(width, 2)

net = nn.Linear(2, 2)
number = 3
"""
RUN = """
import skyfx
import torch
from model import build

model, x = build()
expected = torch.cat([model(part) for part in x.split(2)])
with skyfx.partition(model, "m.cluster.json", example_inputs=x, plan="m.plan.json") as pipeline:
    print("same" if pipeline(x).equal(expected) else "other")
"""


def skyfx(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "skyfx", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    return tmp_path


def test_capture_solve_check_show(folder: Path) -> None:
    names = ("m.graph.json", "m.cluster.json", "m.plan.json")
    devices = ("-d", "cpu", "-d", "cpu", "--cluster", names[1])
    captured = skyfx("capture", "model.py:build", "-o", names[0], *devices, folder=folder)
    assert (captured.returncode, captured.stdout) == (0, ""), captured.stderr
    solved = skyfx("solve", *names[:2], "-o", names[2], folder=folder)
    assert solved.returncode == 0, solved.stderr
    checked = skyfx("check", *names, folder=folder)
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.startswith("valid")
    shown = skyfx("show", "m.plan.json", folder=folder)
    assert "bottleneck" in shown.stdout
    graph = files.read(folder / "m.graph.json", Graph)
    assert graph.microbatch_size == 2
    cluster = files.read(folder / "m.cluster.json", Cluster)
    assert referee_faults(graph, cluster, files.read(folder / "m.plan.json", Plan)) == []
    assert "memory_bytes" not in json.loads((folder / "m.cluster.json").read_text())["devices"][0]
    ran = subprocess.run(
        [sys.executable, "-c", RUN], cwd=folder, capture_output=True, text=True, check=False
    )
    assert ran.stdout == "same\n", ran.stderr


def test_samples_may_be_in_another_dimension(folder: Path) -> None:
    dims = ("--batch-dim", "x=1", "--batch-dim", "1=none")
    done = run_command("capture", "model.py:timed", "-o", "t.graph.json", *dims, folder=folder)
    assert done.returncode == 0, done.stderr
    graph = files.read(folder / "t.graph.json", Graph)
    assert graph.microbatch_size == 2  # of 16 samples in 8 micro-batches


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("model.py:nothing -o new.json", "model.py has no function 'nothing'"),
        ("model.py:number -o new.json", "model.py has no function 'number'"),
        (
            "model.py:net -o new.json",
            "model.py:net is a model; expected a function without arguments that returns the model",
        ),
        (
            "model.py:sized -o new.json",
            "model.py:sized: missing a required argument: 'width'; expected a function without",
        ),
        ("model.py -o new.json", "names no function, expected FILE.py:NAME"),
        ("nowhere.py:build -o new.json", "nowhere.py"),
        ("no.such.module:build -o new.json", "No module named 'no'"),
        ("model.py:build -o model.py", "model.py exists; use --force"),
        ("model.py:bare -o new.json", "Linear brings no example inputs of its own"),
        (
            "model.py:timed -o new.json --batch-dim x=first",
            "--batch-dim x=first: expected ARGUMENT=",
        ),
        ("model.py:timed -o new.json --batch-dim 1 --batch-dim y=1", "--batch-dim 1: expected"),
        ("model.py:timed -o new.json --batch-dim y=1", "names 'y', which is no argument"),
        ("model.py:build -o new.json -d cuda:63", "no device 'cuda:63' on this machine"),
    ],
)
def test_what_cannot_be_captured_is_refused_in_one_line(
    folder: Path, arguments: str, message: str
) -> None:
    refused = run_command("capture", *arguments.split(), folder=folder)
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert message in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert not (folder / "new.json").exists()
