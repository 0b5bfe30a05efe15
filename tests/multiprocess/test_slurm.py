"""The launch script, on a Slurm of two nodes, and without any."""

import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.launcher import fork
from tests.support.slurm_cluster import CORES, ENVIRONMENT, ROOT, Slurm, started, what_is_missing

SCRIPT = str(ROOT / "examples/skyfx.sbatch")

STEP = re.compile(r"^(?:\[rank 0\] )?step (\d+)  loss (\S+)", re.M)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if reason := what_is_missing():
        pytest.skip(reason)
    with started(tmp_path_factory.mktemp("slurm")) as made:
        yield made


def processes_of(word: str) -> list[psutil.Process]:
    """Those with this word in their commands, whoever their parents are."""
    there = psutil.process_iter(["cmdline"])
    return [process for process in there if word in (process.info["cmdline"] or ())]


def without_slurm(folder: Path, *arguments: str, **environment: str) -> str:
    """What the script says on this host alone."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        ["bash", SCRIPT, *arguments],
        cwd=folder,
        env=ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_a_job_on_two_nodes_learns_what_one_host_learns(slurm: Slurm, tmp_path: Path) -> None:
    example = str(ROOT / "examples/hosts.py")
    job = slurm.submit(tmp_path, SCRIPT, example)
    assert job.ended() == ("COMPLETED", "0:0"), job.log
    steps = STEP.findall(job.log)
    assert [step for step, _ in steps] == [str(step) for step in range(10)], job.log
    said = tmp_path / "logs" / f"skyfx-{job.number}"
    assert sorted(str(path.parent.name) for path in said.glob("*/*")) == ["node1", "node2"]
    cache = slurm.environment["SKYFX_CACHE"]
    known = {"SKYFX_CACHE": cache}
    alone = fork(known, example, output=tmp_path / "alone", cores=CORES[:1])  # as each of the nodes
    assert alone.wait() == 0, alone.said
    assert STEP.findall(alone.said) == steps


WHERE = """
import os, socket
names = ("RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES")
print("is", *[os.environ.get(name) for name in names], "on", socket.gethostname())
"""


def test_each_node_has_as_many_processes_as_gpus(slurm: Slurm, tmp_path: Path) -> None:
    (tmp_path / "where.py").write_text(WHERE)
    job = slurm.submit(tmp_path, "--gpus=3", SCRIPT, "where.py")
    assert job.ended() == ("COMPLETED", "0:0"), job.log
    assert sorted(line for line in job.log.splitlines() if "] is " in line) == [
        "[rank 0] is 0 3 0,1 on node1",
        "[rank 1] is 1 3 0,1 on node1",
        "[rank 2] is 2 3 0 on node2",
    ]


FAILS = """
import os, pathlib, sys, time
there = pathlib.Path(sys.argv[1])
if os.environ["RANK"] == "0":
    there.touch()
    time.sleep(1000)
while not there.exists():
    time.sleep(0.05)
sys.exit("as it is told to")
"""


def test_where_one_node_fails_all_end(slurm: Slurm, tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text(FAILS)
    there = str(tmp_path / "there")
    job = slurm.submit(tmp_path, SCRIPT, "fails.py", there)
    job.until("as it is told to")
    assert job.ended() == ("FAILED", "1:0"), job.log
    assert processes_of(there) == []


GOES_ON = """
import os, pathlib, sys, time
saved = pathlib.Path(sys.argv[1]) / os.environ["RANK"]
if not saved.exists():
    saved.touch()
    print("begins")
    time.sleep(1000)
print("goes on, one of", os.environ["WORLD_SIZE"])
"""


def test_a_job_that_slurm_starts_again_goes_on(slurm: Slurm, tmp_path: Path) -> None:
    """As Slurm does when it has lost a node, or needs it for others."""
    (tmp_path / "goes_on.py").write_text(GOES_ON)
    run = tmp_path / "run"
    run.mkdir()
    job = slurm.submit(tmp_path, SCRIPT, "goes_on.py", str(run))
    for rank in range(2):
        job.until(rf"rank {rank}\] begins")
    slurm.answer("scontrol", "requeue", job.number, cwd=tmp_path)
    assert job.ended() == ("COMPLETED", "0:0"), job.log
    said = [line for line in job.log.splitlines() if line.startswith("[rank ")]
    assert sorted(said[:2]) == ["[rank 0] begins", "[rank 1] begins"]
    assert sorted(said[2:]) == [f"[rank {rank}] goes on, one of 2" for rank in range(2)]
    assert processes_of(str(run)) == []


def test_without_slurm_processes_are_on_this_host(tmp_path: Path) -> None:
    (tmp_path / "where.py").write_text(WHERE)
    said = without_slurm(tmp_path, "where.py", PROCESSES="2")
    assert sorted(line for line in said.splitlines() if "] is " in line) == [
        f"[rank {rank}] is {rank} 2 None on {socket.gethostname()}" for rank in range(2)
    ]


def test_it_asks_for_a_script(tmp_path: Path) -> None:
    done = subprocess.run(["bash", SCRIPT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("say which script to run")) == (2, 1)
