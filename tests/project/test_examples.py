"""The examples, as a user runs them."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT


def run(folder: Path, *command: str) -> str:
    """What it prints; in a folder of its own."""
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def example(name: str) -> str:
    return str(ROOT / "examples" / name)


def test_quickstart(tmp_path: Path) -> None:
    said = run(tmp_path, example("quickstart.py"))
    losses = [float(line.split()[-1]) for line in said.splitlines() if "  loss " in line]
    assert losses[-1] < losses[0]
    assert "inferred (16, 32, 8)" in said


def test_fine_tuning_equals_plain_torch(tmp_path: Path) -> None:
    said = run(tmp_path, example("word_senses.py"), "--steps", "1")
    assert "gap" in said
    assert "largest difference to one device's loss: 0.0e+00" in said


def test_an_image_model_learns_to_read_digits(tmp_path: Path) -> None:
    said = run(tmp_path, example("digits.py"), "--steps", "40")
    share = float(said.rpartition("right about ")[2].partition("%")[0])
    assert share > 70  # guessing: 10


def test_a_network_learns_from_files_in_the_format_of_cifar_10(tmp_path: Path) -> None:
    said = run(tmp_path, example("cifar.py"))
    share = float(said.rpartition("right about ")[2].partition("%")[0])
    assert share > 70  # guessing: 10


def test_an_offline_plan_is_run(tmp_path: Path) -> None:
    graph, cluster, plan = "net.graph.json", "two.cluster.json", "net.plan.json"
    model = f"{example('offline_plan.py')}:build"
    run(
        tmp_path,
        *("-m", "skyfx", "capture", model, "-d", "cpu", "-d", "cpu"),
        *("-o", graph, "--cluster", cluster),
    )
    run(tmp_path, "-m", "skyfx", "solve", graph, cluster, "-o", plan)
    assert "loss" in run(tmp_path, example("offline_plan.py"), plan)


def losses(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("step ")]


def test_fine_tuning_on_glue_equals_one_device_and_goes_on_in_mid_epoch(tmp_path: Path) -> None:
    """Losses and accuracy of a whole epoch in every digit, dropout included."""
    script = example("bert_mnli.py")
    whole = run(tmp_path, script, "--layers", "2", "--compare")
    assert "largest difference to one device's loss: 0.0e+00" in whole
    pipelined, alone = (line.partition(": ")[2] for line in whole.splitlines() if ": loss " in line)
    assert pipelined == alone
    expected = [line.partition("  one device")[0] for line in losses(whole)]
    assert len(expected) == 8
    first = run(tmp_path, script, "--layers", "2", "--run", "kept", "--max-steps", "3")
    second = run(tmp_path, script, "--layers", "2", "--run", "kept")
    assert (losses(first), losses(second)) == (expected[:3], expected[3:])
    assert pipelined in second


def test_streams(tmp_path: Path) -> None:
    assert "12 batches: " in run(tmp_path, example("streaming.py"))


@pytest.mark.parametrize("launcher", [(), ("-m", "torch.distributed.run", "--standalone")])
def test_your_own_hosts(tmp_path: Path, launcher: tuple[str, ...]) -> None:
    processes = ("--nproc-per-node=2",) if launcher else ()
    said = run(tmp_path, *launcher, *processes, example("hosts.py"))
    assert [line.split()[1] for line in said.splitlines() if line.startswith("step ")] == [
        str(step) for step in range(10)
    ]
