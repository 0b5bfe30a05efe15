"""Trains models cut by hand in torch's engine, and whole: run by `test_hosts_benchmark`."""

import json
import sys
from pathlib import Path

import torch

from benchmarks.hosts.block_times import states_of
from benchmarks.hosts.competitors import SCHEDULES, Alone, Engine, Rival, update
from benchmarks.hosts.models import SUBJECTS
from skyfx.runtime.distributed.process_group import ProcessGroup


def losses(rival: Rival) -> list[float | None]:
    found = []
    for _ in range(2):
        found.append(rival.step())
        update(rival)
    return found


def main(folder: str) -> None:
    torch.set_num_threads(1)
    group = ProcessGroup.join()
    found = {}
    for name, make in SUBJECTS.items():
        torch.manual_seed(0)
        subject = make()
        states = states_of(subject)
        half = (len(states) - 1) // 2
        cut = (half, len(states) - 1 - half)
        found[name] = {"whole": losses(Alone(subject, here=group.rank == 1))}
        for schedule in SCHEDULES:
            found[name][schedule] = losses(Engine(subject, states, cut, schedule))
    Path(folder, f"{group.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
