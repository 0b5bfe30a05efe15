"""The devices of several processes under one name each, and which process has which.

A launcher such as torchrun starts a process for each GPU or share of cores of a host. A device is
called after its host and itself, `node1/cuda:0` or `node1/cpu`: names do not depend on which
process came first, so a plan made yesterday still fits.
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from skyfx.devices.host_resources import cores, device_type, free_bytes
from skyfx.runtime.device import LocalDevice
from skyfx.runtime.distributed.process_group import ProcessGroup
from skyfx.runtime.distributed.roll_call import enter
from skyfx.solver.core.cluster import Device
from skyfx.solver.errors import PlanError


@dataclass(frozen=True, slots=True)
class DeviceInventory:
    """All devices of a job.

    Attributes:
        group: its processes.
        devices: all devices, with their types and free memory, in the order of the ranks.
        owner_rank: the owning rank of each device, by its name.
        local: the devices of this process, by name.
    """

    group: ProcessGroup
    devices: tuple[Device, ...]
    owner_rank: Mapping[str, int]
    local: Mapping[str, LocalDevice]

    @classmethod
    def join(
        cls,
        group: ProcessGroup | None = None,
        memory_bytes: float | None = None,
        *,
        call: str = "Cluster.from_environment",
    ) -> "DeviceInventory":
        """Join the job; every process of it has to.

        Args:
            group: the job's processes, if they have joined.
            memory_bytes: of each of this process's devices, instead of what is free.
            call: the call that all processes make here.

        Raises:
            DisagreementError: another process makes another call.
            PlanError: two processes call a device by the same name.
        """
        group = group or ProcessGroup.join()
        enter(group, call)
        local = {device.name: device for device in _own_devices()}
        own = [
            Device(
                name=x.name,
                type=x.type,
                memory_bytes=free_bytes(x.device) if memory_bytes is None else memory_bytes,
            )
            for x in local.values()
        ]
        by_rank = group.all_gather_json(own, list[Device])
        owner_rank: dict[str, int] = {}
        for rank, devices in enumerate(by_rank):
            for device in devices:
                if device.name in owner_rank:
                    raise PlanError(
                        f"ranks {owner_rank[device.name]} and {rank} both have a device "
                        f"{device.name!r}: give their hosts different names"
                    )
                owner_rank[device.name] = rank
        return cls(group, tuple(d for devices in by_rank for d in devices), owner_rank, local)


def is_cpu(name: str) -> bool:
    """Whether the device of this name is a CPU."""
    return torch.device(name.rpartition("/")[2]).type == "cpu"


def _own_devices() -> list[LocalDevice]:
    """This process's share of its host: a GPU if there is one for it, and cores.

    Where there are GPUs, the host's first process has the CPU as well.
    """
    host = socket.gethostname()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    num_local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    accelerator = torch.accelerator.current_accelerator()
    num_gpus = 0 if accelerator is None else torch.accelerator.device_count()
    found = []
    if accelerator is not None and local_rank < num_gpus:
        gpu = torch.device(accelerator.type, local_rank)
        found.append(LocalDevice(f"{host}/{gpu}", gpu, type=device_type(gpu)))
    if local_rank >= num_gpus or local_rank == 0:
        num_cpus = max(1, num_local - num_gpus + (num_gpus > 0))
        threads = max(1, int((cores() - num_gpus) / num_cpus))  # a core launches a GPU's kernels
        name = f"{host}/cpu" if num_cpus == 1 else f"{host}/cpu:{local_rank}"
        cpu = torch.device("cpu")
        found.append(LocalDevice(name, cpu, num_threads=threads, type=device_type(cpu, threads)))
    return found
