"""The launch script, on a Slurm of two nodes, and without any.

The nodes are of this machine, each with a name, an address, a core and a daemon of its own.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = str(ROOT / "examples/skyfx.sbatch")
PATIENCE_S = 240.0
UNDER_WAY = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING"}

CORES = sorted(os.sched_getaffinity(0))
CORES = [CORES[0], CORES[1 % len(CORES)]]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
ENVIRONMENT |= {
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"]),
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
}

STEP = re.compile(r"^(?:\[rank 0\] )?step (\d+)  loss (\S+)", re.M)

CONFIGURATION = """
ClusterName=skyfx
SlurmctldHost=controller(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
FirstJobId={first_job}
KillWait=5
GresTypes=gpu
NodeName=node1 NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=1000 Gres=gpu:2
NodeName=node2 NodeAddr=127.0.0.2 Port={ports[2]} CPUs=2 RealMemory=1000 Gres=gpu:1
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
"""Requeued jobs wait until their old credentials have expired: here as short as Slurm allows."""

GPUS = """
NodeName=node1 Name=gpu File=/dev/null,/dev/zero
NodeName=node2 Name=gpu File=/dev/full
"""
"""Slurm hands out any devices that there are; torch sees no GPUs in these."""

DAEMONS = """
hostname controller
mount --bind hosts /etc/hosts
munged --force --foreground --num-threads=2 --key-file="$PWD/munge/key" \
    --socket="$PWD/munge/socket" --pid-file="$PWD/munge/pid" --seed-file="$PWD/munge/seed" \
    --log-file="$PWD/munge/log" &
until [ -S munge/socket ]; do sleep 0.02; done
slurmctld -D -i &
node() { taskset --cpu-list "$2" unshare --uts sh -c 'hostname "$0"; exec slurmd -D -N "$0"' "$1"; }
node node1 "$1" &
node node2 "$2" &
cat
"""
"""The first process of a namespace, with which all others end; it ends when nobody writes to it."""

NAMESPACE = ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


def what_is_missing() -> str | None:
    """Why no Slurm can be started here, if so."""
    programs = ("sbatch", "slurmctld", "slurmd", "munged")
    if not all(shutil.which(program, path=ENVIRONMENT["PATH"]) for program in programs):
        return "Slurm is not installed (Debian has it in slurm-wlm and munge)"
    tried = [*NAMESPACE, "true"]
    if os.geteuid() != 0 or subprocess.run(tried, capture_output=True, check=False).returncode:
        return "nodes with names and addresses of their own (unshare) can be started by root alone"
    return None


@dataclass(frozen=True)
class Job:
    """A job of which the log is in a folder of its own."""

    slurm: "Slurm"
    folder: Path
    number: str

    @property
    def log(self) -> str:
        path = self.folder / f"skyfx-{self.number}.out"
        return path.read_text() if path.exists() else ""

    def fact(self, name: str) -> str:
        """What Slurm says of it."""
        said = self.slurm.answer("scontrol", "show", "job", self.number, cwd=self.folder)
        return re.findall(rf"\b{name}=(\S+)", said)[0]

    def until(self, pattern: str) -> None:
        """Wait until the log has this."""
        end_s = time.monotonic() + PATIENCE_S
        while not re.search(pattern, self.log, re.M):
            assert time.monotonic() < end_s, self.log
            assert self.fact("JobState") in UNDER_WAY, self.log
            time.sleep(0.05)

    def ended(self) -> tuple[str, str]:
        """How it ends, when it has: by a word and by a number."""
        end_s = time.monotonic() + PATIENCE_S
        while (state := self.fact("JobState")) in UNDER_WAY:
            assert time.monotonic() < end_s, self.log
            time.sleep(0.1)
        return state, self.fact("ExitCode")


@dataclass(frozen=True)
class Slurm:
    """A controller and two nodes."""

    environment: dict[str, str]

    def answer(self, *command: str, cwd: Path) -> str:
        return subprocess.run(
            command, cwd=cwd, env=self.environment, capture_output=True, text=True, check=True
        ).stdout

    def submit(self, folder: Path, *arguments: str) -> Job:
        number = self.answer("sbatch", "--parsable", *arguments, cwd=folder).strip()
        return Job(self, folder, number)


def write_configuration(folder: Path) -> None:
    for name in ("munge", "state", "node1", "node2"):
        (folder / name).mkdir()
    (folder / "munge/key").write_bytes(os.urandom(128))
    (folder / "munge/key").chmod(0o600)
    (folder / "hosts").write_text("127.0.0.1 localhost controller node1\n127.0.0.2 node2\n")
    (folder / "gres.conf").write_text(GPUS)
    free = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = [server.getsockname()[1] for server in free]
    for server in free:
        server.close()
    first_job = os.getpid() % 2000 * 10 + 1  # no two runs' jobs meet at the same port
    said = CONFIGURATION.format(folder=folder, ports=ports, first_job=first_job)
    (folder / "slurm.conf").write_text(said)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if reason := what_is_missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    write_configuration(folder)
    environment = ENVIRONMENT | {"SLURM_CONF": str(folder / "slurm.conf")}
    environment["SKYFX_CACHE"] = str(folder / "cache")
    made = Slurm(environment)
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            [*NAMESPACE, "bash", "-euc", DAEMONS, "bash", *map(str, CORES)],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
        ) as daemons,
    ):
        end_s = time.monotonic() + PATIENCE_S
        ask = ["sinfo", "--noheader", "--Node", "--format=%T"]
        asked = {"env": environment, "capture_output": True, "text": True}
        while subprocess.run(ask, **asked, check=False).stdout != "idle\nidle\n":
            said = (folder / "log").read_text()
            assert daemons.poll() is None, said
            assert time.monotonic() < end_s, said
            time.sleep(0.05)
        yield made


def processes_of(word: str) -> list[psutil.Process]:
    """Those with this word in their commands, whoever their parents are."""
    there = psutil.process_iter(["cmdline"])
    return [process for process in there if word in (process.info["cmdline"] or ())]


def without_slurm(folder: Path, *arguments: str, **environment: str) -> str:
    """What the script says on this host alone, on as many cores as the nodes have."""
    folder.mkdir(exist_ok=True)
    cores = ",".join(map(str, sorted(set(CORES))))
    done = subprocess.run(
        ["taskset", "--cpu-list", cores, "bash", SCRIPT, *arguments],
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
    alone = without_slurm(tmp_path / "alone", example, PROCESSES="2", SKYFX_CACHE=cache)
    assert STEP.findall(alone) == steps


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


def test_a_job_that_starts_again_goes_on(slurm: Slurm, tmp_path: Path) -> None:
    """As Slurm does when it has lost a node, or needs it for others."""
    example, run = str(ROOT / "examples/elastic.py"), str(tmp_path / "run")
    job = slurm.submit(tmp_path, SCRIPT, example, run, "--steps=12")
    job.until("step 4 ")
    slurm.answer("scontrol", "requeue", job.number, cwd=tmp_path)
    assert job.ended() == ("COMPLETED", "0:0"), job.log
    assert job.fact("Restarts") == "1"
    steps = [int(step) for step, _ in STEP.findall(job.log)]
    assert steps == sorted(steps), job.log
    assert set(steps) == set(range(1, 13))
    assert len(steps) in (12, 13)  # the last one before may not have been saved yet
    assert processes_of(run) == []


def test_without_slurm_it_is_one_process_of_this_host(tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "where.py").write_text(WHERE)
    said = without_slurm(folder, "where.py")
    assert f"[rank 0] is 0 1 None on {socket.gethostname()}" in said.splitlines()


def test_it_asks_for_a_script(tmp_path: Path) -> None:
    done = subprocess.run(["bash", SCRIPT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("say which script to run")) == (2, 1)
