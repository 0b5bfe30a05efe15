"""Fails in every way in one of two processes, and writes what it saw: run by `test_collectives`."""

import builtins
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError

import skyfx
from skyfx.runtime.distributed.clock_difference import ahead_of_first_s
from skyfx.runtime.distributed.process_group import ProcessGroup
from skyfx.solver import errors

OWN = [name for name in errors.__all__ if name != "SkyfxError"]
BUILTIN = ["MemoryError", "OSError", "RuntimeError", "TypeError", "ValueError"]
OTHER = {
    "FileExistsError": FileExistsError,
    "KeyboardInterrupt": KeyboardInterrupt,
    "SafetensorError": SafetensorError,
    "ZeroDivisionError": ZeroDivisionError,
}


def kind(name: str) -> type[BaseException]:
    return OTHER.get(name) or getattr(errors, name, None) or getattr(builtins, name)


def seen(group: ProcessGroup, name: str, rank: int) -> list[str]:
    """What this process raises when an action fails in the process of this rank."""

    def action() -> int:
        if group.rank == rank:
            raise kind(name)("it failed")
        return group.rank

    try:
        group.run_together(action)
    except BaseException as error:
        return [type(error).__name__, str(error)]
    raise AssertionError("nothing was raised")


def infeasible(cluster: skyfx.Cluster) -> list[str]:
    """What `partition` raises where the model does not fit."""
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    devices = tuple(replace(device, memory_bytes=100.0) for device in cluster.devices)
    try:
        skyfx.partition(model, replace(cluster, devices=devices), example_inputs=torch.ones(8, 64))
    except Exception as error:
        return [type(error).__name__, str(error)]
    raise AssertionError("nothing was raised")


def clock_differences(group: ProcessGroup) -> list[float]:
    """Of the clock that all share, and of one that is 1000 s ahead in the second process."""

    def delayed_s() -> float:
        time.sleep(0.02 * group.rank * torch.rand(()).item())  # one is late in each message
        return time.perf_counter()

    differing = ahead_of_first_s(group, lambda: delayed_s() + 1000 * group.rank)
    return [ahead_of_first_s(group, delayed_s), differing]


def main(folder: str) -> None:
    torch.set_num_threads(1)
    cluster, group = skyfx.Cluster.from_environment(), ProcessGroup.join()
    said = {
        "errors": {name: [seen(group, name, rank) for rank in range(2)] for name in OWN + BUILTIN},
        "others": {name: seen(group, name, 1) for name in OTHER},
        "values": group.run_together(lambda: {"rank": group.rank, "inf": float("inf")}),
        "first": group.broadcast_from_first(lambda: group.rank),
        "own": group.barrier_after(lambda: group.rank),
        "clocks": clock_differences(group),
        "infeasible": infeasible(cluster),
    }
    Path(folder, f"{group.rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
