"""What a user calls a device, and the device that torch has under this name."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from skyfx.devices.host_resources import cores, device_type, free_bytes
from skyfx.runtime.device import LocalDevice
from skyfx.runtime.memory.malloc import keep_freed
from skyfx.solver.core import cluster, files
from skyfx.solver.core.field_checks import memory_size
from skyfx.solver.errors import PlanError


@dataclass(frozen=True, slots=True)
class Device:
    """A device to run on.

    Attributes:
        device: what torch calls it: `cpu`, `cuda:0`.
        memory_bytes: limit for the pipeline, as a number or as text such as `4GiB`; by default
            the free memory of a GPU, and no limit on a CPU. A stage that takes more fails with a
            `StageError`, and the next call goes on. On a CPU, what the program holds beside the
            pipeline does not count, but for what it allocates while a call runs.
        slowdown: factor on its compute time, in the plan and, by waiting, at run time: to try out
            unequal devices on one machine.
        hard: on a CPU, have the kernel refuse every allocation beyond the limit, with all that
            this process allocates from now on: also Python and other libraries meet that.
    """

    device: str | torch.device
    memory_bytes: float | str | None = None
    slowdown: float = 1.0
    hard: bool = False


DeviceList = Iterable[str | torch.device | Device] | cluster.Cluster | str | Path


def resolve(devices: DeviceList) -> tuple[cluster.Cluster, dict[str, LocalDevice]]:
    """Find the devices on this machine.

    Args:
        devices: torch devices or `Device`s; or a cluster, or its file (`.toml`, `.json`), whose
            devices are named, or typed, as torch calls them.

    Returns:
        The cluster (without links where `devices` gives none), and by device name the place to run.

    Raises:
        ValueError: the list is empty.
        TypeError: it is no list.
        PlanError: a device is not on this machine.
        FormatError: the cluster file is not one.
    """
    keep_freed()
    resolved = given_cluster(devices)
    if resolved is not None:
        found = [_torch_device(device.name, device.type) for device in resolved.devices]
        hard = [False] * len(found)
    else:
        if isinstance(devices, (str, torch.device, Device)):
            devices = [devices]
        if not isinstance(devices, Iterable):
            raise TypeError(
                f"devices is an {type(devices).__name__}, expected a list such as ['cpu', 'cuda:0']"
            )
        wanted = [d if isinstance(d, Device) else Device(d) for d in devices]
        found = [_torch_device(str(device.device)) for device in wanted]
        hard = [device.hard for device in wanted]
        resolved = _cluster(wanted, found)
    threads = _threads_each(found)
    return resolved, {
        device.name: LocalDevice(
            device.name, here, device.slowdown, threads, device.type, device.memory_bytes, is_hard
        )
        for device, here, is_hard in zip(resolved.devices, found, hard, strict=True)
    }


def given_cluster(devices: DeviceList) -> cluster.Cluster | None:
    """The cluster, read if `devices` is its file; None if it is a list of devices.

    Raises:
        FormatError: the cluster file is not one.
    """
    if isinstance(devices, Path) or (
        isinstance(devices, str) and devices.endswith((".toml", ".json"))
    ):
        devices = files.read(devices, cluster.Cluster)
    if not isinstance(devices, cluster.Cluster):
        return None
    devices.check()
    return devices


def _cluster(wanted: Sequence[Device], found: Sequence[torch.device]) -> cluster.Cluster:
    if not wanted:
        raise ValueError("devices is empty, expected at least one, such as ['cpu', 'cpu']")
    rows = enumerate(zip(_names(found), wanted, found, strict=True))
    described = (
        cluster.Device(
            name=name,
            type=device_type(here),
            memory_bytes=_memory(i, device, here),
            slowdown=device.slowdown,
        )
        for i, (name, device, here) in rows
    )
    resolved = cluster.Cluster(devices=tuple(described))
    resolved.check()
    return resolved


def _names(found: Sequence[torch.device]) -> list[str]:
    """`cpu` alone keeps its name; two of them are `cpu:0` and `cpu:1`. A GPU can be named once."""
    total, so_far, names = Counter(map(str, found)), Counter[str](), []
    for device in map(str, found):
        if total[device] > 1 and device != "cpu":
            raise PlanError(f"{device!r} is named {total[device]} times, expected once")
        names.append(f"{device}:{so_far[device]}" if total[device] > 1 else device)
        so_far[device] += 1
    return names


def _torch_device(*names: str) -> torch.device:
    """The torch device by the first of these names that is one.

    Raises:
        PlanError: none is, or this machine does not have it.
    """
    for name in names:
        try:
            device = torch.device(name)
        except RuntimeError:
            continue
        if device.type == "cpu":
            return torch.device("cpu")
        available = torch.accelerator.current_accelerator()
        count = torch.accelerator.device_count() if available is not None else 0
        if available is None or device.type != available.type or (device.index or 0) >= count:
            break
        return torch.device(device.type, device.index or 0)
    here = ["cpu"]
    if (accelerator := torch.accelerator.current_accelerator()) is not None:
        here += [f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count())]
    raise PlanError(f"no device {names[0]!r} on this machine; it has {', '.join(here)}")


def _memory(i: int, device: Device, here: torch.device) -> float | None:
    if device.memory_bytes is None and here.type == "cuda":
        return free_bytes(here)
    return memory_size(f"devices[{i}].memory_bytes", device.memory_bytes)


def _threads_each(found: Sequence[torch.device]) -> int:
    """Equal shares of this process's cores for the devices that are CPUs.

    Each other device keeps a core for the thread that launches its kernels.
    """
    num_cpus = sum(device.type == "cpu" for device in found)
    others = len(found) - num_cpus
    return max(1, int((cores() - others) / max(1, num_cpus)))
