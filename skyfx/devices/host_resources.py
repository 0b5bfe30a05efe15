"""What machine this is, and what this process may use of it within its container's limits."""

import math
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def cores() -> float:
    """How many cores' time this process gets; a container may get part of one."""
    affinity = float(len(os.sched_getaffinity(0)))
    quotas = [affinity]
    for folder in _folders("cpu"):
        words = _words(folder / "cpu.max")  # of version 2: `max 100000` or `50000 100000`
        if not words:
            words = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        if len(words) == 2 and words[0].isdigit():
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas)


def has_quota() -> bool:
    """Whether a quota gives this process less time than the cores that it may run on."""
    return cores() < len(os.sched_getaffinity(0))


def available_bytes() -> float:
    """Bytes of memory that can still be had: the machine's, or what its container leaves."""
    free = [float(psutil.virtual_memory().available)]
    for folder in _folders("memory"):
        for limit, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            words = _words(folder / limit) + _words(folder / used)
            if len(words) == 2 and all(word.isdigit() for word in words):
                free.append(float(words[0]) - float(words[1]) + _file_bytes(folder))
    return max(0.0, min(x for x in free if math.isfinite(x)))


def free_bytes(device: torch.device) -> float:
    """Bytes that this process can still have on the device: of the host's, its share."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return available_bytes() / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def device_type(device: torch.device, num_threads: int | None = None) -> str:
    """The key of times on a device: its model, since unlike models take unlike times.

    Args:
        device: of this machine.
        num_threads: torch threads of a CPU in a job of several processes; without them it is `cpu`.
    """
    if device.type != "cpu":
        return hardware_model(device)
    if num_threads is None:
        return "cpu"
    return f"{hardware_model(device)}-{num_threads}-thread{'s' if num_threads > 1 else ''}"


def hardware_model(device: torch.device) -> str:
    """The model of this GPU, or of this machine's processor, in small letters and digits."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device).lower().replace(" ", "-")
    return _processor() if device.type == "cpu" else device.type


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (x.partition(":")[2] for x in lines if x.startswith("model name"))
    name = next(named, platform.processor() or platform.machine())
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "cpu"


def _folders(controller: str) -> Iterator[Path]:
    """The folders of this process's control groups for it, from its own to the outermost."""
    try:
        lines = OWN.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUPS / controller if controllers else CGROUPS
        inner = Path(own.lstrip("/"))
        for part in (inner, *inner.parents):
            if (root / part).is_dir():
                yield root / part


def _file_bytes(folder: Path) -> float:
    """What a control group holds of files and gives up when somebody needs it."""
    words = _words(folder / "memory.stat")
    found = dict(zip(words[::2], words[1::2], strict=False))
    return float(found.get("total_inactive_file", found.get("inactive_file", 0)))


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
