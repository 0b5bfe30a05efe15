"""The examples, in this process; the walk runs their commands as a user does."""

import runpy
import sys
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from unittest import mock

import pytest
import torch

from tests.support import ROOT
from tests.support.cli_runner import run_command
from tests.support.launcher import launch, torchrun

Run = Callable[..., str]

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs an example in a folder of its own, and returns what it prints."""

    def called(name: str, *arguments: str) -> str:
        path, threads = str(ROOT / "examples" / name), torch.get_num_threads()
        capsys.readouterr()
        try:
            with (
                chdir(tmp_path),
                mock.patch.object(sys, "argv", [path, *arguments]),
                mock.patch.object(sys, "path", [str(ROOT / "examples"), *sys.path]),
            ):
                runpy.run_path(path, run_name="__main__")
        finally:
            torch.set_num_threads(threads)
        assert not torch.distributed.is_initialized()
        return capsys.readouterr().out

    return called


def test_quickstart(run: Run) -> None:
    said = run("quickstart.py")
    losses = [float(line.split()[-1]) for line in said.splitlines() if "  loss " in line]
    assert losses[-1] < losses[0]
    assert "inferred (16, 32, 8)" in said


def test_fine_tuning_equals_plain_torch(run: Run) -> None:
    said = run("word_senses.py", "--steps", "1", "--layers", "3")
    assert "gap" in said
    assert "largest difference to one device's loss: 0.0e+00" in said


def test_an_image_model_learns_to_read_digits(run: Run) -> None:
    said = run("digits.py", "--steps", "40")
    share = float(said.rpartition("right about ")[2].partition("%")[0])
    assert share > 70  # guessing: 10


def test_a_network_learns_from_files_in_the_format_of_cifar_10(run: Run) -> None:
    said = run("cifar.py")
    share = float(said.rpartition("right about ")[2].partition("%")[0])
    assert share > 70  # guessing: 10


def test_an_offline_plan_is_run(tmp_path: Path, run: Run) -> None:
    graph, cluster, plan = "net.graph.json", "two.cluster.json", "net.plan.json"
    model = f"{ROOT / 'examples/offline_plan.py'}:build"
    made = (
        ("capture", model, "-d", "cpu", "-d", "cpu", "-o", graph, "--cluster", cluster),
        ("solve", graph, cluster, "-o", plan),
    )
    for arguments in made:
        done = run_command(*arguments, folder=tmp_path)
        assert done.returncode == 0, done.stderr
    assert "loss" in run("offline_plan.py", plan)


def losses(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("step ")]


def test_fine_tuning_on_glue_equals_one_device_and_goes_on_in_mid_epoch(run: Run) -> None:
    """Losses and accuracy of a whole epoch in every digit, dropout included."""
    small = ("bert_mnli.py", "--layers", "2", "--width", "32")
    whole = run(*small, "--compare")
    assert "largest difference to one device's loss: 0.0e+00" in whole
    pipelined, alone = (line.partition(": ")[2] for line in whole.splitlines() if ": loss " in line)
    assert pipelined == alone
    expected = [line.partition("  one device")[0] for line in losses(whole)]
    assert len(expected) == 8
    first = run(*small, "--run", "kept", "--max-steps", "3")
    second = run(*small, "--run", "kept")
    assert (losses(first), losses(second)) == (expected[:3], expected[3:])
    assert pipelined in second


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")  # peft asks for it
def test_adapters_train_within_limits_that_the_model_exceeds(run: Run, tmp_path: Path) -> None:
    said = run("lora.py", "adapter", "--steps", "3", "--layers", "4")
    assert "best single device does not fit" in said
    first, *_, last = (float(line.split()[-1]) for line in losses(said))
    assert last < first
    assert float(said.split()[-1]) < last  # merged, without dropout
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def test_streams(run: Run) -> None:
    assert "12 batches: " in run("streaming.py")


@pytest.mark.parametrize("num_processes", [1, 2])
def test_your_own_hosts(num_processes: int) -> None:
    """In processes of their own, as they stay members of a process group."""
    started = launch if num_processes == 1 else torchrun
    done = started(num_processes, "examples/hosts.py")
    assert done.returncode == 0, done.stderr
    steps = [line.split()[1] for line in done.stderr.splitlines() if line.startswith("step ")]
    assert steps == [str(step) for step in range(10)]
