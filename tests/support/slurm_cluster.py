"""A Slurm of two nodes of this machine, each with a name, an address, a core and a daemon."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support import ROOT

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
"""What is started again waits until old credentials expire: here as short as may be."""

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


@contextmanager
def started(folder: Path) -> Iterator[Slurm]:
    """With its files in this folder; all of it ends in the end, also with this process."""
    write_configuration(folder)
    environment = ENVIRONMENT | {"SLURM_CONF": str(folder / "slurm.conf")}
    environment["SKYFX_CACHE"] = str(folder / "cache")
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
        yield Slurm(environment)
