r"""Unlike hosts on one machine: each a network namespace with a shaped link and a share of a core.

    host 1: eth0 ---- port 1 \\
    host 2: eth0 ---- port 2 --- a bridge in a namespace of its own
    ...                      /

Both ends of each cable are shaped by a token bucket, so a host sends and receives at its rate. Its
processes get a share of a core from the kernel's bandwidth control, some milliseconds at a time.
Needs root, Debian's iproute2 and control groups of version 1. All that it makes is removed at the
end.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CPU = Path("/sys/fs/cgroup/cpu")
PERIOD_US, QUOTA_US = 5_000, 1_000
"""After a pause a host runs at full speed for as long as its quota: as short as possible, but the
kernel allows no quota below a millisecond, and each turn begins with cold caches."""

PORT = 29_611
LIMIT_S = 5400
"""After which a command on the hosts is taken to hang."""

MTU = "60000"
"""As large as what a network card's offloading hands over at once; else each packet wakes us."""


@dataclass(frozen=True, slots=True)
class Host:
    """A host: `share` of a core, `mbit` megabits per second in each direction."""

    name: str
    share: float
    mbit: float


@dataclass(frozen=True, slots=True)
class Running:
    """Hosts that are there."""

    hosts: Sequence[Host]
    prefix: str

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Run a command on every host until all have ended; none is left in any case.

        Raises:
            RuntimeError: one has not ended well, or not in time.
        """
        workers = self._start(command, environment)
        try:
            _wait(workers)
        finally:
            for worker in workers:
                worker.kill()
            for worker in workers:
                worker.wait()

    def _start(
        self, command: Sequence[str], environment: Mapping[str, str]
    ) -> list[subprocess.Popen[bytes]]:
        """Start a command on every host, as a launcher with one process a host would."""
        return [
            subprocess.Popen(
                [
                    # `ip netns exec` would hide the control groups behind another /sys.
                    *("nsenter", f"--net=/run/netns/{self.prefix}{i}", "unshare", "--uts"),
                    *("sh", "-c", f'hostname {host.name}; exec "$@"', "sh", *command),
                ],
                env={
                    **os.environ,
                    **environment,
                    "RANK": str(i),
                    "WORLD_SIZE": str(len(self.hosts)),
                    "LOCAL_RANK": "0",
                    "LOCAL_WORLD_SIZE": "1",
                    "MASTER_ADDR": address(0),
                    "MASTER_PORT": str(PORT),
                    "GLOO_SOCKET_IFNAME": "eth0",
                    "OMP_NUM_THREADS": "1",
                    "QUOTA": str(CPU / f"{self.prefix}{i}"),
                    "SHARE": str(host.share),
                    "SWITCH": f"{self.prefix}s",
                },
            )
            for i, host in enumerate(self.hosts)
        ]


def _wait(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    end = time.monotonic() + LIMIT_S
    while any(worker.poll() is None for worker in workers):
        failed = [i for i, worker in enumerate(workers) if worker.poll() not in (None, 0)]
        if failed or time.monotonic() > end:
            raise RuntimeError(f"workers {failed} failed" if failed else "the workers hang")
        time.sleep(0.5)
    if any(worker.returncode for worker in workers):
        raise RuntimeError(f"workers ended with {[w.returncode for w in workers]}")


@contextmanager
def emulated(hosts: Sequence[Host]) -> Iterator[Running]:
    """Make the hosts, and remove them in the end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and not without the clearing up below
    prefix = f"sky{os.getpid() % 10_000}n"
    switch = f"{prefix}s"
    names = [f"{prefix}{i}" for i in range(len(hosts))]
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up", "mtu", MTU)
        for i, (host, name) in enumerate(zip(hosts, names, strict=True)):
            _cable(host, name, switch, f"port{i}", address(i))
            (CPU / name).mkdir()
        with _awake():
            yield Running(hosts, prefix)
    finally:
        for name in (*names, switch):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        for name in names:
            if (CPU / name).is_dir():
                (CPU / name).rmdir()


@contextmanager
def _awake() -> Iterator[None]:
    """Keep the cores from going idle between two turns of the hosts, at the lowest priority.

    A virtual machine's idle core is given to somebody else, and comes back late and with cold
    caches: hosts with a small share then take up to half as much processor time again.
    """
    spin = "import os; os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\nwhile True: pass"
    spinners = []
    try:
        for core in os.sched_getaffinity(0):
            command = ["taskset", "--cpu-list", str(core), sys.executable, "-c", spin]
            spinners.append(subprocess.Popen(command))
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def address(i: int) -> str:
    """The address of host `i` in its own network."""
    return f"10.77.0.{i + 1}"


def enter_quota() -> None:
    """From now on this process has its host's share of a core."""
    quota, share = Path(os.environ["QUOTA"]), float(os.environ["SHARE"])
    (quota / "cgroup.procs").write_text(str(os.getpid()))
    period = max(PERIOD_US, round(QUOTA_US / share))
    (quota / "cpu.cfs_period_us").write_text(str(period))
    (quota / "cpu.cfs_quota_us").write_text(str(round(period * share)))


def leave_quota() -> None:
    """From now on this process has whole cores: for what is no part of a measurement.

    It stays in its group. A thread that leaves it while it is stopped there may never run again.
    """
    (Path(os.environ["QUOTA"]) / "cpu.cfs_quota_us").write_text("-1")


def become(host: Host) -> None:
    """From now on this host has that one's rate and, within the quota, its share of a core."""
    _shape(Path(os.environ["QUOTA"]).name, "eth0", host.mbit)
    _shape(os.environ["SWITCH"], f"port{os.environ['RANK']}", host.mbit)
    os.environ["SHARE"] = str(host.share)


def throttled() -> dict[str, int]:
    """What the kernel has counted of this process's host."""
    lines = (Path(os.environ["QUOTA"]) / "cpu.stat").read_text().split("\n")
    return {k: int(v) for k, v in (line.split() for line in lines if line)}


def _cable(host: Host, name: str, switch: str, port: str, ip: str) -> None:
    _ip("netns", "add", name)
    _ip("link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", port, "netns", switch)
    _ip("-n", name, "addr", "add", f"{ip}/24", "dev", "eth0")
    for where, device in ((name, "eth0"), (name, "lo"), (switch, port)):
        _ip("-n", where, "link", "set", device, "up", *(() if device == "lo" else ("mtu", MTU)))
    _ip("-n", switch, "link", "set", port, "master", "bridge")
    for where, device in ((name, "eth0"), (switch, port)):
        _shape(where, device, host.mbit)


def _shape(where: str, device: str, mbit: float) -> None:
    rate, burst = f"{mbit}mbit", str(max(64_000, int(mbit * 125)))
    shape = ["tbf", "rate", rate, "burst", burst, "latency", "200ms"]
    _run("tc", "-n", where, "qdisc", "replace", "dev", device, "root", *shape)


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
